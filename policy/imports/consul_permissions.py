"""Permissions of an intention: what of HTTP they are for, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from policy.fields import Place
from policy.imports.logic import (
    TRUE,
    All,
    Any_,
    Atom,
    Expression,
    Not,
    contains,
    exact,
    header_exists,
    header_subject,
    matches,
    prefix,
    quoted,
    suffix,
)
from policy.imports.losses import Imported

_PATHS = ("pathExact", "pathPrefix", "pathRegex")
_HEADERS = ("exact", "prefix", "suffix", "contains", "regex")


@dataclass(frozen=True, slots=True)
class Permission:
    """What one is for, and whether it allows it."""

    allow: bool
    what: Expression


def read_permissions(place: Place, found: Imported) -> tuple[Permission, ...]:
    """In their order; notes what is wrong and states what is lost."""
    return tuple(_permission(item, found) for item in place.items())


def allowed_by(permissions: Sequence[Permission], *, default: bool) -> Expression:
    """What a list allows: the first that is for a request decides, and Consul's own policy where none is."""
    ways: list[Expression] = []
    before: list[Expression] = []
    for permission in permissions:
        if permission.allow:
            ways.append(All((permission.what, *map(Not, before))))
        before.append(permission.what)
    if default:
        ways.append(All(tuple(map(Not, before))))
    return Any_(tuple(ways))


def _permission(place: Place, found: Imported) -> Permission:
    fields = place.fields(("action", "http", "jwt"))
    action = (fields["action"].text() or "").lower() if "action" in fields else ""
    if action not in ("allow", "deny"):
        place.refuse("P101", "a permission has an `action` that is `allow` or `deny`")
    what = _http(fields["http"]) if "http" in fields else TRUE
    if "jwt" in fields:
        found.lose("C02", fields["jwt"], f"a token beside `{action}`")
        # What such a permission is for cannot be told from what it is not for: nobody gets in by it or behind it.
        return Permission(allow=False, what=what)
    return Permission(allow=action == "allow", what=what)


def _http(place: Place) -> Expression:
    fields = place.fields((*_PATHS, "methods", "header"))
    if sum(name in fields for name in _PATHS) > 1:
        place.refuse("P105", "only one of `pathExact`, `pathPrefix` and `pathRegex` can be set")
    parts: list[Expression] = []
    subject = "request.path"
    if "pathExact" in fields:
        parts.append(exact("paths", subject, fields["pathExact"].filled() or ""))
    if "pathPrefix" in fields:
        parts.append(prefix("paths", subject, fields["pathPrefix"].filled() or ""))
    if "pathRegex" in fields:
        parts.append(matches(subject, fields["pathRegex"].filled() or ""))
    if "methods" in fields and (methods := tuple(text for _, text in fields["methods"].texts())):
        parts.append(Atom("methods", methods, f"request.method in [{', '.join(map(quoted, methods))}]"))
    if "header" in fields:
        parts += [_header(item) for item in fields["header"].items()]
    return All(tuple(parts))


def _header(place: Place) -> Expression:
    fields = place.fields(("name", "present", "invert", "ignoreCase", *_HEADERS))
    name = (fields["name"].filled() or "").lower() if "name" in fields else ""
    kinds = [kind for kind in _HEADERS if kind in fields]
    present = "present" in fields and fields["present"].boolean()
    if not name or len(kinds) + present != 1:
        place.refuse(
            "P105", "a header has a name and one of `present`, `exact`, `prefix`, `suffix`, `contains`, `regex`"
        )
        return TRUE
    there = Atom(f"request.headers[{name}]", ("*",), header_exists(name))
    found: Expression = there
    if kinds:
        text = fields[kinds[0]].filled() or ""
        ignore = "ignoreCase" in fields and fields["ignoreCase"].boolean()
        found = _value(kinds[0], name, text, there, ignore=ignore)
    return Not(found) if "invert" in fields and fields["invert"].boolean() else found


def _value(kind: str, name: str, text: str, there: Atom, *, ignore: bool) -> Expression:
    subject = header_subject(name)
    key = f"request.headers[{name}]"
    if kind == "regex":
        return All((there, matches(subject, text)))
    if ignore:
        return All((there, matches(subject, _ignoring(kind, text))))
    if kind == "contains":
        return All((there, contains(subject, text)))
    return {"exact": exact, "prefix": prefix, "suffix": suffix}[kind](key, subject, text)


def _ignoring(kind: str, text: str) -> str:
    """A regular expression without regard to case; characters that mean something there are written as numbers."""
    literal = "".join(c if c.isalnum() and c.isascii() else f"\\x{{{ord(c):x}}}" for c in text)
    before, after = (
        ("" if kind in ("exact", "prefix") else "(?s:.*)"),
        ("" if kind in ("exact", "suffix") else "(?s:.*)"),
    )
    return f"{before}(?i:{literal}){after}"
