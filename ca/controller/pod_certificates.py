"""The signer of pods' certificates: answers each PodCertificateRequest of its name once, as the entries have it.

Who asks and for which pod stands in the request's `spec`, which the API server has checked; of the stub only the key
counts. What may pass (a server that is away, an entry that comes in a moment) leaves a request as it is, for Kubernetes
never asks again after a refusal. Several controllers take turns; should two answer at once, the first answer stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ca.controller.config import ControllerConfig
from ca.controller.entry_api import AdminChannel
from ca.controller.pod_certificate_answer import NO_ENTRY, is_final, issued_status, refused_status
from ca.controller.pod_certificate_api import PodCertificateApi
from ca.controller.pod_certificate_pod import PodFinder
from ca.controller.pod_certificate_request import Request, list_path, read_request, reader
from ca.controller.pod_certificates_config import PodCertificatesConfig
from ca.controller.turns import Turns
from ca.errors import BurgeeError, FailedPrecondition, InvalidArgument, NotFound
from ca.ports import Clock
from ca.runtime import log, metrics
from ca.runtime.health import Problem
from ca.runtime.kube import KubeClient
from ca.runtime.kube_mirror import Mirror
from ca.runtime.kube_watch import Object

FIRST_PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 5.0
TURN_SECONDS = 0.2
"""How soon a controller that has become the leader begins."""
ROUNDS = 5
PER_POD = 4
"""Requests of one pod that are under way at a time, waiting for an entry included: who mounts a thousand certificates
keeps nobody else waiting."""

logger = log.get("pod-certificates")
_answered = metrics.counter(
    "pod_certificates", "PodCertificateRequests that were answered, by outcome and reason.", ["outcome", "reason"]
)
_waiting = metrics.gauge("pod_certificates_waiting", "PodCertificateRequests that have no answer yet.")
_seconds = metrics.histogram(
    "pod_certificate_seconds",
    "From the moment a request was seen to its answer.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 120),
)


class PodCertificates:
    """`may_act` tells whether it is this controller's turn."""

    def __init__(
        self,
        *,
        config: PodCertificatesConfig,
        kube: KubeClient,
        api: PodCertificateApi,
        clock: Clock,
        may_act: Callable[[], bool],
    ) -> None:
        self._config = config
        self._kube = kube
        self._api = api
        self._clock = clock
        self._may_act = may_act
        self._pods = PodFinder(kube, config.signer_name, clock)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(config.at_once)
        self._of_pod = Turns(PER_POD)
        self._of_node = Turns(max(1, config.at_once // 2))
        self._error: BurgeeError | None = None
        self.mirror: Mirror[Request] = Mirror(
            kube,
            list_path(config.signer_name),
            reader(config.signer_name),
            what="podcertificaterequests",
            clock=clock,
            changed=self._changed,
        )
        _waiting.set_function(lambda: len(self.mirror.items))

    async def run(self) -> None:
        """Until cancelled; then nothing is under way any more."""
        try:
            await self.mirror.run()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def close(self) -> None:
        """Lets go of the connection to the server."""
        await self._api.close()

    def problem(self) -> Problem | None:
        """What keeps requests from being answered, other than their own faults."""
        error = self._error
        if error is None or not self.mirror.items:
            return None
        detail = f"{len(self.mirror.items)} pods wait for their certificates: {error.detail}"
        return Problem(reason=error.reason, detail=detail, hint=error.hint)

    def _changed(self, key: str, before: Request | None, after: Request | None, seen: bool) -> None:
        if after is None:
            return  # whoever is at it finds out
        running = self._tasks.get(key)
        if running is None or running.done():
            task = asyncio.get_running_loop().create_task(self._see_to(key))
            self._tasks[key] = task
            task.add_done_callback(lambda done: self._over(key, done))

    def _over(self, key: str, task: asyncio.Task[None]) -> None:
        self._tasks.pop(key, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a request was given up", request=key, reason="INTERNAL", exc_info=error)

    async def _see_to(self, key: str) -> None:
        """One request, when it is its turn among those of its pod."""
        since = self._clock.monotonic()
        request = self.mirror.items.get(key)
        if request is not None:
            async with self._of_pod.of(f"{request.namespace}/{request.pod_name}"):
                await self._until_answered(key, since)

    async def _until_answered(self, key: str, since: float) -> None:
        """Or gone."""
        pause = FIRST_PAUSE_SECONDS
        while (request := self.mirror.items.get(key)) is not None:
            if not self._may_act():
                await self._clock.sleep(TURN_SECONDS)
                continue
            try:
                async with self._of_node.of(request.node_name), self._turns:
                    await self._answer(request, since)
                self._error = None
                return
            except BurgeeError as error:
                self._put_off(request, error, first=pause == FIRST_PAUSE_SECONDS)
                wait = max(pause, error.retry_after_seconds or 0.0)
            await self._clock.sleep(min(wait, 60.0))
            pause = min(pause * 2, MAX_PAUSE_SECONDS)

    async def _answer(self, request: Request, since: float) -> None:
        """Raises for what may pass."""
        try:
            selectors = await self._pods.selectors(request)
            issued = await self._api.issue(request, selectors)
        except BurgeeError as error:
            if not is_final(error) or self._may_come(error, since):
                raise
            await self._refuse(request, error, since)
            return
        try:
            written = await self._write(request, issued_status(issued, self._clock.now()))
        except InvalidArgument as error:  # the API server does not take it, nor ever will
            await self._refuse(request, error, since)
            return
        if written:
            self._told("issued", "OK", request, since, spiffe_id=issued.spiffe_id, entry_id=issued.entry_id)

    def _may_come(self, error: BurgeeError, since: float) -> bool:
        """An entry is made when its pod is seen, which may be a moment after the request."""
        return error.reason == NO_ENTRY and self._clock.monotonic() - since < self._config.entry_wait_seconds

    async def _refuse(self, request: Request, error: BurgeeError, since: float) -> None:
        status = refused_status(error, self._clock.now())
        if await self._write(request, status):
            outcome = status["conditions"][0]["type"].lower()
            self._told(outcome, error.reason, request, since, detail=error.detail)

    async def _write(self, request: Request, status: Object) -> bool:
        """False where somebody else has answered, or nobody wants to know any more. Raises as the client does."""
        whole = request.whole
        for _ in range(ROUNDS):
            try:
                await self._kube.update(f"{request.path}/status", {**whole, "status": status})
                return True
            except NotFound:
                return False
            except FailedPrecondition as error:
                if error.reason != "KUBE_CONFLICT":
                    raise
            try:
                found = await self._kube.get(request.path)
            except NotFound:
                return False
            now = read_request(found, self._config.signer_name)
            if now is None or now.uid != request.uid:
                return False
            whole = now.whole
        raise FailedPrecondition("the request changes all the time", reason="KUBE_CONFLICT")

    def _put_off(self, request: Request, error: BurgeeError, *, first: bool) -> None:
        if error.reason != NO_ENTRY:
            self._error = error
        say = logger.warning if first and error.reason != NO_ENTRY else logger.debug
        say("request put off", pod=request.pod, node=request.node_name, reason=error.reason, detail=error.detail)

    def _told(self, outcome: str, why: str, request: Request, since: float, **values: str) -> None:
        _answered.labels(outcome, why).inc()
        _seconds.observe(self._clock.monotonic() - since)
        say = logger.info if outcome == "issued" else logger.warning
        say(f"certificate {outcome}", reason=why, pod=request.pod, node=request.node_name, **values)


def pod_certificates(
    config: ControllerConfig, kube: KubeClient, clock: Clock, may_act: Callable[[], bool]
) -> PodCertificates | None:
    """With a connection of its own to the server: what becomes of others' calls is nothing to it."""
    if config.pod_certificates is None:
        return None
    channel = AdminChannel(config.server, clock)
    api = PodCertificateApi(channel, trust_domain=config.domain, cluster=config.cluster)
    return PodCertificates(config=config.pod_certificates, kube=kube, api=api, clock=clock, may_act=may_act)
