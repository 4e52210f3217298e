"""The manual of a configuration, made from its model: a Markdown table and a JSON Schema."""

from __future__ import annotations

import enum
import json
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

_NAMES = {str: "text", int: "integer", float: "number", bool: "true/false", Path: "path", Any: "anything"}


def json_schema(model: type[BaseModel]) -> str:
    """The model's JSON Schema (2020-12), indented, with a line feed at the end."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def markdown_table(model: type[BaseModel]) -> str:
    """One row per key, nested keys with dots: key, type, default, meaning."""
    rows = ["| Key | Type | Default | Meaning |", "|---|---|---|---|"]
    rows += [f"| `{key}` | {kind} | {default} | {text} |" for key, kind, default, text in _rows(model, "")]
    return "\n".join(rows) + "\n"


def print_reference(model: type[BaseModel], title: str, arguments: Sequence[str]) -> int:
    """What `python -m <config module> table|schema` does; returns the exit code."""
    if list(arguments) == ["schema"]:
        sys.stdout.write(json_schema(model))
        return 0
    if list(arguments) == ["table"]:
        sys.stdout.write(f"# {title}\n\n{(model.__doc__ or '').strip()}\n\n{markdown_table(model)}")
        return 0
    sys.stderr.write("usage: table | schema\n")
    return 2


def _rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, field in model.model_fields.items():
        key = prefix + name
        nested, suffix = _nested(field.annotation)
        text = " ".join((field.description or "").split()).replace("|", "\\|")
        if nested is None:
            yield key, _kind(field.annotation).replace("|", "\\|"), _default(field), text
            continue
        yield key, "mapping" if not suffix else "list" if suffix == "[]" else "mapping", _default(field), text
        yield from _rows(nested, f"{key}{suffix}.")


def _nested(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """The model inside of an annotation and what stands between its key and its own keys."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ""
    origin, inner = get_origin(annotation), [a for a in get_args(annotation) if a not in (type(None), Ellipsis)]
    if origin in (Union, types.UnionType) and len(inner) == 1:
        return _nested(inner[0])
    if origin in (tuple, list) and inner:
        return _nested(inner[0])[0], "[]"
    if origin is dict:
        return _nested(inner[-1])[0], ".<name>"
    return None, ""


def _kind(annotation: Any) -> str:
    """An annotation in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is Annotated:
        return _kind(inner[0])
    if origin is Literal:
        return " | ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " | ".join(_kind(item) for item in inner)
    if origin in (tuple, list):
        return f"list of {_kind(inner[0])}"
    if origin is dict:
        return f"mapping of {_kind(inner[-1])}"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return " | ".join(f"`{item.value}`" for item in annotation)
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple | list | dict):
        return f"`{json.dumps(value)}`"
    return f"`{value}`"
