"""Path templates: `{*}` is one segment, `{**}` any number of them, as Envoy's `uri_template` reads `*` and `**`.

What Istio's validation refuses is refused when it is written, and so is what a proxy would refuse its whole
configuration for. Segments that operators stand for are made of RFC 3986's pchar, literal ones have no asterisk.
"""

from __future__ import annotations

import re
from collections.abc import Callable

ONE, MANY = "{*}", "{**}"
_CHARACTERS = r"a-zA-Z0-9\-._~%!$&'()+,;:@="
_LITERAL = re.compile(rf"[{_CHARACTERS}]+")
_SEGMENT = re.compile(rf"[{_CHARACTERS}*]+")
_SEGMENTS = re.compile(rf"[{_CHARACTERS}*/]*")
"""Each is one class repeated, which takes linear time."""


def is_template(path: str) -> bool:
    """Whether a path is read as a template at all."""
    return ONE in path or MANY in path


def has_braces(path: str) -> bool:
    """Whether a path has what only templates may have."""
    return "{" in path or "}" in path


def unsupported(path: str) -> str:
    """Why Istio refuses a path, as its `CheckValidPathTemplate` does; empty if it does not."""
    if not has_braces(path):
        return ""
    many = False
    for segment in path.strip("/").split("/"):
        if segment in (ONE, MANY):
            if many:
                return "nothing but literal segments may follow `{**}`"
            many = segment == MANY
        elif has_braces(segment):
            return f"`{segment}` has braces and is neither `{{*}}` nor `{{**}}`"
        elif is_template(path) and not _LITERAL.fullmatch(segment):
            return f"`{segment}` cannot be a segment of a template"
    return ""


class Template:
    """A template that was understood. Raises ValueError with what is wrong with it."""

    __slots__ = ("head", "literal_prefix", "many", "tail", "text")

    def __init__(self, text: str) -> None:
        if reason := unsupported(text):
            raise ValueError(reason)
        first, *segments = text.split("/")
        if first:
            raise ValueError("a template starts with `/`")
        if "" in segments[:-1]:
            raise ValueError("a template has no empty segment")
        self.text = text
        self.literal_prefix = text.partition("{")[0]
        self.many = MANY in segments
        at = segments.index(MANY) if self.many else len(segments)
        self.head = [None if segment == ONE else segment for segment in segments[:at]]
        """Segments before `{**}`; None is `{*}`."""
        self.tail = segments[at + 1 :]
        """Segments after it."""

    def matches(self, path: str) -> bool:
        """Whether a path, without its query, is one that the template stands for."""
        if not path.startswith("/"):
            return False
        parts = path[1:].split("/")
        if len(parts) < len(self.head) + self.many or (not self.many and len(parts) != len(self.head)):
            return False
        for want, have in zip(self.head, parts, strict=False):
            if _SEGMENT.fullmatch(have) is None if want is None else want != have:
                return False
        return not self.many or self._many("/".join(parts[len(self.head) :]))

    def _many(self, rest: str) -> bool:
        end = "".join(f"/{segment}" for segment in self.tail)
        return rest.endswith(end) and _SEGMENTS.fullmatch(rest, 0, len(rest) - len(end)) is not None


def template_test(text: str) -> Callable[[str], bool]:
    """Whether a path is one that the template stands for."""
    return Template(text).matches
