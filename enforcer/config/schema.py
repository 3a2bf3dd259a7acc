"""The JSON Schema (draft 2020-12) of the configuration file.

``python -m enforcer.config`` prints it; docs/enforcer.schema.json is the committed copy.
"""

from __future__ import annotations

import json
from typing import Any

from enforcer.config.models import Configuration


def schema() -> dict[str, Any]:
    """Return the schema of the models, with which editors check and complete a file."""
    body = Configuration.model_json_schema(mode="validation")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **body,
        "title": "Configuration of the egress enforcer",
    }


def render() -> str:
    """Return the text of docs/enforcer.schema.json."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
