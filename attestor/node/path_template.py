"""Agent path templates: `/{{ .PluginName }}/{{ .Fingerprint }}` and evidence become the path of an agent's SPIFFE ID.

A small, total language in place of Go's: a template is checked whole when the configuration is read, and rendering one
can neither fail other than by Denied nor take long, whatever the evidence says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from ca.errors import Denied, InvalidArgument
from ca.identity.spiffe_id import AGENT_PREFIX, SpiffeId, TrustDomain
from ca.identity.template_grammar import Constant, Expression, Field, Text, fields_of, parse
from ca.identity.text import quote
from ca.runtime.notes import note

MAX_VALUE_CHARACTERS = 2048
"""More than a SPIFFE ID has; also what a function may answer."""

SHARED_FIELDS = frozenset({"PluginName", "TrustDomain"})
"""What is the same for every node."""

_NOT_IN_A_PATH = re.compile(r"[^A-Za-z0-9._/-]")
_ANY_DOMAIN = TrustDomain("t")


@dataclass(frozen=True, slots=True)
class PathTemplate:
    """A template that has been checked. `text` is what was configured."""

    text: str
    _parts: tuple[Text | Expression, ...]
    _paths: frozenset[str]

    @classmethod
    def parse(
        cls, text: str, fields: frozenset[str], *, paths: frozenset[str] = frozenset(), plugin: str | None = None
    ) -> Self:
        """Raises ValueError with the place and what is wrong there.

        `fields` are the names that `render` will be given, `X.*` for any one name below `X`. The values of `paths`,
        which are some of them, may hold slashes. With `plugin`, another first segment than its name is refused.
        """
        parts = parse(text, fields)
        _check_text(parts)
        _check_namespace(parts, plugin)
        used: frozenset[str] = frozenset().union(*(fields_of(one) for one in parts if not isinstance(one, Text)))
        if not used - SHARED_FIELDS:
            raise ValueError("the template names no field that tells one node from another")
        return cls(text, parts, paths)

    def render(self, values: Mapping[str, str]) -> str:
        """The whole path, `/spire/agent/…`. Raises Denied where a value is missing or cannot be in a path."""
        path = AGENT_PREFIX[:-1] + "".join(self._rendered(part, values) for part in self._parts)
        try:
            return SpiffeId.of(_ANY_DOMAIN, path).path
        except InvalidArgument as error:
            raise _refused(error.detail) from error

    def _rendered(self, part: Text | Expression, values: Mapping[str, str]) -> str:
        if isinstance(part, Text):
            return part.value
        found = _evaluate(part, values)
        names = fields_of(part)
        shown = ", ".join(f"`.{name}`" for name in sorted(names)) or "a text"
        if not found:
            raise _refused(f"{shown} came out empty")
        if "/" in found and not any(name in self._paths or _family(name) in self._paths for name in names):
            raise _refused(f"{shown} came out as {quote(found)}, which holds a slash")
        return found


def _evaluate(expression: Expression, values: Mapping[str, str]) -> str:
    if isinstance(expression, Constant):
        return str(expression.value)
    if isinstance(expression, Field):
        if expression.name not in values:
            raise _refused(f"the evidence has no `.{expression.name}`")
        found = values[expression.name]
    else:
        arguments = [one if isinstance(one, int) else _evaluate(one, values) for one in expression.arguments]
        found = str(expression.function.apply(*arguments))
    if len(found) > MAX_VALUE_CHARACTERS:
        raise _refused(f"a value is longer than {MAX_VALUE_CHARACTERS} characters")
    return found


def _family(name: str) -> str:
    """`X.*` for `X.y`."""
    return f"{name.rpartition('.')[0]}.*"


def _refused(what: str) -> Denied:
    note("agent path template", what)
    return Denied(
        "this node's evidence does not make an agent path",
        reason="AGENT_PATH",
        hint="the server's `agent_path_template` needs a value that this evidence lacks, or that no path can hold",
    )


def _check_text(parts: tuple[Text | Expression, ...]) -> None:
    """What stands in the template itself makes a path, whatever the actions give."""
    for part in parts:
        if isinstance(part, Text) and (found := _NOT_IN_A_PATH.search(part.value)):
            place = part.position + found.start() + 1
            raise ValueError(
                f"character {place} of the template: {quote(found[0])} cannot be in the path of a SPIFFE ID"
            )
    skeleton = "".join(part.value if isinstance(part, Text) else "x" for part in parts)
    if not skeleton.startswith("/"):
        raise ValueError("the template must begin with a slash: `/{{ .PluginName }}/…`")
    try:
        SpiffeId.of(_ANY_DOMAIN, skeleton)
    except InvalidArgument as error:
        raise ValueError(error.detail) from error


def _check_namespace(parts: tuple[Text | Expression, ...], plugin: str | None) -> None:
    """An attestor names agents below its own name, for a look at an ID to tell how the node was proven."""
    first = parts[0].value if isinstance(parts[0], Text) else ""
    segment, more, _ = first[1:].partition("/")
    if more:
        own = plugin is None or segment == plugin
    else:
        after = parts[2] if len(parts) > 2 else None
        own = parts[:2] == (Text("/", 0), Field("PluginName")) and isinstance(after, Text) and after.value[0] == "/"
    if not own:
        raise ValueError("the template must begin with `/{{ .PluginName }}/`: agents are named below their attestor")
