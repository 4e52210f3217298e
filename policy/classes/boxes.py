"""What is still possible of a whole request: one space for each attribute that was asked about."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from policy.attributes import LISTS, SEPARATOR, SPACE_DELIMITED
from policy.classes.literals import ISSUER, METHOD, PATH, PRINCIPAL, SUBJECT, Literal, Variable, at_odds
from policy.classes.spaces import ANY_METHOD, ANY_PATH, Space
from policy.classes.texts import Work
from policy.model import Request


class Box:
    """All requests that answer some questions in one way; `request` is one of them. Never empty."""

    __slots__ = ("_defaults", "_work", "spaces")

    def __init__(
        self, defaults: dict[Variable, tuple[str, ...]], work: Work, spaces: dict[Variable, Space] | None = None
    ) -> None:
        self._defaults, self._work = defaults, work
        self.spaces = spaces or {}

    def space(self, variable: Variable) -> Space:
        """What is still possible of an attribute."""
        return self.spaces.get(variable) or Space(variable, values=self._defaults.get(variable, ()))

    def holds(self, literal: Literal) -> bool:
        """Whether a clause holds for the example."""
        space = self.spaces.get(literal.variable)
        values = space.values if space is not None else self._defaults.get(literal.variable, ())
        return literal.negated != any(map(literal.test, values))

    def with_work(self, work: Work) -> Box:
        """The same, of which what is done counts for something else."""
        return Box(self._defaults, work, self.spaces)

    @property
    def has_few(self) -> bool:
        """Whether that is so of any."""
        return any(one.texts is not None for space in self.spaces.values() for one in space.must)

    def few(self, variable: Variable) -> list[str] | None:
        """All values that one attribute may still have, where they are written out."""
        space = self.spaces.get(variable)
        return space.few() if space is not None else None

    def having(self, literal: Literal, *, holds: bool = True) -> Box | None:
        """The part in which a clause holds, or does not; None where there is none."""
        before = self.space(literal.variable)
        matched = holds != literal.negated
        after = before.with_match(literal, self._work) if matched else before.without_match(literal, self._work)
        if after is None:
            return None
        if after is before and literal.variable in self.spaces:
            return self
        spaces = {**self.spaces, literal.variable: after}
        settled = not matched or _settled(spaces, literal.variable)
        return Box(self._defaults, self._work, spaces) if settled else None

    def having_all(self, literals: Iterable[Literal]) -> Box | None:
        """The part in which all clauses hold."""
        box: Box | None = self
        for literal in literals:
            if box is None:
                return None
            box = box.having(literal)
        return box

    def conditions(self) -> tuple[str, ...]:
        """The CEL conditions whose truth was assumed."""
        return tuple(sorted({variable.name for variable in self.spaces if variable.kind == "condition"}))

    def request(self, *, http: bool) -> Request:
        """The example."""
        values = {
            **self._defaults,
            **{variable: space.values for variable, space in self.spaces.items() if variable.kind != "condition"},
        }
        return request_of({variable: some for variable, some in values.items() if some}, http=http)


def whole(trust_domain: str, work: Work) -> Box:
    """All requests. The example is of a caller that no policy is likely to name."""
    return Box({METHOD: (ANY_METHOD,), PATH: (ANY_PATH,), PRINCIPAL: (f"{trust_domain}/ns/any/sa/any",)}, work)


def _settled(spaces: dict[Variable, Space], there: Variable) -> bool:
    """Whether what is at odds with something that is there can be absent."""
    for variable, space in list(spaces.items()):
        if variable.kind != "condition" and at_odds(variable, there):
            after = space.without_any()
            if after is None:
                return False
            spaces[variable] = after
    return True


def request_of(values: dict[Variable, tuple[str, ...]], *, http: bool) -> Request:
    """A request with these values."""
    single = {v.name: some[0] for v, some in values.items() if v.name not in ("header", "claim", "metadata")}
    port = single.get("destination_port")
    return Request(
        principal=single.get("principal"),
        source_ip=single.get("source_ip"),
        remote_ip=single.get("remote_ip"),
        destination_ip=single.get("destination_ip"),
        destination_port=None if port is None else int(port),
        sni=single.get("sni"),
        http=http,
        method=single.get("method") if http else None,
        path=single.get("path") if http else None,
        host=single.get("host") if http else None,
        headers={v.key[0]: some[0] for v, some in values.items() if v.name == "header" and http},
        claims=_claims(values, single.get("request principal")) if http else None,
        metadata=_metadata(values),
    )


def _claims(values: dict[Variable, tuple[str, ...]], principal: str | None) -> dict[str, Any] | None:
    """Issuer and subject as texts are a request's principal; where there is none, one of them is a list."""
    found: dict[str, Any] = {}
    for variable, some in values.items():
        if variable.name == "claim":
            inner = found
            for step in variable.key[:-1]:
                inner = inner.setdefault(step, {})
            inner[variable.key[-1]] = list(some) if variable == ISSUER and SUBJECT in values else _claim(variable, some)
    if principal is not None:
        found["iss"], _, found["sub"] = principal.partition(SEPARATOR)
    return found or None


def _claim(variable: Variable, values: tuple[str, ...]) -> str | list[str]:
    """One text where that means the same as a list of it."""
    words = len(variable.key) == 1 and variable.key[0] in SPACE_DELIMITED
    return list(values) if len(values) > 1 or (words and (not values[0] or " " in values[0])) else values[0]


def _metadata(values: dict[Variable, tuple[str, ...]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for variable, some in values.items():
        if variable.name == "metadata":
            listed = variable.key[2:] == (LISTS,)
            found.setdefault(variable.key[0], {})[variable.key[1]] = list(some) if listed else some[0]
    return found
