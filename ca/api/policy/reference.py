"""Prints the REST reference as Markdown: `python -m ca.api.policy.reference`. Made from the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI

from ca.api.policy.desk import Desk
from ca.api.policy.openapi import document
from ca.api.policy.reference_head import HEAD
from ca.api.policy.rest import all_routes
from ca.api.policy.web import add

EVERYWHERE = {"400", "403", "406", "429", "500", "503"}
Schema = Mapping[str, Any]


def reference() -> str:
    """Every route with what it takes and gives, and every document."""
    found = described()
    parts = [HEAD, "## Routes\n", *_overview(found), *_routes(found), "## Documents\n", *_documents(found)]
    return "\n".join(parts)


def described() -> dict[str, Any]:
    """The OpenAPI document, of no server."""
    limits = SimpleNamespace(questions_per_second_per_caller=1.0, burst_seconds=1.0)
    parts: Any = SimpleNamespace(book=SimpleNamespace(held=SimpleNamespace(settings=SimpleNamespace(limits=limits))))
    desk = Desk(parts)
    app = FastAPI()
    routes = all_routes(desk)
    for route in routes:
        add(app, route, desk.enter)
    return document(app, routes, "")


def _overview(found: Schema) -> Iterator[str]:
    yield "| | |\n|---|---|"
    for path, operations in found["paths"].items():
        for verb, operation in operations.items():
            yield f"| `{verb.upper()} {path}` | {operation['summary']} |"
    yield ""


def _routes(found: Schema) -> Iterator[str]:
    for path, operations in found["paths"].items():
        for verb, operation in operations.items():
            yield f"### {operation['summary']}\n"
            yield f"`{verb.upper()} {path}`\n"
            if text := operation.get("description", ""):
                yield f"{' '.join(text.split())}\n"
            yield from _parameters(operation)
            yield from _body(operation)
            yield from _answer(operation)


def _parameters(operation: Schema) -> Iterator[str]:
    rows = operation.get("parameters", [])
    if rows:
        yield "| Parameter | In | Type | | Default |\n|---|---|---|---|---|"
    for row in rows:
        schema = row["schema"]
        default = schema.get("default")
        shown = "" if default is None or default == "" else f"`{str(default).lower()}`"
        required = " Required." if row["required"] and row["in"] == "query" else ""
        words = _cell(row.get("description", "")) + required
        yield f"| `{row['name']}` | {row['in']} | {_cell(_type(schema))} | {words} | {shown} |"
    if rows:
        yield ""


def _body(operation: Schema) -> Iterator[str]:
    by_kind: dict[str, list[str]] = {}
    for media, one in operation.get("requestBody", {}).get("content", {}).items():
        by_kind.setdefault(_named(one["schema"]), []).append(f"`{media}`")
    if by_kind:
        said = (f"{kind} as {' or '.join(media)}" for kind, media in by_kind.items())
        yield f"Takes {', or '.join(said)}.\n"


def _answer(operation: Schema) -> Iterator[str]:
    responses = operation["responses"]
    good = responses["200"]
    content = good.get("content", {})
    kinds = [_named(one["schema"]) if media == "application/json" else f"`{media}`" for media, one in content.items()]
    others = [f"{status}" for status in ("201", "304") if status in responses]
    headers = "; ".join(f"`{name}`, {one['description']}" for name, one in good.get("headers", {}).items())
    line = f"Gives {' or '.join(kinds)}" + (f" (200, or {' or '.join(others)})." if others else ".")
    yield f"{line}{f' Headers: {headers}.' if headers else ''}\n"
    refused = sorted(status for status in responses if status >= "400" and status not in EVERYWHERE)
    if refused:
        yield f"Refuses with {', '.join(refused)} besides.\n"


def _documents(found: Schema) -> Iterator[str]:
    for name, schema in found["components"]["schemas"].items():
        if schema.get("type") != "object" or not schema.get("properties"):
            continue
        yield f"### {name}\n"
        yield f"{' '.join(schema.get('description', '').split())}\n"
        yield "| Field | | |\n|---|---|---|"
        for field, inner in schema["properties"].items():
            required = "required" if field in schema.get("required", ()) else ""
            yield f"| `{field}` | {_cell(_type(inner))} | {required} |"
        yield ""


def _named(schema: Schema) -> str:
    name = schema.get("$ref", "").rpartition("/")[2]
    if name:
        return f"[{name}](#{name.lower()})"
    return schema.get("title") or _type(schema)


def _type(schema: Schema) -> str:
    """In words."""
    if "$ref" in schema:
        return _named(schema)
    if "enum" in schema:
        return "one of " + ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(one) for one in schema["anyOf"]))
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"mapping to {_type(inner)}" if isinstance(inner, dict) and inner else "object"
    return {"string": "text", "null": "null"}.get(kind, kind)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(reference().rstrip("\n"))
