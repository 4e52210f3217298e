"""What `caadmin doctor` finds about Kubernetes tokens: whether the agent has one, for whom and how long."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from ca.identity import base64url
from ca.identity.text import quote
from ca.ports import Finding, FindingLevel

SHOWN_AUDIENCES = 4


def token_findings(token: str, *, now: datetime) -> Sequence[Finding]:
    """Of a token that was not verified: the API server does that, when the server asks it."""
    claims = _claims(token)
    return [_audience(claims.get("aud")), _life(claims.get("exp"), now), _pod(claims.get("kubernetes.io"))]


def _claims(token: str) -> dict[str, Any]:
    try:
        found = json.loads(base64url.decode(token.split(".")[1]))
    except (ValueError, IndexError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _audience(value: object) -> Finding:
    what = "token audience"
    named = [value] if isinstance(value, str) else value
    texts = [one for one in named if isinstance(one, str)] if isinstance(named, list) else []
    if not texts:
        return Finding(what=what, level=FindingLevel.FAILED, detail="the token names no audience", hint=_MOUNT)
    shown = ", ".join(quote(one) for one in texts[:SHOWN_AUDIENCES])
    if not any(one == "spire-server" for one in texts):
        return Finding(
            what=what,
            level=FindingLevel.WARNING,
            detail=f"the token is for {shown}",
            hint="right if the server's `audience` for this cluster names one of them; its default is `spire-server`",
        )
    return Finding(what=what, level=FindingLevel.OK, detail=f"the token is for {shown}")


def _life(value: object, now: datetime) -> Finding:
    what = "token life"
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e11:
        return Finding(what=what, level=FindingLevel.FAILED, detail="the token does not say when it ends", hint=_MOUNT)
    end = datetime.fromtimestamp(value, UTC)
    if end <= now:
        detail = f"the token expired at {end:%Y-%m-%d %H:%M:%SZ}"
        return Finding(what=what, level=FindingLevel.FAILED, detail=detail, hint=_RENEWED)
    return Finding(what=what, level=FindingLevel.OK, detail=f"the token ends at {end:%Y-%m-%d %H:%M:%SZ}")


def _pod(value: object) -> Finding:
    what = "token pod"
    pod = value.get("pod") if isinstance(value, dict) else None
    name = pod.get("name") if isinstance(pod, dict) else None
    if not isinstance(name, str):
        return Finding(what=what, level=FindingLevel.FAILED, detail="the token is bound to no pod", hint=_MOUNT)
    return Finding(what=what, level=FindingLevel.OK, detail=f"the token is bound to the pod {quote(name)}")


_MOUNT = "mount a projected volume with a serviceAccountToken for the audience `spire-server`"
_RENEWED = "the kubelet renews a projected token by itself: is it one, and is the kubelet well?"
