"""Texts of a policy as matches: what each field and each condition's key means."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

from policy.attributes import LISTS
from policy.fields import Place
from policy.model import PATH_HEADER, Attribute, Clause, Match, MatchKind
from policy.problems import shown
from policy.templates import Template, is_template, unsupported

Convert = Callable[[Place, str], Match | None]
MAX_ACCOUNT = 320


def starred(text: str, anything: MatchKind) -> Match:
    """Exact, prefix, suffix or anything. An asterisk in front is looked at first: `*a*` ends with `a*`."""
    if text == "*":
        return Match(anything)
    if text.startswith("*"):
        return Match(MatchKind.SUFFIX, text[1:])
    return Match(MatchKind.PREFIX, text[:-1]) if text.endswith("*") else Match(MatchKind.EXACT, text)


def text(_: Place, value: str) -> Match:
    """Anything but addresses, hosts, headers, methods and paths."""
    return starred(value, MatchKind.NON_EMPTY)


def header(_: Place, value: str) -> Match:
    """Headers, hosts and methods: `*` is mere presence."""
    return starred(value, MatchKind.PRESENT)


def principal(place: Place, value: str) -> Match:
    """A SPIFFE ID without its scheme."""
    if value.startswith("spiffe://"):
        place.warn("W003", f"{shown(value)} matches no caller", "write principals without `spiffe://`")
    return starred(value, MatchKind.NON_EMPTY)


def path(place: Place, value: str) -> Match | None:
    """A path or a template."""
    if reason := unsupported(value):
        place.refuse("P116", f"{shown(value)} is not supported: {reason}")
        return None
    if not is_template(value):
        return starred(value, MatchKind.NON_EMPTY)
    try:
        Template(value)
    except ValueError as error:
        place.refuse("P117", f"{shown(value)}: {error}", "a proxy would refuse its whole configuration")
        return None
    return Match(MatchKind.TEMPLATE, value)


def namespace(_: Place, value: str) -> Match:
    """A namespace, with asterisks anywhere."""
    return Match(MatchKind.NAMESPACE, value)


def trust_domain(_: Place, value: str) -> Match:
    """A trust domain, with asterisks anywhere."""
    return Match(MatchKind.TRUST_DOMAIN, value)


def request_principal(_: Place, value: str) -> Match:
    """`issuer/subject`."""
    return Match(MatchKind.REQUEST_PRINCIPAL, value)


def account(own_namespace: str) -> Convert:
    """`account` of the policy's own namespace, or `namespace/account`."""

    def convert(place: Place, value: str) -> Match | None:
        if "*" in value or value.count("/") > 1 or len(value) > MAX_ACCOUNT or value.strip("/") != value:
            place.refuse("P119", f"{shown(value)} is no service account", "write `account` or `namespace/account`")
            return None
        return Match(MatchKind.SERVICE_ACCOUNT, value if "/" in value else f"{own_namespace}/{value}")

    return convert


def network(place: Place, value: str) -> Match | None:
    """An address or a network in CIDR notation."""
    _, slash, length = value.partition("/")
    bad_length = slash and not re.fullmatch("0|[1-9][0-9]{0,2}", length)
    try:
        if bad_length or "%" in value:
            raise ValueError
        return Match(MatchKind.NETWORK, value, ipaddress.ip_network(value, strict=False))
    except ValueError:
        place.refuse("P114", f"{shown(value)} is neither an address nor a network", "write `10.0.0.1` or `10.0.0.0/8`")
        return None


def port(place: Place, value: str) -> Match | None:
    """A number up to 65535."""
    if not re.fullmatch("[0-9]{1,9}", value) or int(value) > 65535:
        place.refuse("P115", f"{shown(value)} is no port", "ports are texts from `0` to `65535`")
        return None
    return Match(MatchKind.EXACT, str(int(value)))


def listed(_: Place, value: str) -> Match:
    """`[value]` means a list that has it."""
    return starred(value.strip("[]"), MatchKind.NON_EMPTY)


SOURCE: dict[str, tuple[Attribute, Convert | None]] = {
    "principals": (Attribute.SOURCE_PRINCIPAL, principal),
    "requestPrincipals": (Attribute.REQUEST_PRINCIPAL, request_principal),
    "namespaces": (Attribute.SOURCE_NAMESPACE, namespace),
    "serviceAccounts": (Attribute.SOURCE_SERVICE_ACCOUNT, None),
    "trustDomains": (Attribute.SOURCE_TRUST_DOMAIN, trust_domain),
    "ipBlocks": (Attribute.SOURCE_IP, network),
    "remoteIpBlocks": (Attribute.REMOTE_IP, network),
}
OPERATION: dict[str, tuple[Attribute, Convert | None]] = {
    "hosts": (Attribute.HOST, header),
    "ports": (Attribute.DESTINATION_PORT, port),
    "methods": (Attribute.METHOD, header),
    "paths": (Attribute.PATH, path),
}
"""Each has a twin whose name starts with `not`."""

