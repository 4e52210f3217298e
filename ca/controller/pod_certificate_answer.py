"""What is written into a PodCertificateRequest's status: a chain, or why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ca.errors import BurgeeError
from ca.identity.bundle_pem import certificate_pem

NOT_SOONER = timedelta(minutes=10)
"""Kubernetes refuses a renewal that begins closer than this to either end of the life."""
MAX_MESSAGE_CHARACTERS = 1024

NO_ENTRY = "VOUCHED_NO_ENTRY"
_KUBERNETES = {
    "CSR_ALGORITHM": "UnsupportedKeyType",  # of the signature, which follows from the key
    "KEY_ALGORITHM": "UnsupportedKeyType",
    "KEY_TOO_BIG": "UnsupportedKeyType",
    "KEY_TOO_WEAK": "UnsupportedKeyType",
    "ANNOTATION_UNKNOWN": "InvalidUnverifiedUserAnnotations",
}
"""Reasons for which Kubernetes has words of its own."""
_DENIED = frozenset(
    {
        *_KUBERNETES,
        *("AGENT_BANNED", NO_ENTRY, "VOUCHED_AMBIGUOUS"),
        *("K8S_POD_DELETED", "K8S_POD_UID", "K8S_POD_ACCOUNT", "K8S_POD_ENDED", "K8S_POD_NO_VOLUME"),
        *("K8S_NODE_MISMATCH", "K8S_NODE_UNKNOWN"),
    }
)
_FAILED = frozenset(
    {"ENTRY_TTL_SHORT", "TTL_OUT_OF_RANGE", "STUB_MISSING", "KEY_MALFORMED", "TRUST_DOMAIN", "KUBE_INVALID"}
)
_FAILED_PREFIXES = ("CSR_", "SPIFFE_ID")


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A chain, DER, leaf first, and what it is good for."""

    chain: Sequence[bytes]
    spiffe_id: str
    entry_id: str
    not_before: datetime
    not_after: datetime


def is_final(error: BurgeeError) -> bool:
    """Whether asking again would meet the same; all else, our own lack of rights included, may pass."""
    return error.reason in _DENIED | _FAILED or error.reason.startswith(_FAILED_PREFIXES)


def issued_status(issued: Issued, now: datetime) -> dict[str, Any]:
    """Half of its life is left when the kubelet asks for the next one."""
    refresh = issued.not_before + (issued.not_after - issued.not_before) / 2
    refresh = min(max(refresh, issued.not_before + NOT_SOONER), issued.not_after - NOT_SOONER)
    message = f"{issued.spiffe_id} by entry {issued.entry_id}"
    return {
        "certificateChain": "".join(map(certificate_pem, issued.chain)),
        "notBefore": _instant(issued.not_before),
        "beginRefreshAt": _instant(refresh),
        "notAfter": _instant(issued.not_after),
        "conditions": [_condition("Issued", "Issued", message, now)],
    }


def refused_status(error: BurgeeError, now: datetime) -> dict[str, Any]:
    """`Denied` for what policy does not grant, `Failed` for what cannot be done."""
    kind = "Denied" if error.reason in _DENIED else "Failed"
    reason = _KUBERNETES.get(error.reason, error.reason)
    message = _message(error) if reason == error.reason else f"{_message(error)} ({error.reason})"
    return {"conditions": [_condition(kind, reason, message, now)]}


def _message(error: BurgeeError) -> str:
    """Whoever may read requests in a namespace sees it: nothing of other people's entries is in it."""
    if error.reason == NO_ENTRY:
        return "no entry is for this pod; the controller's log names the nearest"
    return f"{error.detail}; hint: {error.hint}" if error.hint else error.detail


def _condition(kind: str, reason: str, message: str, now: datetime) -> dict[str, str]:
    return {
        "type": kind,
        "status": "True",
        "reason": reason,
        "message": message[:MAX_MESSAGE_CHARACTERS],
        "lastTransitionTime": _instant(now),
    }


def _instant(value: datetime) -> str:
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
