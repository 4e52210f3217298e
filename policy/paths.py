"""Paths as Envoy's filters see them, and whether one is normal already.

Rules look at the path of a request without query and fragment, after the proxy normalized it. Of a proxy of which it is
not known whether it does, paths that are not normal are refused where path rules are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

_NOT_NORMAL = re.compile(
    r"//"  # an empty segment
    r"|/\.{1,2}(?=[/;]|\Z)"  # `.` and `..` as segments, with parameters too
    r"|%(?:2[dDeE]|3[0-9]|4[1-9a-fA-F]|5[0-9aA]|5[fF]|6[1-9a-fA-F]|7[0-9aA]|7[eE])"  # an unreserved character, encoded
    r"|%(?:2[fF]|5[cC]|00)"  # slash, backslash and NUL, encoded
    r"|[^!-[\]-~]"  # a backslash, and what is no printable ASCII, which a proxy would encode
)
"""RFC 3986 §6.2.2 and what is read as a separator somewhere. Meant for the part before the query."""

_ESCAPED_SLASH = re.compile(r"%(2[fF]|5[cC])")
_ESCAPED = re.compile(r"%([0-9a-fA-F]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_TO_ENCODE = re.compile(r'[^!-~]|["<>^`{|}]')
_SLASHES = re.compile("//+")


class EscapedSlashes(StrEnum):
    """What a proxy does with `%2F` and `%5C` (`path_with_escaped_slashes_action`)."""

    KEEP = "KEEP_UNCHANGED"
    REJECT = "REJECT_REQUEST"
    REDIRECT = "UNESCAPE_AND_REDIRECT"
    FORWARD = "UNESCAPE_AND_FORWARD"


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalization:
    """How a proxy is configured; by default as Istio configures it."""

    normalize_path: bool = True
    merge_slashes: bool = False
    escaped_slashes: EscapedSlashes = EscapedSlashes.KEEP


class Rejected(ValueError):
    """The proxy answers by itself: no rule sees the request."""


class Redirected(ValueError):
    """The proxy sends the client to `path` instead: no rule sees the request."""

    def __init__(self, path: str) -> None:
        super().__init__(f"redirected to `{path}`")
        self.path = path


def without_query(path: str) -> str:
    """Everything before the first `?` or `#`."""
    for mark in "?#":
        path = path.partition(mark)[0]
    return path


def is_normal(path: str) -> bool:
    """Whether every proxy sees the same path in this one (`path` as sent, with or without a query)."""
    return _NOT_NORMAL.search(without_query(path)) is None


def normalize(path: str, options: Normalization) -> str:
    """What rules see of a `:path` as sent. One pass, like the proxy's: what it uncovers is not looked at again."""
    if "#" in path:
        raise Rejected("a path with a fragment")
    path = without_query(path)
    unescaped = path
    if options.escaped_slashes is not EscapedSlashes.KEEP:
        unescaped = _ESCAPED_SLASH.sub(lambda found: "/" if found[1][0] == "2" else "\\", path)
        if unescaped != path and options.escaped_slashes is EscapedSlashes.REJECT:
            raise Rejected("a path with an encoded slash")
    seen = _canonical(unescaped) if options.normalize_path else unescaped
    if options.merge_slashes:
        seen = _SLASHES.sub("/", seen)
    if unescaped != path and options.escaped_slashes is EscapedSlashes.REDIRECT:
        raise Redirected(seen)
    return seen


def _canonical(path: str) -> str:
    if "%00" in path or "\x00" in path:
        raise Rejected("a path with NUL")
    segments = path.replace("\\", "/").split("/")[1:]
    kept: list[str] = []
    for number, segment in enumerate(segments):
        # Encoded dots are dots here; a semicolon ends the name of a segment only where the dots were not encoded.
        name = _ESCAPED.sub(_decoded, segment)
        dots = name if name in (".", "..") else segment.partition(";")[0]
        if dots not in (".", ".."):
            kept.append(_TO_ENCODE.sub(_encoded, name))
            continue
        if dots == ".." and kept:
            kept.pop()
        if number == len(segments) - 1:
            kept.append("")
    return "/" + "/".join(kept)


def _decoded(found: re.Match[str]) -> str:
    character = chr(int(found[1], 16))
    return character if character in _UNRESERVED else found[0]


def _encoded(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogateescape"))
