"""What server and agents may have to be allowed in a Kubernetes cluster, and whether whoever asks is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from ca.errors import BurgeeError
from ca.ports import Finding, FindingLevel
from ca.runtime.kube import KubeClient

UNREACHED = "is the API server running, and does the kubeconfig, or the pod, lead to it?"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """One thing to be allowed, as RBAC writes it, who needs it (server or agent) and for what.

    Without `namespace` in all of them, without `named` for all names.
    """

    verb: str
    resource: str
    group: str = ""
    subresource: str = ""
    namespace: str = ""
    named: str = ""
    who: str
    why: str

    @property
    def name(self) -> str:
        """For people."""
        resource = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        resource += f" {self.named}" if self.named else ""
        where = f" in namespace {self.namespace}" if self.namespace else ""
        return f"{self.verb} {resource}" + (f" of {self.group}" if self.group else "") + where


OF_SERVER = (
    Permission(
        verb="create",
        resource="tokenreviews",
        group="authentication.k8s.io",
        who="server",
        why="k8s_psat has agents' tokens verified by it",
    ),
    Permission(verb="get", resource="pods", who="server", why="k8s_psat looks up the pod of an agent"),
    Permission(verb="get", resource="nodes", who="server", why="k8s_psat looks up the node of an agent"),
)
OF_AGENT = (
    Permission(
        verb="get", resource="nodes", subresource="pods", who="agent", why="a kubelet lists its pods to whoever may"
    ),
)


async def granted(client: KubeClient, needed: Permission) -> bool | BurgeeError:
    """Whether whoever the client is may do it; the error where that cannot be told."""
    attributes = {
        "verb": needed.verb,
        "resource": needed.resource,
        "group": needed.group,
        "subresource": needed.subresource,
        "namespace": needed.namespace,
        "name": needed.named,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    try:
        answer = await client.create(REVIEWS, review)
    except BurgeeError as error:
        return error
    status = answer.get("status")
    return isinstance(status, dict) and status.get("allowed") is True


def finding(needed: Permission, answer: bool | BurgeeError, *, what: str, level: FindingLevel) -> Finding:
    """`level` is that of what is not granted."""
    if isinstance(answer, BurgeeError):
        detail = f"{answer.detail} ({answer.reason})"
        return Finding(what=what, level=FindingLevel.FAILED, detail=detail, hint=answer.hint or UNREACHED)
    if answer:
        return Finding(what=what, level=FindingLevel.OK, detail=f"granted: {needed.why}")
    return Finding(
        what=what,
        level=level,
        detail=f"not granted to whoever asks here: {needed.why}",
        hint=f"grant `{needed.verb}` to the {needed.who}'s service account by a "
        + (f"Role in `{needed.namespace}`" if needed.namespace else "ClusterRole"),
    )


async def findings(client: KubeClient, needed: Sequence[Permission], *, prefix: str) -> list[Finding]:
    """Of one who needs all of it."""
    answers = await asyncio.gather(*(granted(client, one) for one in needed))
    return [
        finding(one, answer, what=f"{prefix} {one.name}", level=FindingLevel.FAILED)
        for one, answer in zip(needed, answers, strict=True)
    ]
