"""Workload attestation from what the node's kubelet says of the caller's pod.

Which container the caller runs in says the kernel (`attestor.workload.container`); whose that container is says the
kubelet. Its answer is kept for a moment: many callers at once cost one request. A container that is not in it yet, as
when a pod is starting or a container was restarted, is asked for again until it is or the time is up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from attestor.workload.container import Container, find_container
from attestor.workload.k8s_config import Config, kubelet_of
from attestor.workload.kubelet import Kubelet
from attestor.workload.pod_snapshots import PodSnapshots, Snapshot
from ca.errors import ConfigError, Denied, Unavailable
from ca.identity.selector import Selector
from ca.ports import Finding, FindingLevel, Process, WorkloadAttestorPlugin
from ca.runtime.log import get
from ca.runtime.notes import note
from ca.runtime.pod_list import ContainerStatus, Pod, parse_pods
from ca.runtime.pod_selectors import container_selectors, pod_selectors
from ca.runtime.threads import to_thread

NAME = "k8s"
_BESIDES_SECONDS = 1.0
_FAILED_JUST_NOW_SECONDS = 2.0
_RETRIED = frozenset({"KUBELET_UNREACHABLE"})

Find = Callable[[int], Container | None]
log = get("attestor.workload.k8s")


@dataclass(frozen=True, kw_only=True)
class _Found:
    pod: Pod
    status: ContainerStatus | None


class K8sAttestor:
    """Finds `k8s:` selectors. `find` says which container a process runs in."""

    def __init__(
        self, config: Config, *, find: Find = find_container, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._find = find
        self._kubelet: Kubelet | None = None
        self.snapshots = PodSnapshots(
            self._ask, interval_seconds=config.poll_retry_interval_seconds, monotonic=monotonic
        )
        self._monotonic = monotonic
        if config.skip_kubelet_verification:
            log.warning("whoever answers at the kubelet's port is believed", reason="KUBELET_UNVERIFIED")

    async def check(self) -> Sequence[Finding]:
        """Asks the kubelet once: that it is there, is the one, and lists its pods to this agent."""
        what = "kubelet permission"
        try:
            pods = await to_thread(parse_pods, await self._ask())
        except (Unavailable, ConfigError) as error:
            detail = f"{error.detail} ({error.reason})"
            hint = error.hint or "is the kubelet running, and are `kubelet_address` and `kubelet_port` its own?"
            return [Finding(what=what, level=FindingLevel.FAILED, detail=detail, hint=hint)]
        found = [Finding(what=what, level=FindingLevel.OK, detail=f"the kubelet lists {len(pods.by_uid)} pods")]
        if self._config.skip_kubelet_verification:
            hint = "set `kubelet_ca_file`, and leave `skip_kubelet_verification` out"
            detail = "whoever answers at the kubelet's port is believed"
            found.append(Finding(what="kubelet certificate", level=FindingLevel.WARNING, detail=detail, hint=hint))
        return found

    @property
    def deadline_seconds(self) -> float:
        """Longer than the wait, so that it is said what was waited for."""
        return self._config.max_wait_seconds + _BESIDES_SECONDS

    async def attest(self, process: Process) -> frozenset[Selector]:
        process.ensure_alive()
        container = await to_thread(self._find, process.proc)
        found = None if container is None else await self._found(container, process)
        process.ensure_alive()
        if container is None:
            note("container", "none: the process is in no container's cgroup")
        if found is None:
            return frozenset()
        note("pod", f"{found.pod.namespace}/{found.pod.name}, uid {found.pod.uid}")
        values = pod_selectors(found.pod)
        if found.status is not None and not self._config.disable_container_selectors:
            values += container_selectors(found.status)
        return frozenset(Selector(NAME, value) for value in values)

    async def _found(self, container: Container, process: Process) -> _Found | None:
        """The container's pod; None where it is a container, and of no pod."""
        note("container", f"{container.container_id} ({container.found_in})")
        if container.login_uid is not None:
            note("pod", f"none: the container is one of the login user {container.login_uid}")
            return None
        fresh = self._fresh()
        if fresh is not None and (
            (found := self._look(container, fresh)) is not None or not _may_be_of_a_pod(container)
        ):
            return found
        if (found := self._stale_already(container)) is not None:
            return found
        begun = self._monotonic()
        try:
            async with asyncio.timeout(self._config.max_wait_seconds):
                return await self._wait(container, process)
        except TimeoutError as error:
            raise self._unknown(container, begun) from error

    def _fresh(self) -> Snapshot | None:
        age = self.snapshots.age_seconds()
        if age > self._config.cache_seconds:
            return None
        note("kubelet", f"asked {age:.1f} seconds ago")
        return self.snapshots.last

    def _stale_already(self, container: Container) -> _Found | None:
        """While the kubelet does not answer, not everybody waits for it once more."""
        failure = self.snapshots.failure
        if failure is None or self._monotonic() - failure[0] >= _FAILED_JUST_NOW_SECONDS:
            return None
        return self._stale(container, failure[1])

    async def _wait(self, container: Container, process: Process) -> _Found | None:
        """Asks until the container is in the answer, or there is no reason to expect it there."""
        seen = self.snapshots.last
        while True:
            try:
                seen = await self.snapshots.newer(seen)
            except Unavailable as error:
                if (found := self._stale(container, error)) is not None:
                    return found
                note("kubelet", f"{error.reason}: {error.detail}")
                if error.reason not in _RETRIED or not _may_be_of_a_pod(container):
                    raise
                continue
            process.ensure_alive()
            found = self._look(container, seen)
            if found is not None or not _may_be_of_a_pod(container):
                note("kubelet", f"has the container in {'one of its pods' if found else 'none of its pods'}")
                return found

    def _look(self, container: Container, snapshot: Snapshot) -> _Found | None:
        """Raises Denied where the kubelet and the kernel do not say the same."""
        pods = snapshot.pods
        if container.container_id in pods.claimed_twice:
            raise Denied("the kubelet has the caller's container in two pods", reason="K8S_POD_MISMATCH")
        found = pods.by_container.get(container.container_id)
        if found is None:
            pod = pods.by_uid.get(container.pod_uid or "") if self._config.disable_container_selectors else None
            return None if pod is None else _Found(pod=pod, status=None)
        if container.pod_uid is not None and container.pod_uid not in (found[0].uid, found[0].config_hash):
            note("pod", f"the kernel says {container.pod_uid}, the kubelet {found[0].uid}")
            raise Denied("kernel and kubelet name different pods for the caller", reason="K8S_POD_MISMATCH")
        return _Found(pod=found[0], status=found[1])

    def _stale(self, container: Container, error: Unavailable) -> _Found | None:
        """What the kubelet said of this container before it ceased to answer."""
        last, age = self.snapshots.last, self.snapshots.age_seconds()
        if last is None or age > self._config.stale_seconds:
            return None
        found = self._look(container, last)
        if found is not None:
            note("kubelet", f"{error.reason}: {error.detail}; what it said {age:.0f} seconds ago counts")
        return found

    def _unknown(self, container: Container, begun: float) -> Unavailable:
        """Why somebody has waited in vain since then."""
        last, failure = self.snapshots.last, self.snapshots.failure
        if failure is not None:
            error = failure[1]
            return Unavailable(error.detail, reason=error.reason, hint=error.hint)
        if last is None or last.asked_at < begun:
            return Unavailable("the kubelet did not answer in time", reason="KUBELET_UNREACHABLE")
        if container.pod_uid in last.pods.by_uid:
            return Unavailable(
                "the kubelet knows the caller's pod and not its container yet", reason="K8S_CONTAINER_UNKNOWN"
            )
        return Unavailable("the kubelet does not know the caller's pod yet", reason="K8S_POD_UNKNOWN")

    async def _ask(self) -> bytes:
        if self._kubelet is None:
            self._kubelet = kubelet_of(self._config)
        return await self._kubelet.pods()


def _may_be_of_a_pod(container: Container) -> bool:
    """Kubelets give each pod a cgroup of its own."""
    return container.pod_uid is not None or container.hidden


plugin = WorkloadAttestorPlugin(name=NAME, config=Config, attestor=K8sAttestor)
