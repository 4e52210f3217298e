"""The chart's values, told three times from one source: `values.schema.json`, which people write.

    python -m tests.support.helm_values schema | values | table

The schema holds description and default of each value. Made from it are `values.yaml` and the reference; made in it are
the definitions of what server and agents can be configured with, which are the programs' own models.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from ca.controller.config import ControllerConfig
from ca.runtime.server_config import ServerConfig
from sds.config import AgentConfig

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "helm/burgee/values.schema.json"
WIDTH = 116
Schema = dict[str, Any]

CHARTS_OWN: dict[type[BaseModel], frozenset[str]] = {
    ServerConfig: frozenset(
        {
            "trust_domain",
            "data_dir",
            "bind_address",
            "bind_port",
            "admin_socket",
            "store",
            "keys",
            "upstream",
            "node_attestors",
            "bundle_file",
            "bundle_publishers",
            "istio",
            "metrics_address",
        }
    ),
    AgentConfig: frozenset(
        {
            "trust_domain",
            "data_dir",
            "servers",
            "workload_socket",
            "admin_socket",
            "trust",
            "node_attestor",
            "workload_attestors",
            "metrics_address",
            "cache.directory",
        }
    ),
    ControllerConfig: frozenset(
        {"trust_domain", "cluster", "server", "kubeconfig", "lease", "metrics_address"},
    ),
}
"""Keys that the chart itself decides; they are no values."""

INTRODUCTION = """\
# Values of the Helm chart

What `helm install` of the chart in `helm/burgee` can be told, with `--values FILE` or `--set KEY=VALUE`. An unknown key
is refused with its path. [Install on Kubernetes](../kubernetes-install.md) shows them in use.
"""
HEAD = """\
# Values of the chart burgee. Made from values.schema.json by `make proto`; change that.
"""
LINKS = {
    "ServerConfig": "[server](server-config.md)",
    "AgentConfig": "[agent](agent-config.md)",
    "ControllerConfig": "[controller](controller-config.md)",
}


def schema_text() -> str:
    """The schema with the definitions of the programs' models as they are now."""
    schema: Schema = json.loads(SCHEMA.read_text())
    kept = {
        name: value for name, value in schema["$defs"].items() if not name.startswith(("Server", "Agent", "Controller"))
    }
    for model, own in CHARTS_OWN.items():
        kept |= _definitions(model, own)
    schema["$defs"] = kept
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def values_text() -> str:
    """`values.yaml`: every default below its description."""
    return HEAD + "\n".join(_commented(json.loads(SCHEMA.read_text())["properties"], 0)) + "\n"


def table_text() -> str:
    """The page of the reference."""
    rows = ["| Value | Type | Default | Meaning |", "|---|---|---|---|"]
    for key, value in _leaves(json.loads(SCHEMA.read_text())["properties"], ""):
        default = json.dumps(value["default"])
        meaning = " ".join(value["description"].split()).replace("|", "\\|")
        rows.append(f"| `{key}` | {_kind(value)} | `{default}` | {meaning} |")
    return INTRODUCTION + "\n" + "\n".join(rows) + "\n"


def defaults(properties: Schema) -> Schema:
    """What values.yaml says, as values."""
    return {
        key: defaults(value["properties"]) if "properties" in value else value["default"]
        for key, value in properties.items()
    }


def _definitions(model: type[BaseModel], own: frozenset[str]) -> Schema:
    """A model's schema as definitions whose names begin with the program's, without what the chart decides."""
    name = model.__name__
    prefix = name.removesuffix("Config")
    made = model.model_json_schema()
    parts: Schema = {name: {key: value for key, value in made.items() if key != "$defs"}} | {
        f"{prefix}{key}": value for key, value in made["$defs"].items()
    }
    text = json.dumps(parts).replace('"#/$defs/', f'"#/$defs/{prefix}')
    parts = _untitled(json.loads(text))
    for key in own:
        _without(parts, name, key.split("."))
    parts[name].pop("required", None)
    return {key: parts[key] for key in _reachable(parts, name)}


def _without(parts: Schema, name: str, path: list[str]) -> None:
    *way, last = path
    for step in way:
        name = parts[name]["properties"][step]["$ref"].rpartition("/")[2]
    del parts[name]["properties"][last]


def _reachable(parts: Schema, name: str) -> list[str]:
    found, left = [], [name]
    while left:
        one = left.pop()
        if one not in found:
            found.append(one)
            left += [other for other in parts if f'"#/$defs/{other}"' in json.dumps(parts[one])]
    return sorted(found)


def _untitled(value: Any) -> Any:
    """Without the titles that pydantic makes of names, and without its defaults: the programs have those."""
    if isinstance(value, list):
        return [_untitled(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: {name: _untitled(item) for name, item in part.items()} if key == "properties" else _untitled(part)
        for key, part in value.items()
        if key not in ("title", "default")
    }


def _commented(properties: Schema, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for key, value in properties.items():
        if depth == 0:
            yield ""
        for line in textwrap.wrap(value["description"], WIDTH - len(indent)):
            yield f"{indent}# {line}"
        if "properties" in value:
            yield f"{indent}{key}:"
            yield from _commented(value["properties"], depth + 1)
        else:
            text = yaml.safe_dump({key: value["default"]}, sort_keys=False, width=WIDTH)
            yield textwrap.indent(text.rstrip("\n"), indent)


def _leaves(properties: Schema, prefix: str) -> Iterator[tuple[str, Schema]]:
    for key, value in properties.items():
        if "properties" in value:
            yield from _leaves(value["properties"], f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _kind(value: Schema) -> str:
    reference = value.get("$ref", "").rpartition("/")[2]
    if reference in LINKS:
        return f"configuration of the {LINKS[reference]}"
    if reference:
        return {"texts": "texts by name"}.get(reference, f"{reference}, as Kubernetes has it")
    if "enum" in value:
        return " \\| ".join(f"`{one}`" for one in value["enum"])
    names = {"string": "text", "boolean": "true/false", "integer": "integer", "array": "list", "object": "mapping"}
    kinds = value["type"] if isinstance(value["type"], list) else [value["type"]]
    return " or ".join(names[kind] for kind in kinds)


MADE = {"schema": schema_text, "values": values_text, "table": table_text}

if __name__ == "__main__":
    sys.stdout.write(MADE[sys.argv[1]]())
