"""What the agent's identity needs next: pure decisions over values and the time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from ca.errors import BurgeeError, Code, Denied, Unauthenticated
from ca.identity.bundle import TrustBundle
from ca.identity.lineage import Taints, issuer_ids
from ca.identity.svid import parse_x509_svid, verify_x509_svid
from sds.state import AgentSvid

RENEWAL_JITTER = 0.1
"""Renewal falls within ±10 % of half of the time between issue and notAfter, so that a fleet does not come at once."""

BANNED_REASON = "AGENT_BANNED"
VERDICTS = {
    "AGENT_EXPIRED": "the server says that this agent's SVID has expired",
    "AGENT_NOT_ATTESTED": "the server does not know this agent (it was evicted, or the server lost its memory)",
    "AGENT_NOT_ACTIVE": "the server knows another SVID of this agent as the current one",
    "AGENT_MUST_REATTEST": "the server wants this agent to attest again instead of renewing",
    BANNED_REASON: "the server has banned this agent",
}
"""SPIRE's PermissionDeniedDetails: after a ban the agent drops everything, after the others it attests again."""


def verdict_of(error: BurgeeError) -> Denied | None:
    """A server's refusal of this agent as a whole, in words for the operator; None when `error` is anything else."""
    if error.code is not Code.PERMISSION_DENIED or error.reason not in VERDICTS:
        return None
    return Denied(VERDICTS[error.reason], reason=error.reason, hint=error.hint)


def still_banned(ban: BurgeeError, error: BurgeeError) -> BurgeeError:
    """What a banned agent met when it tried to attest as a new one. It keeps the error's code and the ban's reason."""
    detail = error.detail if error.detail.startswith(ban.detail) else f"{ban.detail}; attesting anew: {error.detail}"
    return type(error)(
        detail,
        reason=ban.reason,
        hint="lift the ban with `caadmin agent evict`, and give the node attestor something new (a join token: "
        "`caadmin token create`, into its file): the agent then attests by itself",
        retry_after_seconds=error.retry_after_seconds,
    )


@dataclass(frozen=True, kw_only=True)
class Attest:
    """A new attestation, and why: the server's or our own verdict on what we hold; None for the first one."""

    why: BurgeeError | None = None


@dataclass(frozen=True)
class Renew:
    """RenewAgent with the SVID that is held."""


@dataclass(frozen=True)
class Wait:
    """Nothing until then."""

    seconds: float


Step = Attest | Renew | Wait


def renew_at(svid: AgentSvid, jitter: float) -> datetime:
    """Counted from issue, never from the backdated notBefore. `jitter` lies between -1 and 1.

    Where the server's clock is ahead of ours, its notBefore tells how long a life it meant.
    """
    half = (svid.not_after - max(svid.issued_at, _begins(svid))) / 2
    return svid.issued_at + half + jitter * RENEWAL_JITTER * half


def plan(
    *, svid: AgentSvid | None, bundle: TrustBundle | None, verdict: BurgeeError | None, due: datetime, now: datetime
) -> Step:
    """`verdict` is a server's demand to attest again, `due` the moment of renewal."""
    if svid is None or verdict is not None:
        return Attest(why=verdict)
    if now >= svid.not_after:
        times = f"expired at {svid.not_after:%Y-%m-%d %H:%M:%SZ}, the clock here says {now:%Y-%m-%d %H:%M:%SZ}"
        return Attest(why=Denied(f"the agent's SVID {times}", reason="AGENT_EXPIRED"))
    if bundle is not None and not chains_to(svid, bundle, now):
        return Attest(
            why=Unauthenticated(
                "the agent's SVID does not chain to the trust bundle any more", reason="AGENT_SVID_UNTRUSTED"
            )
        )
    if now >= due:
        # A re-attestable node proves itself anew each time: RenewAgent would be answered AGENT_MUST_REATTEST.
        return Attest() if svid.reattestable else Renew()
    return Wait((due - now) / timedelta(seconds=1))


def _begins(svid: AgentSvid) -> datetime:
    try:
        return parse_x509_svid(svid.chain).not_before
    except BurgeeError:
        return svid.issued_at


def is_tainted(svid: AgentSvid, bundle: TrustBundle) -> bool:
    """Whether the SVID hangs on a tainted authority, while there are others to renew under."""
    try:
        leaf = parse_x509_svid(svid.chain)
    except BurgeeError:
        return False
    return Taints.of(bundle).reach(issuer_ids(leaf.authority_key_id, svid.chain[1:]))


def chains_to(svid: AgentSvid, bundle: TrustBundle, now: datetime) -> bool:
    """Whether the bundle vouches for the SVID; one of the wrong time is another matter and counts as vouched for."""
    try:
        verify_x509_svid(svid.chain, {bundle.trust_domain: bundle}, now=now)
    except BurgeeError as error:
        return error.reason in ("SVID_EXPIRED", "SVID_NOT_YET_VALID")
    return True
