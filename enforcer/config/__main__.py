"""``python -m enforcer.config`` prints the JSON Schema of the configuration file."""

from __future__ import annotations

from enforcer.config.schema import render

print(render(), end="")