KEYS: dict[str, tuple[Attribute, Convert | None]] = {
    "source.ip": (Attribute.SOURCE_IP, network),
    "remote.ip": (Attribute.REMOTE_IP, network),
    "source.namespace": (Attribute.SOURCE_NAMESPACE, namespace),
    "source.serviceAccount": (Attribute.SOURCE_SERVICE_ACCOUNT, None),
    "source.principal": (Attribute.SOURCE_PRINCIPAL, principal),
    "source.trustDomain": (Attribute.SOURCE_TRUST_DOMAIN, trust_domain),
    "request.auth.principal": (Attribute.REQUEST_PRINCIPAL, request_principal),
    "request.auth.audiences": (Attribute.REQUEST_AUDIENCES, text),
    "request.auth.presenter": (Attribute.REQUEST_PRESENTER, text),
    "destination.ip": (Attribute.DESTINATION_IP, network),
    "destination.port": (Attribute.DESTINATION_PORT, port),
    "connection.sni": (Attribute.SNI, text),
}
GONE = {
    "destination.namespace": "a policy's own namespace says that",
    "destination.labels": "`selector` says that",
    "destination.name": "`selector` says that",
    "destination.user": "`selector` says that",
}
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PSEUDO_HEADERS = (":authority", ":method", PATH_HEADER, ":scheme")
"""RFC 9113 §8.3.1: what Envoy keeps among a request's headers."""
_HEADERS, _CLAIMS, _FILTERS = "request.headers", "request.auth.claims", "experimental.envoy.filters."


def negation(name: str) -> str:
    """`notPaths` for `paths`."""
    return f"not{name[0].upper()}{name[1:]}"


def key_of(place: Place, key: str, values: list[str]) -> tuple[Attribute, tuple[str, ...], Convert | None] | None:
    """What a condition's key looks at, with the key of a header, a claim or another filter's metadata."""
    if key in KEYS:
        attribute, convert = KEYS[key]
        return attribute, (), convert
    if (gone := key.partition("[")[0]) in GONE:
        place.refuse("P124", f"{shown(key)} is no longer there", GONE[gone])
        return None
    for start in (_HEADERS, _CLAIMS, _FILTERS):
        if key.startswith(start):
            return _bracketed(place, key, start, values)
    place.refuse("P122", f"the attribute {shown(key)} is not known", f"known are {', '.join([*KEYS, _HEADERS])}, …")
    return None


def _bracketed(
    place: Place, key: str, start: str, values: list[str]
) -> tuple[Attribute, tuple[str, ...], Convert | None] | None:
    name, _, rest = key.partition("[")
    steps = rest[:-1].split("][")
    well = key.endswith("]") and all(step and not set(step) & {"[", "]"} for step in steps)
    if not well or (start != _FILTERS and name != start) or (start != _CLAIMS and len(steps) > 1):
        place.refuse("P123", f"{shown(key)} must have the form `a[b]`", f"for example `{start}[name]`")
        return None
    if start == _CLAIMS:
        return Attribute.CLAIM, tuple(steps), text
    if start == _HEADERS:
        return _header_key(place, steps[0].lower())
    lists = [value.startswith("[") and value.endswith("]") for value in values]
    if any(lists) != all(lists):
        place.refuse(
            "P126", "either all values are `[lists]` or none", "write a condition for each in rules of its own"
        )
        return None
    filter_name = name.removeprefix("experimental.")
    if any(lists):
        return Attribute.METADATA, (filter_name, steps[0], LISTS), listed
    return Attribute.METADATA, (filter_name, steps[0]), text


def _header_key(place: Place, name: str) -> tuple[Attribute, tuple[str, ...], Convert | None] | None:
    if name not in _PSEUDO_HEADERS and not _HEADER_NAME.fullmatch(name):
        place.refuse("P127", f"{shown(name)} is no header's name", f"letters, digits, or {', '.join(_PSEUDO_HEADERS)}")
        return None
    return Attribute.HEADER, (name,), header


def clause(
    place: Place, attribute: Attribute, key: tuple[str, ...], convert: Convert, *, negated: bool, origin: str
) -> Clause | None:
    """A field's texts as one clause; None where there are none."""
    matches = tuple(match for item, value in place.texts() if (match := convert(item, value)) is not None)
    if not matches:
        return None
    return Clause(attribute=attribute, key=key, matches=matches, negated=negated, origin=origin)
