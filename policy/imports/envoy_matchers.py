"""Envoy's matchers of texts, headers, addresses and paths as conditions."""

from __future__ import annotations

import ipaddress

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
    suffix,
)
from policy.templates import Template

_KINDS = ("exact", "prefix", "suffix", "contains", "safe_regex")
_MAKERS = {"exact": exact, "prefix": prefix, "suffix": suffix}
_OF_HEADERS = {
    "exact_match": "exact",
    "prefix_match": "prefix",
    "suffix_match": "suffix",
    "contains_match": "contains",
    "safe_regex_match": "safe_regex",
}


def text(field: str, subject: str, place: Place, *, without: str = "") -> Expression:
    """A StringMatcher. `without` stands before what the field has, and is no part of it there."""
    fields = place.fields((*_KINDS, "ignore_case"))
    kinds = [kind for kind in _KINDS if kind in fields]
    if len(kinds) != 1:
        place.refuse("P105", "a matcher has one of `exact`, `prefix`, `suffix`, `contains` and `safe_regex`")
        return Any_()
    ignore = "ignore_case" in fields and fields["ignore_case"].boolean()
    return _text(field, subject, kinds[0], fields[kinds[0]], ignore=ignore, without=without)


def _text(field: str, subject: str, kind: str, place: Place, *, ignore: bool, without: str = "") -> Expression:
    if kind == "safe_regex":
        regex = place.fields(("regex", "google_re2")).get("regex")
        return matches(subject, (regex.filled() or "") if regex is not None else "")
    value = place.text() or ""
    if ignore:
        return matches(subject, ignoring(kind, value))
    if kind == "contains":
        return contains(subject, value)
    if without and kind in ("exact", "prefix"):
        rest = value.removeprefix(without)
        if rest:
            return _MAKERS[kind](field, subject.replace(f'"{without}" + ', ""), rest)
        return TRUE if kind == "prefix" else Any_()
    if without and len(value) > 1 and without.endswith(value[: len(without)]):
        return Atom(lost=f"the suffix `{value}`")
    return _MAKERS[kind](field, subject, value)


def ignoring(kind: str, value: str) -> str:
    """A regular expression without regard to the case of ASCII letters; other characters are written as numbers."""
    literal = "".join(
        f"[{c.lower()}{c.upper()}]"
        if c.isalpha() and c.isascii()
        else c
        if c.isdigit() and c.isascii()
        else f"\\x{{{ord(c):x}}}"
        for c in value
    )
    before = "(?s:.*)" if kind in ("suffix", "contains") else ""
    after = "(?s:.*)" if kind in ("prefix", "contains") else ""
    return f"{before}{literal}{after}"


def header(place: Place) -> Expression:
    """A HeaderMatcher. What is inverted must be there all the same, unless its absence was asked for."""
    fields = place.fields(
        (
            "name",
            "string_match",
            "present_match",
            "range_match",
            "invert_match",
            "treat_missing_header_as_empty",
            *_OF_HEADERS,
        )
    )
    name = (fields["name"].filled() or "").lower() if "name" in fields else ""
    key, subject = f"request.headers[{name}]", header_subject(name)
    there = Atom(key, ("*",), header_exists(name))
    if name == ":method":
        key, subject, there = "methods", "request.method", Atom("methods", ("*",), 'request.method != ""')
    inverted = "invert_match" in fields and fields["invert_match"].boolean()
    if "range_match" in fields or (
        "treat_missing_header_as_empty" in fields and fields["treat_missing_header_as_empty"].boolean()
    ):
        return Atom(lost=f"the way in which the header `{name}` is compared")
    kinds = [kind for kind in (*_OF_HEADERS, "string_match") if kind in fields]
    if not kinds:
        wanted = "present_match" not in fields or fields["present_match"].boolean()
        return there if wanted != inverted else Not(there)
    if kinds[0] == "string_match":
        value = text(key, subject, fields["string_match"])
    else:
        value = _text(key, subject, _OF_HEADERS[kinds[0]], fields[kinds[0]], ignore=False)
    if name.startswith(":") and name != ":method" and not _plain(value):
        return Atom(lost=f"the way in which the header `{name}` is compared")
    return All((there, Not(value) if inverted else value))


def _plain(value: Expression) -> bool:
    """Whether no CEL is in it, where headers that begin with a colon are not."""
    return isinstance(value, Atom) and bool(value.field)


def address(field: str, place: Place) -> Expression:
    """A CidrRange."""
    fields = place.fields(("address_prefix", "prefix_len"))
    start = (fields["address_prefix"].text() or "") if "address_prefix" in fields else ""
    length = fields["prefix_len"].node.value if "prefix_len" in fields else 0
    if isinstance(length, dict):
        length = getattr(length.get("value"), "value", None)
    try:
        return Atom(field, (str(ipaddress.ip_network(f"{start}/{length}", strict=False)),))
    except ValueError:
        place.refuse("P114", "neither an address nor a network")
        return Any_()


def in_range(subject: str, place: Place) -> Expression:
    """An Int32Range, whose end is no part of it."""
    fields = place.fields(("start", "end"))
    start, end = (fields[name].node.value if name in fields else 0 for name in ("start", "end"))
    if not isinstance(start, int) or not isinstance(end, int):
        place.refuse("P115", "must be a range of ports")
        return Any_()
    if 0 < end - start <= 64:
        return Atom("ports", tuple(str(port) for port in range(start, end)))
    return Atom(cel=f"{subject} >= {start} && {subject} < {end}")


def path_template(place: Place) -> Expression:
    """A template with `*` and `**`; variables are only names for what they stand for."""
    config = place.fields(("name", "typed_config")).get("typed_config")
    template = config.fields(("@type", "path_template")).get("path_template") if config is not None else None
    written = (template.text() or "") if template is not None else ""
    ours = written.replace("**", "\0").replace("*", "{*}").replace("\0", "{**}")
    try:
        if "{" in written:
            raise ValueError("a variable")
        Template(ours)
    except ValueError:
        return Atom(lost=f"the template `{written}`")
    return Atom("paths", (ours,)) if "{" in ours else exact("paths", "request.path", ours)
