"""Clauses in words: what a request has, what was wanted, and whether that is so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from policy.attributes import READERS, SEPARATOR
from policy.globs import NAMESPACE_MARK
from policy.model import Attribute, Clause, Match, Origin, Request

MAX_WANTED = 5
MAX_TEXT = 120

_NAMES = {
    Attribute.SOURCE_PRINCIPAL: "principal",
    Attribute.SOURCE_NAMESPACE: "caller's namespace",
    Attribute.SOURCE_SERVICE_ACCOUNT: "caller's service account",
    Attribute.SOURCE_TRUST_DOMAIN: "caller's trust domain",
    Attribute.SOURCE_IP: "source address",
    Attribute.REMOTE_IP: "client's address",
    Attribute.DESTINATION_IP: "destination address",
    Attribute.DESTINATION_PORT: "port",
    Attribute.SNI: "SNI",
    Attribute.HOST: "host",
    Attribute.METHOD: "method",
    Attribute.PATH: "path",
    Attribute.HEADER: "header",
    Attribute.REQUEST_PRINCIPAL: "token's principal",
    Attribute.REQUEST_AUDIENCES: "token's audience",
    Attribute.REQUEST_PRESENTER: "token's presenter",
    Attribute.CLAIM: "token's claim",
    Attribute.METADATA: "metadata",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One condition of a rule held against a request. `have` is empty where the request has nothing of it."""

    what: str
    """The attribute, by the name that conditions use; `condition` for a CEL expression."""
    field: str
    """How the field is called in the policy."""
    have: tuple[str, ...]
    want: tuple[str, ...]
    negated: bool
    text: str

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "what": self.what,
            "field": self.field,
            "have": list(self.have),
            "want": list(self.want),
            "negated": self.negated,
            "text": self.text,
        }

    def __str__(self) -> str:
        return self.text


def clean(text: str, most: int = MAX_TEXT) -> str:
    """A text of somebody's, without what is not printable, and not too long."""
    if len(text) <= most and text.isprintable():
        return text
    plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:most])
    return f"{plain}…" if len(text) > most else plain


def name_of(clause: Clause) -> str:
    """The attribute in words: `method`, `header x-team`."""
    key = f" {'.'.join(clean(step) for step in clause.key)}" if clause.key else ""
    return f"{_NAMES[clause.attribute]}{key}"


def compared(clause: Clause, request: Request, *, holds: bool) -> Compared:
    """A clause of which it is known whether it holds."""
    have = tuple(clean(_seen(clause.attribute, value)) for value in READERS[clause.attribute](request, clause.key))
    want, list_text = wanted(clause.matches, have)
    name = name_of(clause)
    of_field = f"{clause.origin} " if clause.negated and clause.origin else ""
    within = holds != clause.negated
    words = "in" if within else "not in"
    shown = " ".join((name, ", ".join(have))) if have else f"{name} is absent,"
    return Compared(
        what="".join((clause.attribute.value, *(f"[{clean(step)}]" for step in clause.key))),
        field=clause.origin,
        have=have,
        want=want,
        negated=clause.negated,
        text=f"{shown} {words} {of_field}{list_text}",
    )


def phrase(clause: Clause) -> str:
    """What a clause asks: `header x-team in [a, b]`."""
    return f"{name_of(clause)} {'not ' if clause.negated else ''}in {wanted(clause.matches, ())[1]}"


def unmet(condition: str) -> Compared:
    """A CEL condition that did not hold."""
    text = clean(condition, 400)
    return Compared(
        what="condition",
        field="condition",
        have=(),
        want=(text,),
        negated=False,
        text=f"condition does not hold: {text}",
    )


def of_http(clause: Clause) -> Compared:
    """A clause that no connection can satisfy, since it is not HTTP."""
    name = name_of(clause)
    want, list_text = wanted(clause.matches, ())
    return Compared(
        what=clause.attribute.value,
        field=clause.origin,
        have=(),
        want=want,
        negated=clause.negated,
        text=f"the rule looks at the {name} {list_text}, which a connection that is not HTTP has not",
    )


def wanted(matches: Sequence[Match], have: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """The alternatives, and a list of the few that are most like what the request has."""
    texts = tuple(str(match) for match in matches)
    if len(texts) > MAX_WANTED and have:
        texts = tuple(sorted(texts, key=lambda text: -_alike(text, have[0])))
    few = tuple(clean(text) for text in texts[:MAX_WANTED])
    more = f", … {len(texts) - len(few)} more" if len(texts) > len(few) else ""
    return few, f"[{', '.join(few)}{more}]"


def _alike(one: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    return next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(one))


def _seen(attribute: Attribute, value: str) -> str:
    """What of a value the attribute is about."""
    match attribute:
        case Attribute.SOURCE_TRUST_DOMAIN:
            return value.partition("/")[0]
        case Attribute.SOURCE_NAMESPACE:
            return value.partition(NAMESPACE_MARK)[2].partition("/")[0] or value
        case Attribute.SOURCE_SERVICE_ACCOUNT:
            namespace, _, rest = value.partition(NAMESPACE_MARK)[2].partition("/")
            account = rest.partition("sa/")[2].partition("/")[0]
            return f"{namespace}/{account}" if account else value
    return value.replace(SEPARATOR, "/")


def place(origin: Origin) -> str:
    """`file:line`, empty where it is not known."""
    return f"{origin.source}:{origin.line}" if origin.line else origin.source
