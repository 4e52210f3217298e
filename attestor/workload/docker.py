"""Workload attestation from what Docker or podman says of the caller's container.

Which container it is says the kernel (`attestor.workload.container`); the engine is asked for that id, and must say
that this very container runs. That is enough: no process enters another container's cgroup without being root there.
A container of a login user is asked for at that user's own podman alone, and only where its user is named in
`rootless_uids`: he runs the program that answers, so he chooses what it says.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pydantic import Field, field_validator

from attestor.workload.container import Container, find_container
from attestor.workload.engine import Engine, Inspected
from ca.errors import Unavailable
from ca.identity.selector import Selector
from ca.ports import Finding, Process, WorkloadAttestorPlugin
from ca.runtime.config import StrictModel
from ca.runtime.findings import failed, ok, warning
from ca.runtime.notes import note
from ca.runtime.threads import to_thread

NAME = "docker"
MAX_SELECTORS = 512
MAX_SELECTOR_CHARACTERS = 4096
MAX_REMEMBERED = 1024
START_SECONDS = 0.1
"""Between two looks at a container that is starting: its first process may be faster than the engine's records."""

_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Find = Callable[[int], Container | None]
Key = tuple[int | None, str]


class Config(StrictModel):
    """Which engines to ask, and what of their answers becomes selectors."""

    docker_socket_path: Path | None = Field(
        default=Path("/var/run/docker.sock"), description="Docker's socket; null where there is no Docker."
    )
    podman_socket_path: Path | None = Field(
        default=Path("/run/podman/podman.sock"), description="The socket of root's podman; null where there is none."
    )
    podman_socket_path_template: str = Field(
        default="/run/user/%d/podman/podman.sock",
        description="The socket of a login user's podman; `%d` stands for the user id, exactly once.",
    )
    rootless_uids: tuple[int, ...] = Field(
        default=(),
        max_length=64,
        description="Login users whose podman is believed. Each of them can give the containers in his session, and so "
        "every program of his, any `docker:` selector there is.",
    )
    env: tuple[str, ...] = Field(
        default=(),
        max_length=64,
        description="Names of environment variables that become `docker:env:` selectors; others, which may be secrets, "
        "are not kept.",
    )
    timeout_seconds: float = Field(default=3.0, gt=0, le=60, description="What an engine may take for its answer.")
    cache_seconds: float = Field(
        default=2.0, ge=0, le=60, description="How long an engine's answer is used for other processes of a container."
    )

    @field_validator("podman_socket_path_template")
    @classmethod
    def _one_uid(cls, value: str) -> str:
        if value.count("%d") != 1 or value.count("%") != 1:
            raise ValueError("`%d`, for the user id, must be in it once, and no other `%`")
        return value

    @field_validator("env")
    @classmethod
    def _names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not _ENV_NAME.fullmatch(name):
                raise ValueError(f"`{name}` is no name of an environment variable")
        return value


