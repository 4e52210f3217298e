"""How texts of requests are compared in Envoy's matching tree, where an input is more than the attribute it stands for.

`:path` has the query, a certificate's URI SAN has its scheme. Expressions are RE2, which takes linear time; `\\C` is
any byte, also one that is no UTF-8: a dot would not match it, and what does not match is not denied.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from policy.model import Attribute, Match, MatchKind
from policy.templates import MANY, ONE, Template

SCHEME = "spiffe://"
LONGEST = 1000
"""Bytes of an expression. RE2 would take more, but what is this long is not checked for each request."""

How = Literal["exact", "prefix", "suffix", "contains", "regex"]


class Inexpressible(Exception):
    """Envoy's tree cannot say this; the text says why."""


class Test(NamedTuple):
    """What a text must be."""

    how: How
    text: str
    fold: bool = False
    """Without regard to case, of ASCII alone."""


_PATH = "[!->@-~]"
"""A character of a path, of which a question mark is none."""
_END = r"(?:\?\C*)?"
_SEGMENT = r"[a-zA-Z0-9\-._~%!$&'()*+,;=:@]"
_SEGMENTS = r"[a-zA-Z0-9\-._~%!$&'()*+,;=:@/]"
_DOMAIN = "[!-.0-~]"

PATH_NOT_NORMAL = (
    rf"{_PATH}*(?:(?://|[\\\x00]|"
    r"%(?:2[dDeEfF]|3[0-9]|4[1-9a-fA-F]|5[0-9aAcCfF]|6[1-9a-fA-F]|7[0-9aAeE]|00))\C*"
    r"|/\.\.?(?:[;/?]\C*)?)"
)
"""`policy.paths.is_normal` for what Envoy sees: with the query."""
PATH_PLAIN = rf"(?:/[a-zA-Z0-9_~!$&'()*+,;=:@-][a-zA-Z0-9._~!$&'()*+,;=:@-]*)*/?{_END}"
"""Most paths, which are normal beyond doubt: nothing more is asked about them."""
PATH_ASCII = rf"{_PATH}*{_END}"
"""Anything else in a path would be encoded by a proxy that normalizes."""


def quoted(text: str) -> str:
    """A text as a regular expression that matches nothing else."""
    return "".join(c if c.isalnum() or not c.isascii() else f"\\x{{{ord(c):x}}}" for c in text)


def _regex(text: str) -> Test:
    if len(text.encode()) > LONGEST:
        raise Inexpressible("the expression for it would be too long for a proxy")
    return Test("regex", text)


def _glob(pattern: str, anything: str) -> str:
    return anything.join(quoted(part) for part in pattern.split("*"))


def tests_of(attribute: Attribute, match: Match) -> tuple[Test, ...]:
    """The alternatives that a value of Envoy's input must be one of; none where it cannot be any."""
    match attribute:
        case Attribute.PATH:
            return _path(match)
        case Attribute.HOST:
            return tuple(test._replace(fold=True) for test in _plain(match))
    return _principal(match) if attribute in PRINCIPAL else _plain(match)


PRINCIPAL = frozenset(
    {
        Attribute.SOURCE_PRINCIPAL,
        Attribute.SOURCE_NAMESPACE,
        Attribute.SOURCE_SERVICE_ACCOUNT,
        Attribute.SOURCE_TRUST_DOMAIN,
    }
)


def _plain(match: Match) -> tuple[Test, ...]:
    match match.kind:
        case MatchKind.EXACT:
            return (Test("exact", match.text),)
        case MatchKind.PREFIX if match.text:
            return (Test("prefix", match.text),)
        case MatchKind.SUFFIX if match.text:
            return (Test("suffix", match.text),)
        case MatchKind.PRESENT | MatchKind.PREFIX | MatchKind.SUFFIX:
            return (Test("regex", r"\C*"),)
        case MatchKind.NON_EMPTY:
            return (Test("regex", r"[^\n]\C*"),)
    raise Inexpressible(f"a {match.kind} is not compared with such an attribute")


def _path(match: Match) -> tuple[Test, ...]:
    if "?" in match.text or "#" in match.text:
        return ()  # no path has them: a query begins there
    text = match.text
    match match.kind:
        case MatchKind.EXACT:
            return Test("exact", text), Test("prefix", f"{text}?")
        case MatchKind.PREFIX if text:
            return (Test("prefix", text),)
        case MatchKind.SUFFIX:
            return (_regex(rf"{_PATH}*{quoted(text)}{_END}"),)
        case MatchKind.NON_EMPTY:
            return (_regex(rf"{_PATH}\C*"),)
        case MatchKind.PRESENT | MatchKind.PREFIX:
            return (_regex(r"\C*"),)
        case MatchKind.TEMPLATE:
            return (_regex(_template(Template(text)) + _END),)
    raise Inexpressible(f"a {match.kind} is not compared with paths")


def _template(template: Template) -> str:
    head = [f"{_SEGMENT}+" if segment is None else quoted(segment) for segment in template.head]
    text = "".join(f"/{segment}" for segment in head)
    if template.many:
        text += f"/{_SEGMENTS}*"
    return text + "".join(f"/{quoted(segment)}" for segment in template.tail)


def _principal(match: Match) -> tuple[Test, ...]:
    text = match.text
    match match.kind:
        case MatchKind.EXACT:
            return (Test("exact", SCHEME + text),)
        case MatchKind.PREFIX:
            return (Test("prefix", SCHEME + text),)
        case MatchKind.NON_EMPTY | MatchKind.PRESENT:
            return (Test("prefix", SCHEME),)
        case MatchKind.SUFFIX:
            return (_regex(rf"{SCHEME}\C*{quoted(text)}"),)
        case MatchKind.NAMESPACE:
            return (_regex(rf"{SCHEME}\C*/ns/{_glob(text, chr(92) + 'C*')}/\C*"),)
        case MatchKind.SERVICE_ACCOUNT:
            namespace, _, account = text.partition("/")
            within = rf"/ns/{quoted(namespace)}/(?:\C+/)?sa/{quoted(account)}"
            return (_regex(rf"{SCHEME}\C+{within}(?:/\C+)?"),)
        case MatchKind.TRUST_DOMAIN:
            if "*" not in text:
                return (Test("prefix", f"{SCHEME}{text}/"),)
            return (_regex(rf"{SCHEME}{_glob(text, _DOMAIN + '*')}/\C*"),)
    raise Inexpressible(f"a {match.kind} is not compared with principals")


def template_prefix(text: str) -> str:
    """What every path begins with that a template stands for."""
    return text.partition(ONE)[0].partition(MANY)[0]
