"""Entries as the admin API carries them, in one form: two that are equal are equal bytes."""

from __future__ import annotations

from ca.identity.entry import RegistrationEntry
from ca.identity.spiffe_id import SpiffeId
from ca.proto.spire import types_pb2

POD_UID = "pod-uid:"


def message_of(entry: RegistrationEntry, entry_id: str | None = None) -> types_pb2.Entry:
    """Lists are sorted; revision and time are the server's."""
    return types_pb2.Entry(
        id=entry.id if entry_id is None else entry_id,
        spiffe_id=_id(entry.spiffe_id),
        parent_id=_id(entry.parent_id),
        selectors=[
            types_pb2.Selector(type=one.type, value=one.value)
            for one in sorted(entry.selectors, key=lambda one: (one.type, one.value))
        ],
        x509_svid_ttl=entry.x509_svid_ttl_seconds,
        jwt_svid_ttl=entry.jwt_svid_ttl_seconds,
        federates_with=sorted(domain.name for domain in entry.federates_with),
        admin=entry.admin,
        downstream=entry.downstream,
        dns_names=sorted(entry.dns_names),
        store_svid=entry.store_svid,
        hint=entry.hint,
    )


def normal(message: types_pb2.Entry) -> types_pb2.Entry:
    """What the server answered, in the form of `message_of`; changes it."""
    message.ClearField("revision_number")
    message.ClearField("created_at")
    selectors = sorted(message.selectors, key=lambda one: (one.type, one.value))
    del message.selectors[:]
    message.selectors.extend(selectors)
    for field in (message.federates_with, message.dns_names):
        values = sorted(field)
        del field[:]
        field.extend(values)
    return message


def key_of(message: types_pb2.Entry) -> bytes:
    """Equal for entries that the server calls similar: ID, parent and selectors."""
    return types_pb2.Entry(
        spiffe_id=message.spiffe_id, parent_id=message.parent_id, selectors=message.selectors
    ).SerializeToString(deterministic=True)


def pod_of(message: types_pb2.Entry) -> str:
    """The UID of the pod for which an entry is, or nothing."""
    for selector in message.selectors:
        if selector.type == "k8s" and selector.value.startswith(POD_UID):
            return selector.value[len(POD_UID) :]
    return ""


def _id(value: SpiffeId) -> types_pb2.SPIFFEID:
    return types_pb2.SPIFFEID(trust_domain=value.trust_domain.name, path=value.path)
