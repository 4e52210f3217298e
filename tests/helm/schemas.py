"""What kubeconform judges by: JSON Schemas of the very API server's kinds, strict as it is with unknown fields."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.support.kube import Cluster

LOCATION = "{{ .ResourceKind }}{{ .KindSuffix }}.json"
_REFERENCE = re.compile(r'"#/definitions/([^"]+)"')


def write_schemas(cluster: Cluster, directory: Path) -> str:
    """A file for each kind that the API server describes; gives what `-schema-location` wants."""
    definitions = cluster.admin.call("GET", "/openapi/v2")["definitions"]
    for name, definition in definitions.items():
        for kind in definition.get("x-kubernetes-group-version-kind", ()):
            group = kind["group"].partition(".")[0]
            suffix = f"-{group}-{kind['version']}" if group else f"-{kind['version']}"
            reachable = {one: _strict(definitions[one]) for one in _reachable(definitions, name)}
            schema = reachable[name] | {"definitions": reachable}
            (directory / f"{kind['kind'].lower()}{suffix}.json").write_text(json.dumps(schema))
    return str(directory / LOCATION)


def _strict(definition: dict[str, Any]) -> dict[str, Any]:
    """Without fields that are not described; numbers may stand for quantities, and either for ports."""
    is_text = definition.get("type") == "string" and "properties" not in definition
    if is_text or definition.get("format") == "int-or-string":
        return {"type": ["string", "number"]}
    if "properties" in definition:
        return definition | {"additionalProperties": False}
    return definition


def _reachable(definitions: dict[str, Any], name: str) -> set[str]:
    found: set[str] = set()
    left = [name]
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left += _REFERENCE.findall(json.dumps(definitions[one]))
    return found
