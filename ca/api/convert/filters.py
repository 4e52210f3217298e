"""Filters and pages of the list and count calls."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TypeVar

from ca.api.convert.ids import member_id, selectors, trust_domain
from ca.api.convert.text import named
from ca.errors import InvalidArgument
from ca.identity.spiffe_id import TrustDomain
from ca.identity.text import quote
from ca.proto.spire import server_agent_pb2, server_entry_pb2, types_pb2
from ca.store.values import AgentFilter, EntryFilter, Match, SelectorMatch, TrustDomainMatch

T = TypeVar("T")

MAX_MEMBERS = 10_000
"""Selectors or trust domains of one filter: a bound on what one call may cost everybody else."""

_MATCHES = {0: Match.EXACT, 1: Match.SUBSET, 2: Match.SUPERSET, 3: Match.ANY}

_GO_TIME = "%Y-%m-%d %H:%M:%S %z"

EntryFilterMessage = server_entry_pb2.ListEntriesRequest.Filter | server_entry_pb2.CountEntriesRequest.Filter
AgentFilterMessage = server_agent_pb2.ListAgentsRequest.Filter | server_agent_pb2.CountAgentsRequest.Filter


def entry_filter(message: EntryFilterMessage, own: TrustDomain) -> EntryFilter:
    """Absent conditions filter nothing. Raises InvalidArgument naming the malformed condition."""
    return EntryFilter(
        by_spiffe_id=_member("SPIFFE ID", message.by_spiffe_id, own) if message.HasField("by_spiffe_id") else None,
        by_parent_id=_member("parent ID", message.by_parent_id, own) if message.HasField("by_parent_id") else None,
        by_selectors=_selector_match(message.by_selectors) if message.HasField("by_selectors") else None,
        by_federates_with=(_domain_match(message.by_federates_with) if message.HasField("by_federates_with") else None),
        by_hint=message.by_hint.value,
        by_downstream=message.by_downstream.value,
    )


def agent_filter(message: AgentFilterMessage) -> AgentFilter:
    """Absent conditions filter nothing. Raises InvalidArgument naming the malformed condition."""
    return AgentFilter(
        by_attestation_type=message.by_attestation_type,
        by_selector_match=_selector_match(message.by_selector_match) if message.HasField("by_selector_match") else None,
        by_banned=message.by_banned.value if message.HasField("by_banned") else None,
        by_can_reattest=message.by_can_reattest.value if message.HasField("by_can_reattest") else None,
        by_expires_before=_time(message.by_expires_before) if message.by_expires_before else None,
    )


def page_token(page_size: int, token: str) -> str:
    """A token without a page size is ignored."""
    return token if page_size > 0 else ""


def _member(what: str, message: types_pb2.SPIFFEID, own: TrustDomain):  # type: ignore[no-untyped-def]
    return named(f"malformed {what} filter", lambda: member_id(message, own))


def _selector_match(message: types_pb2.SelectorMatch) -> SelectorMatch:
    def read() -> SelectorMatch:
        if not message.selectors:
            raise InvalidArgument("empty selector set", reason="SELECTORS_EMPTY")
        _bounded(len(message.selectors), "selectors")
        return SelectorMatch(frozenset(selectors(message.selectors)), _match(message.match))

    return named("malformed selectors filter", read)


def _domain_match(message: types_pb2.FederatesWithMatch) -> TrustDomainMatch:
    def read() -> TrustDomainMatch:
        if not message.trust_domains:
            raise InvalidArgument("empty trust domain set", reason="TRUST_DOMAINS_EMPTY")
        _bounded(len(message.trust_domains), "trust domains")
        return TrustDomainMatch(frozenset(trust_domain(name) for name in message.trust_domains), _match(message.match))

    return named("malformed federates with filter", read)


def _bounded(count: int, what: str) -> None:
    if count > MAX_MEMBERS:
        raise InvalidArgument(f"{count} {what}; at most {MAX_MEMBERS} are accepted", reason="TOO_MANY")


def _match(number: int) -> Match:
    """Enums of proto3 are open: a number that has no name may come."""
    if number not in _MATCHES:
        raise InvalidArgument(f"match behavior {number} is unknown", reason="MATCH_UNKNOWN")
    return _MATCHES[number]


def _time(text: str) -> datetime:
    """RFC 3339, or the layout that Go prints (`2026-01-31 12:00:00 +0000 UTC`), which SPIRE's CLI sends."""
    try:
        if text.endswith(" UTC"):
            return datetime.strptime(text.removesuffix(" UTC"), _GO_TIME).astimezone(UTC)
        value = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise InvalidArgument(
            f"by_expires_before {quote(text)} is no time", reason="TIME", hint="write it as 2026-01-31T12:00:00Z"
        ) from None
    return value if value.tzinfo else value.replace(tzinfo=UTC)
