"""What a Kubernetes API server says of a service account token (TokenReview, authentication.k8s.io/v1).

The API server alone decides whether a token holds. The token's own words serve to explain a refusal, nothing else.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ca.errors import Denied, Unavailable
from ca.identity.text import quote
from ca.runtime.kube import KubeClient
from ca.runtime.notes import note

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
MAX_TOKEN_BYTES = 16 << 10
_USER = re.compile(r"system:serviceaccount:([a-z0-9][a-z0-9-]{0,62}):([a-z0-9][a-z0-9.-]{0,252})")
_GROUP = "system:serviceaccounts"
_EXTRA = "authentication.kubernetes.io/"
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True)
class ReviewedToken:
    """A token that holds now, for at least one of the audiences that were asked for.

    Pod and node are those that it is bound to: None for a token without, and the node's before Kubernetes 1.30.
    """

    namespace: str
    account: str
    audiences: tuple[str, ...]
    pod_name: str | None
    pod_uid: str | None
    node_name: str | None
    node_uid: str | None


def is_token(text: str) -> bool:
    """Whether it has the form of a compact JWT of bounded length: nothing else need be sent to anybody."""
    return len(text) <= MAX_TOKEN_BYTES and _TOKEN.fullmatch(text) is not None


async def review(client: KubeClient, token: str, audiences: Sequence[str], *, now: datetime) -> ReviewedToken:
    """Asks the API server. Raises Denied (K8S_TOKEN_*) where the token does not hold, and what the client raises."""
    spec = {"token": token, "audiences": list(audiences)}
    answer = await client.create(PATH, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec})
    status = answer.get("status")
    if not isinstance(status, dict):
        raise Unavailable("the API server's review of the token has no status", reason="KUBE_ANSWER")
    if status.get("authenticated") is not True:
        note("token review", status.get("error") or "not authenticated")
        raise _why_not(token, audiences, str(status.get("error") or ""), now)
    return _reviewed(status, audiences)


def _reviewed(status: Mapping[str, Any], audiences: Sequence[str]) -> ReviewedToken:
    found = tuple(a for a in _texts(status.get("audiences")) if a in audiences)
    note("audience", f"wanted one of {', '.join(audiences)}; the token holds for {', '.join(found) or 'none of them'}")
    if not found:  # an API server that knows no audiences vouches for its own alone
        raise Denied("the token is for another audience", reason="K8S_TOKEN_AUDIENCE")
    user = status.get("user")
    user = user if isinstance(user, dict) else {}
    name = user.get("username")
    match = _USER.fullmatch(name) if isinstance(name, str) else None
    if match is None or _GROUP not in _texts(user.get("groups")):
        note("user", name)
        raise Denied("the token is no service account's", reason="K8S_TOKEN_USER")
    extra = user.get("extra")
    extra = extra if isinstance(extra, dict) else {}
    bound = {key: _only(extra.get(f"{_EXTRA}{key}")) for key in ("pod-name", "pod-uid", "node-name", "node-uid")}
    return ReviewedToken(
        namespace=match[1],
        account=match[2],
        audiences=found,
        pod_name=bound["pod-name"],
        pod_uid=bound["pod-uid"],
        node_name=bound["node-name"],
        node_uid=bound["node-uid"],
    )


def _why_not(token: str, audiences: Sequence[str], said: str, now: datetime) -> Denied:
    """The API server names no codes: the token's own words, then the API server's, tell which one fits.

    Nobody gains by a wrong explanation: who could have lied in the token is who is refused.
    """
    claims = _unverified(token)
    expires, meant = claims.get("exp"), claims.get("aud")
    if isinstance(expires, int | float) and expires < now.timestamp():
        return Denied("the token has expired", reason="K8S_TOKEN_EXPIRED", hint="is the projected volume mounted?")
    if not set(_texts([meant] if isinstance(meant, str) else meant)) & set(audiences):
        note("audience", f"wanted one of {', '.join(audiences)}; the token says {quote(str(meant))}")
        return Denied("the token is for another audience", reason="K8S_TOKEN_AUDIENCE")
    if "invalidated" in said:
        return Denied("the pod that the token was made for is gone", reason="K8S_POD_DELETED")
    if "pod UID" in said:
        return Denied("the token was made for another pod of this name", reason="K8S_POD_UID")
    return Denied("the cluster's API server does not accept the token", reason="K8S_TOKEN_INVALID")


def _unverified(token: str) -> Mapping[str, Any]:
    part = token.split(".")[1]
    try:
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _only(value: object) -> str | None:
    texts = _texts(value)
    return texts[0] if len(texts) == 1 else None
