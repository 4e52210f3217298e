"""Strict configuration: YAML or plain values in, frozen models out, errors that name the line and the nearest key."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from ca.errors import ConfigError
from ca.identity.text import quote
from ca.runtime.durations import seconds_hint
from ca.runtime.yaml_source import Location, Source, parse_yaml


class StrictModel(BaseModel):
    """A frozen model that refuses unknown keys and never converts between types. Field docstrings are its manual."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


M = TypeVar("M", bound=BaseModel)


def load_yaml(source: str | Path, model: type[M]) -> M:
    """Read a configuration from a file (`Path`) or from text (`str`).

    Raises ConfigError whose detail names file, line and key of every problem, and whose hint names the nearest key.
    """
    if isinstance(source, str):
        return _validate(parse_yaml(source, "<text>"), model)
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"cannot read `{source}`: {why}", reason="CONFIG_UNREADABLE") from error
    return _validate(parse_yaml(text, str(source)), model)


def from_values(values: Mapping[str, Any], model: type[M], *, name: str = "config") -> M:
    """A model from JSON-like values, such as a plugin's part of a configuration. Raises ConfigError."""
    return _validate(Source(name, dict(values), {}), model)


def _validate(source: Source, model: type[M]) -> M:
    try:
        # As JSON: there, strict means "no conversion between JSON types", and text can still name a path or an enum.
        return model.model_validate_json(json.dumps(source.values))
    except ValidationError as error:
        problems = [_problem(source, model, item) for item in error.errors(include_url=False)]
        hints = dict.fromkeys(hint for _, hint in problems if hint)
        raise ConfigError("; ".join(text for text, _ in problems), hint="; ".join(hints)) from error


def _problem(source: Source, model: type[BaseModel], item: ErrorDetails) -> tuple[str, str]:
    """(sentence, hint) for one finding of pydantic's; the value itself is never repeated: it could be a secret."""
    location: Location = item["loc"]
    place = source.place(location) if source.lines else source.name
    key = quote(".".join(str(part) for part in location))
    match item["type"]:
        case "extra_forbidden":
            import difflib  # for mistakes alone

            known = _keys_at(model, location[:-1])
            near = difflib.get_close_matches(str(location[-1]), known, 1)
            hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}"
            return f"{place}: unknown key {key}", hint
        case "missing":
            return f"{place}: {key} is missing", ""
        case _:
            text = item["msg"].removeprefix("Value error, ")
            text = text[:1].lower() + text[1:]
            wants_seconds = bool(location) and str(location[-1]).endswith("_seconds")
            hint = seconds_hint(str(location[-1]), item["input"]) if wants_seconds else ""
            return (f"{place}: {key}: {text}" if location else f"{place}: {text}"), hint


def _keys_at(model: type[BaseModel], location: Location) -> list[str]:
    """The keys a mapping at `location` may have."""
    here: Any = model
    for part in location:
        if isinstance(here, type) and issubclass(here, BaseModel) and part in here.model_fields:
            here = _plain(here.model_fields[str(part)].annotation)
        else:
            items = [item for item in get_args(here) if item is not Ellipsis]  # of tuple[X, ...] or dict[str, X]
            here = _plain(items[-1]) if items else None
    if isinstance(here, type) and issubclass(here, BaseModel):
        return list(here.model_fields)
    return []


def _plain(annotation: Any) -> Any:
    """`X | None` as `X`; anything else as it is."""
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [item for item in get_args(annotation) if item is not type(None)]
        return rest[0] if len(rest) == 1 else annotation
    return annotation
