"""Path templates: `{*}` is one segment, `{**}` any number of them, as Envoy's `uri_template` reads `*` and `**`.

Segments are made of RFC 3986's pchar without `*` and `=`. What cannot be a template is refused when it is written:
a proxy would refuse the whole configuration for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

ONE, MANY = "{*}", "{**}"
_CHARACTERS = r"a-zA-Z0-9\-._~%!$&'()+,;:@"
_LITERAL = re.compile(rf"[{_CHARACTERS}]+")
_ANY = re.compile(rf"[{_CHARACTERS}/]*")
"""Both are one class repeated, which takes linear time."""


def is_template(path: str) -> bool:
    """Whether a path is read as a template at all."""
    return ONE in path or MANY in path


class Template:
    """A template that was understood. Raises ValueError with what is wrong with it."""

    __slots__ = ("head", "literal_prefix", "many", "suffix", "tail", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        if not text.startswith("/"):
            raise ValueError("a template starts with `/`")
        self.literal_prefix = text.partition("{")[0]
        self.suffix, self.many = "", False
        self.head: list[str | None] = []
        """Segments before `{**}`; None is `{*}`."""
        self.tail: list[str] = []
        """Segments after it."""
        segments = text[1:].split("/")
        for number, segment in enumerate(segments):
            self._add(segment, last=number == len(segments) - 1)

    def _add(self, segment: str, *, last: bool) -> None:
        operator = next((o for o in (MANY, ONE) if segment.startswith(o)), "")
        rest = segment[len(operator) :]
        if operator:
            if self.many:
                raise ValueError("nothing but literal segments may follow `{**}`")
            if rest and not last:
                raise ValueError("text after `{*}` or `{**}` within a segment is possible in the last one only")
            self.suffix, self.many = rest, operator == MANY
            if operator == ONE:
                self.head.append(None)
        elif self.many:
            self.tail.append(segment)
        else:
            self.head.append(segment)
        if not (operator and not rest) and not (last and not segment) and not _LITERAL.fullmatch(rest):
            raise ValueError(f"`{segment}` cannot be a segment of a template")

    def matches(self, path: str) -> bool:
        """Whether a path, without its query, is one that the template stands for."""
        if not path.startswith("/"):
            return False
        parts = path[1:].split("/")
        if len(parts) < len(self.head) + self.many or (not self.many and len(parts) != len(self.head)):
            return False
        if not self.many and self.suffix:
            if not parts[-1].endswith(self.suffix):
                return False
            parts[-1] = parts[-1][: -len(self.suffix)]
        for want, have in zip(self.head, parts, strict=False):
            if _LITERAL.fullmatch(have) is None if want is None else want != have:
                return False
        return not self.many or self._many("/".join(parts[len(self.head) :]))

    def _many(self, rest: str) -> bool:
        end = "".join(f"/{segment}" for segment in self.tail) or self.suffix
        return rest.endswith(end) and _ANY.fullmatch(rest, 0, len(rest) - len(end)) is not None


def template_test(text: str) -> Callable[[str], bool]:
    """Whether a path is one that the template stands for."""
    return Template(text).matches
