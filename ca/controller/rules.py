"""ClusterSPIFFEIDs and ClusterStaticEntries as values that can only be applied: what is wrong is said at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from ca.controller.labels import LabelSelector
from ca.controller.templates import Template
from ca.controller.values import Resource
from ca.errors import BurgeeError, InvalidArgument
from ca.identity.entry import MAX_TTL_SECONDS, RegistrationEntry
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.identity.text import quote

_DURATION = re.compile(r"(?:(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h))+")
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_SECONDS = {
    "h": Decimal(3600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("1e-3"),
    "us": Decimal("1e-6"),
    "ns": Decimal("1e-9"),
}
MAX_ITEMS = 100
"""Templates, selectors and federated trust domains of one object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What becomes part of entries as it stands."""

    x509_svid_ttl_seconds: int = 0
    jwt_svid_ttl_seconds: int = 0
    federates_with: tuple[TrustDomain, ...] = ()
    admin: bool = False
    downstream: bool = False
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A ClusterSPIFFEID. With a `problem` it is not applied, and what it led to before stays."""

    resource: Resource
    problem: BurgeeError | None = None
    spiffe_id: Template | None = None
    dns_names: tuple[Template, ...] = ()
    selectors: tuple[Template, ...] = ()
    pods: LabelSelector = field(default=LabelSelector())
    namespaces: LabelSelector = field(default=LabelSelector())
    service_names: bool = False
    node_spec: bool = False
    fallback: bool = False
    common: Common = field(default=Common())

    @property
    def uid(self) -> str:
        return self.resource.uid


def read_rule(resource: Resource) -> Rule:
    """Never raises: what is wrong is the rule's `problem`."""
    spec = resource.spec
    fallback = spec.get("fallback") is True
    try:
        spiffe_id = Template.parse(spec.get("spiffeIDTemplate"), "spiffeIDTemplate", path=True)
        dns_names = _templates(spec, "dnsNameTemplates")
        selectors = _templates(spec, "workloadSelectorTemplates")
        return Rule(
            resource=resource,
            spiffe_id=spiffe_id,
            dns_names=dns_names,
            selectors=selectors,
            node_spec=any(one.wants_node_spec for one in (spiffe_id, *dns_names, *selectors)),
            pods=LabelSelector.parse(spec.get("podSelector"), "podSelector"),
            namespaces=LabelSelector.parse(spec.get("namespaceSelector"), "namespaceSelector"),
            service_names=_flag(spec, "autoPopulateDNSNames"),
            fallback=_flag(spec, "fallback"),
            common=_common(spec, x509="ttl", jwt="jwtTtl"),
        )
    except BurgeeError as error:
        return Rule(resource=resource, problem=error, fallback=fallback)


def read_static(resource: Resource, entry_id: str) -> RegistrationEntry:
    """The entry of a ClusterStaticEntry, yet to be validated. Raises InvalidArgument."""
    spec = resource.spec
    common = _common(spec, x509="x509SVIDTTL", jwt="jwtSVIDTTL")
    return RegistrationEntry(
        id=entry_id,
        spiffe_id=_named("spiffeID", lambda: SpiffeId.parse(_text(spec, "spiffeID"))),
        parent_id=_named("parentID", lambda: SpiffeId.parse(_text(spec, "parentID"))),
        selectors=frozenset(_named("selectors", lambda: [Selector.parse(one) for one in _texts(spec, "selectors")])),
        dns_names=tuple(sorted(_texts(spec, "dnsNames"))),
        store_svid=_flag(spec, "storeSVID"),
        **{name: getattr(common, name) for name in Common.__slots__},
    )


def parse_go_duration(text: str) -> int:
    """Whole seconds of what Go's `time.ParseDuration` reads. Raises ValueError."""
    if text == "0":
        return 0
    if len(text) > 64 or _DURATION.fullmatch(text) is None:
        raise ValueError(f"{quote(text)} is no duration such as `1h30m`")
    parts = [(Decimal(number), unit.replace("µ", "u").replace("μ", "u")) for number, unit in _PART.findall(text)]
    return int(sum((number * _SECONDS[unit] for number, unit in parts), Decimal(0)))


def _common(spec: Mapping[str, Any], *, x509: str, jwt: str) -> Common:
    domains = _texts(spec, "federatesWith")
    return Common(
        x509_svid_ttl_seconds=_duration(spec, x509),
        jwt_svid_ttl_seconds=_duration(spec, jwt),
        federates_with=tuple(sorted(_named("federatesWith", lambda: {TrustDomain.parse(one) for one in domains}))),
        admin=_flag(spec, "admin"),
        downstream=_flag(spec, "downstream"),
        hint=_text(spec, "hint"),
    )


def _templates(spec: Mapping[str, Any], name: str) -> tuple[Template, ...]:
    return tuple(Template.parse(text, f"{name}[{place}]") for place, text in enumerate(_texts(spec, name)))


def _duration(spec: Mapping[str, Any], name: str) -> int:
    text = _text(spec, name)
    try:
        seconds = parse_go_duration(text) if text else 0
    except ValueError as error:
        raise _wrong(name, str(error)) from error
    if seconds > MAX_TTL_SECONDS:
        raise _wrong(name, f"{quote(text)} is too long")
    return seconds


def _flag(spec: Mapping[str, Any], name: str) -> bool:
    found = spec.get(name, False)
    if not isinstance(found, bool):
        raise _wrong(name, "is neither true nor false")
    return found


def _text(spec: Mapping[str, Any], name: str) -> str:
    found = spec.get(name, "")
    if not isinstance(found, str):
        raise _wrong(name, "is no text")
    return found


def _texts(spec: Mapping[str, Any], name: str) -> list[str]:
    found = spec.get(name) or []
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise _wrong(name, "is no list of texts")
    if len(found) > MAX_ITEMS:
        raise _wrong(name, f"has more than {MAX_ITEMS} items")
    return found


def _named(name: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except InvalidArgument as error:
        raise InvalidArgument(f"`{name}`: {error.detail}", reason=error.reason, hint=error.hint) from error


def _wrong(name: str, what: str) -> InvalidArgument:
    return InvalidArgument(f"`{name}`: {what}", reason="RESOURCE_INVALID")
