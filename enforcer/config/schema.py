"""The JSON Schema (draft 2020-12) of the configuration file.

``python -m enforcer.config`` prints it as it is committed in docs/enforcer.schema.json.
"""

from __future__ import annotations

import json
from typing import Any

from enforcer.config.models import Configuration


def schema() -> dict[str, Any]:
    """Make the schema from the models; editors check and complete a file with it."""
    body = Configuration.model_json_schema(mode="validation")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **body,
        "title": "Configuration of the egress enforcer",
    }


def render() -> str:
    """Give the text of the committed schema file."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
