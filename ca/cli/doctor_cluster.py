"""`caadmin doctor cluster`: whether a Kubernetes API server answers, and grants what server and agents ask of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from ca.errors import BurgeeError
from ca.ports import Finding, FindingLevel
from ca.runtime.kube import KubeClient
from ca.runtime.kube_permissions import OF_AGENT, OF_SERVER, UNREACHED, Permission, finding, granted

VERSION_CHARACTERS = 64


def cluster_findings(kubeconfig: Path | None) -> list[dict[str, str]]:
    """As the user of `kubeconfig`, or the pod's service account: ask with the server's and with an agent's.

    Raises ConfigError for a kubeconfig that cannot be used.
    """
    client = KubeClient.from_kubeconfig(kubeconfig) if kubeconfig is not None else KubeClient.in_cluster()
    found = asyncio.run(_findings(client))
    return [{"what": f.what, "level": f.level.value, "detail": f.detail, "hint": f.hint} for f in found]


async def _findings(client: KubeClient) -> list[Finding]:
    try:
        return await _asked(client)
    finally:
        client.close()


async def _asked(client: KubeClient) -> list[Finding]:
    what = "API server"
    try:
        version = str((await client.get("/version")).get("gitVersion", "of no version"))[:VERSION_CHARACTERS]
    except BurgeeError as error:
        detail = f"{error.detail} ({error.reason})"
        return [Finding(what=what, level=FindingLevel.FAILED, detail=detail, hint=error.hint or UNREACHED)]
    needed = (*OF_SERVER, *OF_AGENT)
    answers = await asyncio.gather(*(granted(client, one) for one in needed))
    answered = Finding(what=what, level=FindingLevel.OK, detail=f"it answers, and is {version}")
    return [answered, *_judged(dict(zip(needed, answers, strict=True)))]


def _judged(answers: Mapping[Permission, bool | BurgeeError]) -> list[Finding]:
    """Who asks is the server's account or an agent's, and need not be both: of what it is not, nothing is granted.
    A part of what one needs is a failure, and so is none of all."""
    whose = {needed.who for needed, answer in answers.items() if answer is True}

    def level(needed: Permission) -> FindingLevel:
        return FindingLevel.FAILED if needed.who in whose or not whose else FindingLevel.WARNING

    return [
        finding(needed, answer, what=f"{needed.who}: {needed.name}", level=level(needed))
        for needed, answer in answers.items()
    ]
