"""A cluster whose service accounts come to the server: its API, its tokens' pods, and what strangers learn of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ca.errors import BurgeeError, Denied, NotFound, Unavailable
from ca.identity.text import quote
from ca.runtime.kube import KubeClient, object_path
from ca.runtime.notes import note
from ca.runtime.token_review import ReviewedToken

UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
ENDED = ("Succeeded", "Failed")
"""Phases of a pod in which nothing of it runs any more."""


def open_cluster(name: str, kube_config_file: Path | None, timeout_seconds: float) -> KubeClient:
    """By the kubeconfig, or without one by this pod's own service account. Raises ConfigError (KUBE_CONFIG)."""
    source = f"the API server of cluster {quote(name)}"
    if kube_config_file is None:
        return KubeClient.in_cluster(source=source, timeout_seconds=timeout_seconds)
    return KubeClient.from_kubeconfig(kube_config_file, source=source, timeout_seconds=timeout_seconds)


async def pod_of_token(api: KubeClient, token: ReviewedToken) -> Mapping[str, Any]:
    """The pod that a token was made for: the same UID, the same service account.

    Raises Denied (K8S_TOKEN_UNBOUND, K8S_POD_*), and what the client raises.
    """
    if token.pod_name is None or token.pod_uid is None:
        raise Denied("the token is not bound to a pod", reason="K8S_TOKEN_UNBOUND", hint="mount a projected volume")
    try:
        pod = await api.get(object_path("/api/v1/namespaces", token.namespace, "pods", token.pod_name))
    except NotFound as error:
        raise Denied("the pod that the token was made for is gone", reason="K8S_POD_DELETED") from error
    uid = text_at(pod, "metadata", "uid")
    note("pod", f"{token.namespace}/{token.pod_name}: token for UID {token.pod_uid}, there is {uid or 'none'}")
    if uid != token.pod_uid or UID.fullmatch(uid) is None:
        raise Denied("the token was made for another pod of this name", reason="K8S_POD_UID")
    account = text_at(pod, "spec", "serviceAccountName")
    if account != token.account:
        note("pod's service account", account)
        raise Denied("the pod has another service account than the token", reason="K8S_POD_ACCOUNT")
    return pod


def node_of_pod(pod: Mapping[str, Any]) -> str:
    """The name of the node that it is bound to. Raises Denied K8S_POD_UNBOUND."""
    name = text_at(pod, "spec", "nodeName")
    if not name:
        raise Denied("the pod is not bound to a node yet", reason="K8S_POD_UNBOUND")
    return name


def outward(error: BurgeeError, cluster: str, purpose: str) -> BurgeeError:
    """What a caller may know of an error: of the API server's own no more than that it is ours to mend."""
    match error.reason:
        case "KUBE_UNAUTHENTICATED" | "KUBE_FORBIDDEN" | "KUBE_CREDENTIALS":
            return Unavailable(
                f"the server lacks rights in cluster {quote(cluster)} to {purpose}",
                reason="K8S_API_DENIED",
                hint="its log names the permission",
            )
        case _ if isinstance(error, Unavailable):
            return Unavailable(
                f"the server cannot ask the API server of cluster {quote(cluster)} now",
                reason="K8S_API_UNREACHABLE",
                retry_after_seconds=error.retry_after_seconds,
            )
    return error


def text_at(value: Mapping[str, Any], *keys: str) -> str:
    """What stands at the end of these keys, or nothing where it is no text."""
    here: Any = value
    for key in keys:
        here = here.get(key) if isinstance(here, dict) else None
    return here if isinstance(here, str) else ""


def refuse_ended(pod: Mapping[str, Any]) -> None:
    """Raises Denied (K8S_POD_DELETED, K8S_POD_ENDED) for the pod of a token that is on its way out.

    The API server honours a token until its pod is out of the store, which may be long after it was told to go.
    """
    if deleted := text_at(pod, "metadata", "deletionTimestamp"):
        note("pod's deletion", deleted)
        raise Denied("the pod that the token was made for is being deleted", reason="K8S_POD_DELETED")
    phase = text_at(pod, "status", "phase")
    note("pod's phase", phase)
    if phase in ENDED:
        raise Denied("the pod that the token was made for has ended", reason="K8S_POD_ENDED")
