"""`caadmin doctor cluster`: whether a Kubernetes API server answers, and grants what server and agents ask of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ca.errors import BurgeeError

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """One thing to be allowed, who needs it and for what. `group`/`resource`/`subresource` as RBAC writes them."""

    verb: str
    resource: str
    group: str = ""
    subresource: str = ""
    who: str
    why: str

    @property
    def name(self) -> str:
        resource = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        return f"{self.verb} {resource}" + (f" of {self.group}" if self.group else "")


NEEDED = (
    Permission(
        verb="create",
        resource="tokenreviews",
        group="authentication.k8s.io",
        who="server",
        why="k8s_psat verifies agents' tokens with it",
    ),
    Permission(verb="get", resource="pods", who="server", why="k8s_psat looks up the pod of an agent"),
    Permission(verb="get", resource="nodes", who="server", why="k8s_psat looks up the node of an agent"),
    Permission(
        verb="get", resource="nodes", subresource="pods", who="agent", why="the kubelet grants its list of pods by it"
    ),
)


def cluster_findings(kubeconfig: Path | None) -> list[dict[str, str]]:
    """As the user of `kubeconfig`, or the pod's service account: ask with the server's and with an agent's.

    Raises ConfigError for a kubeconfig that cannot be used.
    """
    from ca.runtime.kube import KubeClient

    client = KubeClient.from_kubeconfig(kubeconfig) if kubeconfig is not None else KubeClient.in_cluster()
    try:
        return asyncio.run(_findings(client))
    finally:
        client.close()


async def _findings(client: Any) -> list[dict[str, str]]:
    try:
        version = await client.get("/version")
    except BurgeeError as error:
        return [_finding("API server", "failed", f"{error.detail} ({error.reason})", error.hint)]
    found = [_finding("API server", "ok", f"it answers, and is {str(version.get('gitVersion', 'of no version'))[:64]}")]
    answers = await asyncio.gather(*(_granted(client, needed) for needed in NEEDED))
    return found + _judged(dict(zip(NEEDED, answers, strict=True)))


async def _granted(client: Any, needed: Permission) -> bool | BurgeeError:
    """Whether whoever asks may do it; the error where that cannot be told."""
    attributes = {
        "verb": needed.verb,
        "resource": needed.resource,
        "group": needed.group,
        "subresource": needed.subresource,
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


def _judged(answers: Mapping[Permission, bool | BurgeeError]) -> list[dict[str, str]]:
    """Who asks is the server's account or an agent's, and need not be both: of what it is not, nothing is granted.
    A part of what one needs is a failure, and so is none of all."""
    whose = {needed.who for needed, answer in answers.items() if answer is True}
    return [_permission(needed, answer, may_be=needed.who in whose or not whose) for needed, answer in answers.items()]


def _permission(needed: Permission, answer: bool | BurgeeError, *, may_be: bool) -> dict[str, str]:
    what = f"{needed.who}: {needed.name}"
    if isinstance(answer, BurgeeError):
        return _finding(what, "failed", f"{answer.detail} ({answer.reason})", answer.hint)
    if answer:
        return _finding(what, "ok", f"granted: {needed.why}")
    hint = f"grant `{needed.verb}` to the {needed.who}'s service account by a ClusterRole, and ask as that account"
    level = "failed" if may_be else "warning"
    return _finding(what, level, f"not granted to whoever asks here: {needed.why}", hint)


def _finding(what: str, level: str, detail: str, hint: str = "") -> dict[str, str]:
    return {"what": what, "level": level, "detail": detail, "hint": hint}
