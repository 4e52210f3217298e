"""SPIFFE IDs, selectors and times on the wire."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache

from ca.errors import InvalidArgument
from ca.identity.exchange import is_parent_path
from ca.identity.selector import Selector
from ca.identity.spiffe_id import AGENT_PREFIX, SpiffeId, TrustDomain, is_reserved
from ca.proto.spire import types_pb2


@lru_cache(maxsize=1024)
def trust_domain(text: str) -> TrustDomain:
    """A bare name or `spiffe://name`. A bare name in upper case is refused, as SPIRE refuses it."""
    return TrustDomain.parse(text) if "://" in text else TrustDomain(text)


def spiffe_id(message: types_pb2.SPIFFEID | None) -> SpiffeId:
    """Any SPIFFE ID; None (or an empty message) is refused."""
    if message is None or (not message.trust_domain and not message.path):
        raise InvalidArgument("request must specify SPIFFE ID", reason="SPIFFE_ID")
    return SpiffeId.of(trust_domain(message.trust_domain), message.path)


def member_id(message: types_pb2.SPIFFEID | None, own: TrustDomain) -> SpiffeId:
    """A SPIFFE ID of our own trust domain."""
    value = spiffe_id(message)
    if value.trust_domain != own:
        raise InvalidArgument(f"`{value}` is not a member of trust domain `{own}`", reason="TRUST_DOMAIN")
    return value


def workload_id(message: types_pb2.SPIFFEID | None, own: TrustDomain) -> SpiffeId:
    """A SPIFFE ID that a workload may bear: our own trust domain, a path, outside the reserved namespace."""
    return check_workload_id(spiffe_id(message), own)


def check_workload_id(value: SpiffeId, own: TrustDomain) -> SpiffeId:
    if value.trust_domain != own:
        raise InvalidArgument(f"`{value}` is not a member of trust domain `{own}`", reason="TRUST_DOMAIN")
    if not value.path:
        raise InvalidArgument(f"`{value}` is not a workload in trust domain `{own}`; path is empty", reason="SPIFFE_ID")
    if is_reserved(value.path) or is_parent_path(value.path):
        raise InvalidArgument(
            f"`{value}` is not a workload in trust domain `{own}`; path is in the reserved namespace",
            reason="SPIFFE_ID_RESERVED",
            hint="paths that begin with /spire belong to servers and agents, below /burgee/oidc to exchanges",
        )
    return value


def agent_id(message: types_pb2.SPIFFEID | None, own: TrustDomain) -> SpiffeId:
    """A SPIFFE ID in the agents' namespace of our own trust domain."""
    value = member_id(message, own)
    if not value.path.startswith(AGENT_PREFIX):
        raise InvalidArgument(
            f"`{value}` is not an agent in trust domain `{own}`; path is not in the agent namespace",
            reason="SPIFFE_ID",
        )
    return value


def id_message(value: SpiffeId) -> types_pb2.SPIFFEID:
    return types_pb2.SPIFFEID(trust_domain=value.trust_domain.name, path=value.path)


def selectors(messages: Iterable[types_pb2.Selector]) -> list[Selector]:
    """In the order given, duplicates kept: whether those are an error is for the caller to say."""
    return [Selector(message.type, message.value) for message in messages]


def selector_messages(values: Iterable[Selector]) -> list[types_pb2.Selector]:
    """Sorted, so that equal sets look equal."""
    return [types_pb2.Selector(type=value.type, value=value.value) for value in sorted(values)]


def instant(seconds: int) -> datetime | None:
    """Unix seconds; 0 means none."""
    if seconds == 0:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        raise InvalidArgument(f"time `{seconds}` is out of range", reason="TIME") from None


@lru_cache(maxsize=256)
def seconds(value: datetime | None) -> int:
    """Unix seconds; none is 0. Remembered, since a batch shares its times."""
    return 0 if value is None else int(value.timestamp())