class DockerAttestor:
    """Finds `docker:` selectors. A process in no container, or in one that no engine here knows, has none.

    Raises Unavailable: ENGINE_MISSING, ENGINE_ANSWER, CONTAINER_NOT_RUNNING, HTTP_UNREACHABLE, HTTP_TOO_LARGE.
    """

    def __init__(
        self, config: Config, *, find: Find = find_container, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._find = find
        self._monotonic = monotonic
        paths = (config.docker_socket_path, config.podman_socket_path)
        self._engines = [Engine(path, timeout_seconds=config.timeout_seconds) for path in paths if path is not None]
        self._rootless: dict[int, Engine] = {}
        self._asking: dict[Key, asyncio.Task[frozenset[Selector]]] = {}
        self._known: OrderedDict[Key, tuple[float, frozenset[Selector]]] = OrderedDict()

    async def attest(self, process: Process) -> frozenset[Selector]:
        process.ensure_alive()
        container = await to_thread(self._find, process.proc)
        found: frozenset[Selector] = frozenset()
        if container is None:
            note("container", "none: the process is in no container's cgroup")
        else:
            note("container", f"{container.container_id} ({container.found_in})")
            found = await self._selectors(container)
        process.ensure_alive()
        return found

    async def check(self) -> Sequence[Finding]:
        """Implements ca.ports.Checked: whether the engines answer. One of them will do; those of login users come and
        go with their sessions."""
        roots, own = self._engines, [self._engine_of(uid) for uid in self._config.rootless_uids]
        errors = await asyncio.gather(*map(_pinged, (*roots, *own)))
        met = dict(zip((*roots, *own), errors, strict=True))
        enough = any(met[engine] is None for engine in roots)
        return [
            *(_finding(engine, met[engine], failed) for engine in roots if not (enough and _is_missing(met[engine]))),
            *(_finding(engine, met[engine], warning) for engine in own),
        ]

    async def _selectors(self, container: Container) -> frozenset[Selector]:
        """Remembered for a moment, and asked for once by all who want it meanwhile."""
        key = (container.login_uid, container.container_id)
        expires, known = self._known.get(key, (0.0, frozenset()))
        if self._monotonic() < expires:
            note("engine", "answered a moment ago")
            return known
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.ensure_future(self._ask(container))
            task.add_done_callback(lambda task: self._answered(key, task))
        return await asyncio.shield(task)

    def _answered(self, key: Key, task: asyncio.Task[frozenset[Selector]]) -> None:
        self._asking.pop(key, None)
        if task.cancelled() or task.exception() is not None:
            return
        now = self._monotonic()
        self._known[key] = (now + self._config.cache_seconds, task.result())
        self._known.move_to_end(key)
        while self._known and (len(self._known) > MAX_REMEMBERED or next(iter(self._known.values()))[0] <= now):
            self._known.popitem(last=False)

    async def _ask(self, container: Container) -> frozenset[Selector]:
        missing: list[Unavailable] = []
        engines = self._engines_for(container)
        for engine in engines:
            try:
                inspected = await _once_running(engine, container.container_id, self._config.timeout_seconds)
            except Unavailable as error:
                if error.reason != "ENGINE_MISSING":
                    raise  # it may have been this one's
                missing.append(error)
                note("engine", f"nobody listens at {engine.path}")
                continue
            if inspected is not None:
                note("engine", f"{engine.path}: image `{inspected.image}`, {len(inspected.labels)} labels")
                return frozenset(Selector(NAME, value) for value in self._values(inspected))
            note("engine", f"{engine.path} knows no such container")
        if missing and len(missing) == len(engines):
            raise missing[0]
        return frozenset()

    def _engines_for(self, container: Container) -> list[Engine]:
        uid = container.login_uid
        if uid is None:
            return self._engines
        if uid not in self._config.rootless_uids:
            note("engine", f"it is login user {uid}'s, who is not in `rootless_uids`")
            return []
        return [self._engine_of(uid)]

    def _engine_of(self, uid: int) -> Engine:
        if uid not in self._rootless:
            path = Path(self._config.podman_socket_path_template.replace("%d", str(uid)))
            self._rootless[uid] = Engine(path, timeout_seconds=self._config.timeout_seconds, owner_uid=uid)
        return self._rootless[uid]

    def _values(self, inspected: Inspected) -> list[str]:
        values = [f"image_id:{inspected.image}"] if inspected.image else []
        if digest := _DIGEST.fullmatch(inspected.image_digest):  # podman leaves the algorithm out
            values.append(f"image_config_digest:sha256:{digest[1]}")
        values += [f"label:{key}:{value}" for key, value in inspected.labels.items()]
        values += [f"env:{line}" for line in inspected.env if line.partition("=")[0] in self._config.env]
        return _bounded(values)


async def _pinged(engine: Engine) -> Unavailable | None:
    """What stands against asking it."""
    try:
        await engine.ping()
    except Unavailable as error:
        return error
    return None


def _is_missing(error: Unavailable | None) -> bool:
    return error is not None and error.reason == "ENGINE_MISSING"


def _finding(engine: Engine, error: Unavailable | None, bad: Callable[[str, str, str], Finding]) -> Finding:
    what = f"engine at {engine.path}"
    return ok(what, "it answers") if error is None else bad(what, f"{error.detail} ({error.reason})", error.hint)


async def _once_running(engine: Engine, container_id: str, timeout_seconds: float) -> Inspected | None:
    """The engine's answer once the container runs. Raises Unavailable when it does not."""
    end = time.monotonic() + timeout_seconds
    while True:
        inspected = await engine.inspect(container_id)
        if inspected is None or inspected.running:
            return inspected
        if time.monotonic() >= end:
            raise Unavailable(
                f"the container engine at {engine.path} says that it is not running", reason="CONTAINER_NOT_RUNNING"
            )
        await asyncio.sleep(START_SECONDS)


def _bounded(values: Iterable[str]) -> list[str]:
    """Whoever starts a container may give it labels without end, and with characters that terminals obey: what is left
    out is no selector."""
    kept = [value for value in values if len(value) <= MAX_SELECTOR_CHARACTERS and value.isprintable()]
    if len(kept) > MAX_SELECTORS:
        note("selectors", f"{len(kept)} are more than {MAX_SELECTORS}: labels are left out")
        kept = [value for value in kept if not value.startswith("label:")][:MAX_SELECTORS]
    return kept


plugin = WorkloadAttestorPlugin(name=NAME, config=Config, attestor=DockerAttestor)
