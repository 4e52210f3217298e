"""What is wrong with a text that should be policies: every refusal has a code, a place and a hint.

The table is in the language reference, with a test for each row. Codes from P100 on are of Istio's own validation, or
of the schema its objects are installed with, unless marked as ours there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from policy.model import Origin

MAX_PROBLEMS = 100

CODES: dict[str, str] = {
    "P001": "not UTF-8, not YAML and not JSON",
    "P002": "too large: bytes, depth, number or length of values",
    "P003": "an anchor, an alias or a tag",
    "P004": "a key twice in one mapping",
    "P005": "a value of the wrong type",
    "P006": "a field that is not known",
    "P007": "an object of a kind that is not known",
    "P008": "a name or namespace that is missing or none",
    "P009": "two objects of one kind with the same namespace and name",
    "P101": "an action that is not known",
    "P102": "DENY or CUSTOM without rules, which would never match",
    "P103": "CUSTOM without the name of a provider",
    "P104": "a provider where the action is not CUSTOM",
    "P105": "more than one of `selector`, `targetRef` and `targetRefs`",
    "P106": "an empty key or an asterisk in a selector",
    "P107": "a reference without name, with a namespace, or to a kind that policies cannot be for",
    "P108": "more rules, references or accounts than there may be",
    "P109": "a rule, source or operation that is null",
    "P110": "`from` or `to` that is empty: leave it out for anything",
    "P111": "a source without any field",
    "P112": "an operation without any field",
    "P113": "an empty value",
    "P114": "not an address or a network",
    "P115": "not a port",
    "P116": "a path template that Istio does not support",
    "P117": "a path template that a proxy would refuse",
    "P118": "`serviceAccounts` beside `principals` or `namespaces`",
    "P119": "not a service account",
    "P120": "a field that cannot be decided before a provider is asked",
    "P121": "a condition without key",
    "P122": "a condition on an attribute that is not known",
    "P123": "a key that must have the form `a[b]`",
    "P124": "an attribute that policies no longer have",
    "P125": "a condition without `values` and `notValues`",
    "P126": "lists and plain texts of another filter's metadata in one condition",
    "P127": "a header by a name that no header has",
    "P131": "not a SPIFFE ID, or one that a selector beside it would contradict",
    "P132": "a CEL condition that is none",
    "P201": "a JWT rule with neither `issuer` nor `jwksUri`",
    "P202": "an empty audience",
    "P203": "a `jwksUri` that is no HTTP URL",
    "P204": "a `jwksUri` at a host that is not on the list",
    "P205": "`jwks` that is no key set",
    "P206": "a place for tokens without a name",
    "P207": "a claim that is copied without both of its names, or to a name that is no header's",
    "P208": "a timeout that is no duration of at least a millisecond",
    "P301": "a mode that is not known",
    "P302": "modes of ports without a selector",
    "P303": "not a port of a workload",
    "P304": "a mode that turns mutual TLS off",
}

HINTS: dict[str, str] = {
    "P001": "write YAML or JSON, in UTF-8",
    "P002": "write several objects, or several files",
    "P003": "write the value out",
    "P004": "keep one of the two",
    "P005": "the language reference has an example of every field",
    "P006": "leave it out; the language reference has every field",
    "P007": "AuthorizationPolicy, RequestAuthentication, PeerAuthentication or Workload",
    "P008": "lower-case letters, digits and `-`",
    "P009": "give one of the two another name",
    "P101": "ALLOW, DENY, AUDIT or CUSTOM",
    "P102": "write `rules: [{}]` for everything",
    "P103": "`provider: {name: …}`",
    "P104": "set `action: CUSTOM`, or leave it out",
    "P105": "keep one of them, or write two policies",
    "P106": "labels are compared as they are",
    "P107": "for example `{kind: Service, name: orders}`",
    "P108": "write several policies",
    "P109": "leave it out, or say what it is",
    "P110": "leave it out, and anything matches",
    "P111": "write `source: {…}`, or leave `from` out for anybody",
    "P112": "write `operation: {…}`, or leave `to` out for anything",
    "P113": "leave it out, or write `*` for anything",
    "P114": "write `10.0.0.1` or `10.0.0.0/8`",
    "P115": "ports are texts from `0` to `65535`",
    "P116": "`{*}` is one segment, `{**}` any number of them",
    "P117": "a proxy would refuse its whole configuration",
    "P118": "write two sources",
    "P119": "write `account` or `namespace/account`",
    "P120": "let the provider look at it",
    "P121": "for example `key: source.ip`",
    "P122": "the language reference has every attribute",
    "P123": "for example `request.headers[name]`",
    "P124": "a policy's own scope says that",
    "P125": 'write `values: ["…"]`',
    "P126": "write two conditions",
    "P127": "for example `request.headers[x-team]`, or `:path` for the path with its query",
    "P131": "for example `spiffe://example.org/ns/shop/sa/orders`, and nothing else that selects",
    "P132": "a CEL expression of type bool",
    "P201": "`issuer: https://…` is who signs the tokens, without control characters",
    "P202": "leave it out, and the audience is not looked at",
    "P203": "for example `https://issuer.example/keys`",
    "P204": "`policy.jwks_hosts` of the server lists the hosts",
    "P205": 'it starts with `{"keys": [`',
    "P206": "leave it out, or say what it is called",
    "P207": "`{claim: sub, header: x-subject}`",
    "P208": "for example `5s`",
    "P301": "STRICT, PERMISSIVE or UNSET",
    "P302": "write `selector: {matchLabels: {…}}`",
    "P303": "ports are from 1 to 65535",
    "P304": "PERMISSIVE lets plain text in besides",
}
"""What may help where whoever refuses knows nothing better."""

WARNINGS: dict[str, str] = {
    "W001": "a selector without labels, which is everything in the namespace",
    "W002": "a DENY rule of HTTP fields alone, which denies every connection that is not HTTP",
    "W003": "a principal with `spiffe://`, which no caller ever has",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `pointer` is a JSON pointer into the object (RFC 6901)."""

    code: str
    message: str
    origin: Origin
    pointer: str = ""
    hint: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "hint", self.hint or HINTS.get(self.code, ""))

    def __str__(self) -> str:
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.origin}: {self.code} {self.message}{hint}"


class Refused(ValueError):
    """A text that is refused as a whole, with everything that was found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems[:MAX_PROBLEMS])
        super().__init__("\n".join(map(str, self.problems)))


def shown(text: str, most: int = 80) -> str:
    """What somebody wrote, in backticks and not too long."""
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:most])
    return f"`{clean}{'…' if len(text) > most else ''}`"
