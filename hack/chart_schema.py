#!/usr/bin/env python3
"""Write into the chart's values.schema.json what its value `config` takes: the agent's settings.

    .venv/bin/python hack/chart_schema.py

So that Helm refuses a setting that the agent does not know, or cannot take, before it reaches a
cluster. tests/manifests/test_chart_values.py fails while the two differ. Rules that no JSON schema
can say (a path too long for a socket, a name the kubelet refuses) stay the agent's own.
"""

import json
from pathlib import Path
from typing import Any, Final

from hailo_agent.settings import Settings

SCHEMA: Final = (
    Path(__file__).parent.parent / "manifests" / "helm" / "hailo-agent" / "values.schema.json"
)
_KEPT: Final = ("type", "enum", "minimum", "exclusiveMinimum", "maximum", "minLength", "maxLength")


def config_schema() -> dict[str, Any]:
    """Return the schema of the settings, as the chart has it."""
    tree = Settings.model_json_schema()
    return {
        "title": "Settings of the agent",
        "description": "Put over what the chart sets by itself. See docs/reference/settings.md.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            name: _plain(section, tree["$defs"]) for name, section in tree["properties"].items()
        },
    }


def _plain(node: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    """Return a node of pydantic's schema with references put in, and without what only it needs."""
    while "$ref" in node:
        node = node | defs[node["$ref"].rpartition("/")[2]]
        del node["$ref"]
    described = {"description": node["description"]} if "description" in node else {}
    is_optional = "anyOf" in node
    if is_optional:
        node = next(choice for choice in node["anyOf"] if choice.get("type") != "null")
    plain: dict[str, Any] = described | {word: node[word] for word in _KEPT if word in node}
    if node.get("format") == "path":
        plain["pattern"] = "^(/.*)?$" if is_optional else "^/"  # what may be off is off if empty
    if "properties" in node:
        plain["additionalProperties"] = False
        plain["properties"] = {
            name: _plain(below, defs) for name, below in node["properties"].items()
        }
    elif "additionalProperties" in node:
        plain["additionalProperties"] = _plain(node["additionalProperties"], defs)
    if "items" in node:
        plain["items"] = _plain(node["items"], defs)
    if "required" in node:
        plain["required"] = node["required"]
    return plain


def with_config(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the chart's schema with the settings as they are now."""
    return schema | {"properties": schema["properties"] | {"config": config_schema()}}


if __name__ == "__main__":
    SCHEMA.write_text(json.dumps(with_config(json.loads(SCHEMA.read_text())), indent=2) + "\n")
