"""A YAML document as JSON-like values with the line of every key; what could be read two ways is refused."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import yaml

from ca.errors import ConfigError
from ca.identity.text import quote

MAX_CONFIG_BYTES = 1 << 20
_TEXT = "tag:yaml.org,2002:str"

Location = tuple[str | int, ...]
"""Where a value stands: keys and list indexes from the top."""


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed document: its values, and the line (from 1) of each location."""

    name: str
    values: Any
    lines: dict[Location, int]

    def place(self, location: Location) -> str:
        """`name:line` of a location, or of the nearest one around it."""
        while location and location not in self.lines:
            location = location[:-1]
        return f"{self.name}:{self.lines.get(location, 1)}"


class _Loader(yaml.SafeLoader):
    """YAML's JSON-like core: true/false alone are booleans, no octals, dates, sexagesimals, aliases or merges."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own interface)

    def close(self) -> None:
        """For contextlib.closing."""
        self.dispose()

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=self.get_mark())
        return super().compose_node(parent, index)


for _tag, _pattern, _first in (
    ("bool", r"true|false", "tf"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]+)(?:e[-+]?[0-9]+)?", "-+0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), list(_first))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|)\Z"), ["~", "n", ""])


def parse_yaml(text: str, name: str) -> Source:
    """Parse one document; `name` stands for the file in messages. An empty document is an empty mapping.

    Raises ConfigError: CONFIG_SYNTAX, CONFIG_DUPLICATE_KEY, CONFIG_TOO_LARGE.
    """
    if len(text.encode()) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{name}: larger than {MAX_CONFIG_BYTES} bytes", reason="CONFIG_TOO_LARGE")
    lines: dict[Location, int] = {}
    try:
        with closing(_Loader(text)) as loader:
            node = loader.get_single_node()
            values = {} if node is None else _value(loader, node, (), lines, name)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{name}:{line}: {error.problem}", reason="CONFIG_SYNTAX") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not YAML: {str(error).splitlines()[0]}", reason="CONFIG_SYNTAX") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: nested too deeply", reason="CONFIG_SYNTAX") from error
    except (OverflowError, ValueError) as error:  # from within PyYAML
        raise ConfigError(f"{name}: an escape names no character", reason="CONFIG_SYNTAX") from error
    return Source(name, {} if values is None else values, lines)


def _value(loader: _Loader, node: yaml.Node, at: Location, lines: dict[Location, int], name: str) -> Any:
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, at, lines, name)
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, (*at, index), lines, name) for index, item in enumerate(node.value)]
    return _scalar(loader, node, name)


def _scalar(loader: _Loader, node: yaml.Node, name: str) -> Any:
    """Text, number, true, false or null, as it is written: a tag could ask for other types, which JSON has not."""
    line = node.start_mark.line + 1
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"{name}:{line}: a key must be text", reason="CONFIG_SYNTAX")
    plain = loader.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]
    if node.tag not in (plain, _TEXT):
        raise ConfigError(f"{name}:{line}: tags are not allowed", reason="CONFIG_SYNTAX", hint="quote text, if it is")
    try:
        return loader.construct_object(node)
    except ValueError as error:
        raise ConfigError(f"{name}:{line}: a number is out of range", reason="CONFIG_SYNTAX") from error


def _mapping(
    loader: _Loader, node: yaml.MappingNode, at: Location, lines: dict[Location, int], name: str
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = _scalar(loader, key_node, name)
        if not isinstance(key, str):
            raise ConfigError(f"{name}:{line}: a key must be text", reason="CONFIG_SYNTAX", hint="quote it")
        if key in found:
            first = lines[(*at, key)]
            raise ConfigError(
                f"{name}:{line}: key {quote(key)} is there twice",
                reason="CONFIG_DUPLICATE_KEY",
                hint=f"see line {first}",
            )
        lines[(*at, key)] = line
        found[key] = _value(loader, value_node, (*at, key), lines, name)
    return found
