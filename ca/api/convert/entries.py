"""Registration entries on the wire, with their masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from ca.api.convert.ids import (
    id_message,
    instant,
    seconds,
    selector_messages,
    selectors,
    spiffe_id,
    trust_domain,
)
from ca.api.convert.text import named
from ca.errors import AlreadyExists, InvalidArgument
from ca.identity.entry import RegistrationEntry
from ca.identity.selector import Selector
from ca.identity.spiffe_id import TrustDomain
from ca.identity.text import quote
from ca.proto.spire import types_pb2

T = TypeVar("T")

MAX_SELECTORS = 1000
"""Selectors, DNS names and federated trust domains of one entry: a bound on what one entry may cost."""


def entry_value(message: types_pb2.Entry) -> RegistrationEntry:
    """What the caller asks for. `revision_number` and `created_at` are the store's and are ignored."""
    extra = message.additional_attributes
    return RegistrationEntry(
        id=message.id,
        spiffe_id=named("invalid spiffe ID", lambda: spiffe_id(_optional(message, "spiffe_id"))),
        parent_id=named("invalid parent ID", lambda: spiffe_id(_optional(message, "parent_id"))),
        selectors=_selector_set(message),
        x509_svid_ttl_seconds=message.x509_svid_ttl,
        jwt_svid_ttl_seconds=message.jwt_svid_ttl,
        federates_with=_federates_with(message),
        admin=message.admin,
        downstream=message.downstream,
        expires_at=instant(message.expires_at),
        dns_names=_dns_names(message),
        store_svid=message.store_svid,
        hint=message.hint,
        disable_x509_svid_prefetch=extra.disable_x509_svid_prefetch,
        jwt_svid_include_jti=extra.jwt_svid_include_jti,
    )


def entry_changes(message: types_pb2.Entry, mask: types_pb2.EntryMask | None) -> dict[str, Any]:
    """The fields of RegistrationEntry to write: those in the mask, all without one (`id` and the counters never)."""
    changes: dict[str, Any] = {}
    for field, read in _READERS.items():
        if mask is None or getattr(mask, field):
            changes.update(read(message))
    return changes


def entry_message(entry: RegistrationEntry, mask: types_pb2.EntryMask | None = None) -> types_pb2.Entry:
    """The entry as seen through the mask; the id is always there. Lists are sorted."""
    if mask is None:
        return _full(entry)
    if not mask.ByteSize():
        return types_pb2.Entry(id=entry.id)
    full = _full(entry)
    for field in _MASKED:
        if not getattr(mask, field):
            full.ClearField(field)  # type: ignore[arg-type]
    return full


def _full(entry: RegistrationEntry) -> types_pb2.Entry:
    message = types_pb2.Entry(
        id=entry.id,
        spiffe_id=id_message(entry.spiffe_id),
        parent_id=id_message(entry.parent_id),
        selectors=selector_messages(entry.selectors),
        x509_svid_ttl=entry.x509_svid_ttl_seconds,
        jwt_svid_ttl=entry.jwt_svid_ttl_seconds,
        admin=entry.admin,
        downstream=entry.downstream,
        revision_number=entry.revision_number,
        store_svid=entry.store_svid,
        hint=entry.hint,
        created_at=seconds(entry.created_at),
        expires_at=seconds(entry.expires_at),
    )
    if entry.federates_with:
        message.federates_with.extend(sorted(domain.name for domain in entry.federates_with))
    if entry.dns_names:
        message.dns_names.extend(sorted(entry.dns_names))
    if entry.disable_x509_svid_prefetch or entry.jwt_svid_include_jti:
        message.additional_attributes.disable_x509_svid_prefetch = entry.disable_x509_svid_prefetch
        message.additional_attributes.jwt_svid_include_jti = entry.jwt_svid_include_jti
    return message


def optional_mask(request: Any, field: str) -> Any:
    """A mask that was not sent means every field; one that was sent empty means none."""
    return getattr(request, field) if request.HasField(field) else None


def _optional(message: types_pb2.Entry, field: str) -> types_pb2.SPIFFEID | None:
    return getattr(message, field) if message.HasField(field) else None  # type: ignore[arg-type]


def _selector_set(message: types_pb2.Entry) -> frozenset[Selector]:
    if not message.selectors:
        raise InvalidArgument("selector list is empty", reason="SELECTOR")
    _bounded(len(message.selectors), "selectors")
    return frozenset(_unique(selectors(message.selectors), "selector"))


def _federates_with(message: types_pb2.Entry) -> tuple[TrustDomain, ...]:
    _bounded(len(message.federates_with), "federated trust domains")
    domains = [
        named("invalid federated trust domain", lambda name=name: trust_domain(name))  # type: ignore[misc]
        for name in message.federates_with
    ]
    return tuple(dict.fromkeys(domains))


def _dns_names(message: types_pb2.Entry) -> tuple[str, ...]:
    _bounded(len(message.dns_names), "DNS names")
    return tuple(_unique(list(message.dns_names), "DNS name"))


def _unique(values: list[T], what: str) -> Iterable[T]:
    seen: set[T] = set()
    for value in values:
        if value in seen:
            raise AlreadyExists(f"{what} {quote(str(value))} is given twice", reason="DUPLICATE")
        seen.add(value)
    return values


def _bounded(count: int, what: str) -> None:
    if count > MAX_SELECTORS:
        raise InvalidArgument(f"{count} {what}; at most {MAX_SELECTORS} are accepted", reason="TOO_MANY")


_READERS: dict[str, Callable[[types_pb2.Entry], dict[str, Any]]] = {
    "spiffe_id": lambda m: {"spiffe_id": named("invalid spiffe ID", lambda: spiffe_id(_optional(m, "spiffe_id")))},
    "parent_id": lambda m: {"parent_id": named("invalid parent ID", lambda: spiffe_id(_optional(m, "parent_id")))},
    "selectors": lambda m: {"selectors": _selector_set(m)},
    "x509_svid_ttl": lambda m: {"x509_svid_ttl_seconds": m.x509_svid_ttl},
    "federates_with": lambda m: {"federates_with": _federates_with(m)},
    "admin": lambda m: {"admin": m.admin},
    "downstream": lambda m: {"downstream": m.downstream},
    "expires_at": lambda m: {"expires_at": instant(m.expires_at)},
    "dns_names": lambda m: {"dns_names": _dns_names(m)},
    "store_svid": lambda m: {"store_svid": m.store_svid},
    "jwt_svid_ttl": lambda m: {"jwt_svid_ttl_seconds": m.jwt_svid_ttl},
    "hint": lambda m: {"hint": m.hint},
    "additional_attributes": lambda m: {
        "disable_x509_svid_prefetch": m.additional_attributes.disable_x509_svid_prefetch,
        "jwt_svid_include_jti": m.additional_attributes.jwt_svid_include_jti,
    },
}

_MASKED = (*_READERS, "revision_number", "created_at")
