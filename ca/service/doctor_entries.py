"""Entries that nothing can match, and lives that do not fit: values in, findings out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime

from ca.authority.ttls import longest_svid_ttl
from ca.identity import exchange
from ca.identity.entry import RegistrationEntry
from ca.identity.spiffe_id import SpiffeId, TrustDomain, is_agent_path, server_id
from ca.ports import Finding
from ca.runtime.findings import ok, warning
from ca.service.issuance import IssueSettings
from ca.store.values import AttestedAgent

SHOWN = 3
SHORT_SECONDS = 600
"""Half of a life is what an outage may last."""


def entries(
    every: Sequence[RegistrationEntry],
    *,
    agents: Mapping[SpiffeId, AttestedAgent],
    trust_domain: TrustDomain,
    types: Collection[str],
    node_types: Collection[str],
    now: datetime,
    token_issuers: Collection[str] = (),
) -> list[Finding]:
    """`types` of selectors are those of workload attestors that are installed, `node_types` those of node attestors.
    `token_issuers` are the names of issuers whose tokens are exchanged without an agent."""
    ids = {entry.spiffe_id for entry in every}
    server = server_id(trust_domain)
    parents = [exchange.parent_id(trust_domain, "oidc", name) for name in token_issuers]
    known = {**dict.fromkeys(ids), **dict.fromkeys(agents), **dict.fromkeys(parents), server: None}
    expired = [entry for entry in every if entry.expires_at is not None and entry.expires_at <= now]
    lost = {entry.id for entry in expired}
    orphans = [entry for entry in every if entry.id not in lost and entry.parent_id not in known]
    dead = [entry for entry in every if entry.id not in lost and _is_over(agents.get(entry.parent_id), now)]

    def strange(entry: RegistrationEntry) -> bool:
        of_nodes = entry.parent_id == server or exchange.is_parent_path(entry.parent_id.path)
        fitting = node_types if of_nodes else types
        return any(selector.type not in fitting for selector in entry.selectors)

    wide = [entry for entry in every if entry.id not in lost and exchange.issuer_wide(entry.selectors)]
    odd = [entry for entry in every if entry.id not in lost and strange(entry)]
    found = [
        _group("expired entries", expired, "are over", "delete them, or give them a later end"),
        _group("entries without a parent", orphans, "have a parent that nobody is", _orphan_hint(orphans)),
        _group(
            "entries of lost agents",
            dead,
            "have an agent for their parent that is banned or expired",
            "`caadmin explain agent` with the parent's ID says what became of it",
        ),
        _group(
            "entries that nothing matches",
            odd,
            "want selectors of types that no installed attestor gives",
            "is a selector's type misspelt? an attestor that only agents have installed is unknown to this server",
        ),
        _group(
            "entries for everybody at an issuer",
            wide,
            "tell whose token it is by nothing that others there cannot have",
            "add whose it is, such as `oidc:claim:repository:acme/shop`",
        ),
    ]
    bad = [finding for finding in found if finding is not None]
    return bad or [ok("entries", f"{len(every)}, each of which something can match")]


def lives(settings: IssueSettings, ca_ttl_seconds: int, every: Sequence[RegistrationEntry]) -> list[Finding]:
    """How long SVIDs are asked to live against how long an authority can promise."""
    longest = longest_svid_ttl(ca_ttl_seconds)
    found = []
    too_long = [entry for entry in every if max(entry.x509_svid_ttl_seconds, entry.jwt_svid_ttl_seconds) > longest]
    if (group := _group("lives of SVIDs", too_long, f"ask for more than {longest} s", _ttl_hint(longest))) is not None:
        found.append(group)
    defaults = {
        "agent_ttl_seconds": settings.agent_ttl_seconds,
        "x509_svid_ttl_seconds": settings.x509_svid_ttl_seconds,
    }
    for name, seconds in defaults.items():
        if seconds < SHORT_SECONDS:
            hint = "an outage of half of that ends SVIDs; `caadmin outage-budget` says whose first"
            found.append(warning("lives of SVIDs", f"{name} is {seconds} s", hint))
    return found or [ok("lives of SVIDs", f"all fit: an authority can promise {longest} s")]


def agents(every: Collection[AttestedAgent], heard: Callable[[SpiffeId], bool], now: datetime) -> Finding:
    """Those that have an SVID and are not heard of, and those whose SVID has ended."""
    over = [agent for agent in every if not agent.banned and _is_over(agent, now)]
    silent = [agent for agent in every if not agent.banned and not _is_over(agent, now) and not heard(agent.id)]
    if not over and not silent:
        return ok("agents", f"{len(every)}, all of which are heard of or banned")
    parts = [f"{len(over)} expired"] * bool(over) + [f"{len(silent)} silent"] * bool(silent)
    first = (over or silent)[0]
    return warning(
        "agents",
        f"of {len(every)} agents {' and '.join(parts)}, such as `{first.id}`",
        f"`caadmin explain agent {first.id}`",
    )


def _group(what: str, entries: Sequence[RegistrationEntry], how: str, hint: str) -> Finding | None:
    if not entries:
        return None
    more = f" and {len(entries) - SHOWN} more" if len(entries) > SHOWN else ""
    named = ", ".join(f"`{entry.id}` ({entry.spiffe_id})" for entry in entries[:SHOWN])
    return warning(what, f"{len(entries)} {how}: {named}{more}", hint)


def _orphan_hint(orphans: Sequence[RegistrationEntry]) -> str:
    if any(exchange.is_parent_path(entry.parent_id.path) for entry in orphans):
        return "no issuer of that name is configured for the node attestor `oidc`: correct `parent_id`, or configure it"
    if any(is_agent_path(entry.parent_id.path) for entry in orphans):
        return "that agent never attested here, or was evicted: correct `parent_id`, or let it attest"
    return "correct `parent_id`: an attested agent, the server (for a node alias), or another entry's SPIFFE ID"


def _ttl_hint(longest: int) -> str:
    return f"they are cut short: raise ca_ttl_seconds, or ask for {longest} s or less; see `caadmin ttl explain`"


def _is_over(agent: AttestedAgent | None, now: datetime) -> bool:
    if agent is None:
        return False
    return agent.banned or max(agent.not_after, agent.pending_not_after or agent.not_after) <= now
