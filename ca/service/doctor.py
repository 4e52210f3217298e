"""`caadmin doctor server`: looks at everything that this server needs, and says how it is and what mends it."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ca.authority.state import AuthorityKind, AuthorityState, find
from ca.errors import BurgeeError
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.ports import Checked, Clock, Finding
from ca.runtime import log, plugins
from ca.runtime.findings import failed, ok, warning
from ca.runtime.health import Health, Problem
from ca.runtime.server_config import ServerConfig
from ca.service import doctor_entries as checks
from ca.service.issuance import IssueSettings
from ca.service.peers import AgentTable
from ca.service.rotation import AuthorityManager
from ca.service.upstream_link import UpstreamLink
from ca.store.store import Store

CHECK_SECONDS = 10.0
"""For one plugin's own check; an upstream rehearses for longer."""
UPSTREAM_SECONDS = 45.0

logger = log.get("doctor")


class ServerDoctor:
    """Reads and changes nothing; an upstream's rehearsal leaves nothing behind."""

    def __init__(
        self,
        *,
        config: Callable[[], ServerConfig],
        trust_domain: TrustDomain,
        health: Health,
        store: Store,
        agents: AgentTable,
        heard: Callable[[SpiffeId], bool],
        manager: AuthorityManager,
        settings: Callable[[], IssueSettings],
        upstream: UpstreamLink | None,
        verifiers: Mapping[str, object],
        istio: Callable[[], Checked | None],
        address: Callable[[], tuple[str, int]],
        clock: Clock,
    ) -> None:
        self._config = config
        self._trust_domain = trust_domain
        self._health = health
        self._store = store
        self._agents = agents
        self._heard = heard
        self._manager = manager
        self._settings = settings
        self._upstream = upstream
        self._verifiers = verifiers
        self._istio = istio
        self._address = address
        self._clock = clock

    async def findings(self) -> list[Finding]:
        """All of them, in the order in which things depend on each other."""
        parts = {**self._verifiers, "istio": self._istio()}
        own = [_checked(name, plugin) for name, plugin in parts.items() if isinstance(plugin, Checked)]
        entries, upstream, *attestors = await asyncio.gather(self._entries(), self._upstream_check(), *own)
        return [
            *self._state(),
            self._listening(),
            *await asyncio.to_thread(self._places),
            *self._authorities(),
            *upstream,
            *(finding for group in attestors for finding in group),
            checks.agents(list(self._agents.agents.values()), self._heard, self._clock.now()),
            *entries,
        ]

    def _state(self) -> list[Finding]:
        """Store, keys and whatever else the server looks after all the time."""
        problems = [_problem(name, problem) for name, problem in self._health.problems().items()]
        warned = [
            warning(name, f"{problem.detail} ({problem.reason})", problem.hint)
            for name, problem in self._health.warnings().items()
        ]
        return [*problems, *warned] or [ok("health", "store, keys, authority and the server's own SVID are well")]

    def _listening(self) -> Finding:
        host, port = self._address()
        if not port:
            return failed("listener", "agents cannot connect yet", "the server waits for its keys: see above")
        return ok("listener", f"agents are awaited at `{host}:{port}`")

    def _places(self) -> list[Finding]:
        config = self._config()
        grouped = config.admin_socket.admin_group is not None
        return [
            _private("admin socket", config.admin_socket_path, 0o007 if grouped else 0o077),
            _private("data directory", config.data_dir, 0o077),
        ]

    def _authorities(self) -> list[Finding]:
        found, now = [], self._clock.now()
        for kind in (AuthorityKind.X509, AuthorityKind.JWT):
            active = find(self._manager.authorities, AuthorityState.ACTIVE, kind)
            what = f"{kind.value} authority"
            if active is None:
                found.append(failed(what, "none is active: nothing is signed", "`caadmin ca status` shows them"))
            elif active.not_before > now:
                hint = "was the clock of this machine set back? set it, and keep it set (NTP)"
                found.append(failed(what, f"begins at {active.not_before:%Y-%m-%d %H:%M:%SZ}, after now", hint))
            else:
                found.append(ok(what, f"one is active until {active.not_after:%Y-%m-%d %H:%M:%SZ}"))
        return found

    async def _upstream_check(self) -> Sequence[Finding]:
        if self._upstream is None:
            return []
        return await _within(f"upstream {self._upstream.name}", self._upstream, UPSTREAM_SECONDS)

    async def _entries(self) -> list[Finding]:
        config = self._config()
        try:
            every = await self._store.entries.all()
        except BurgeeError as error:
            return [failed("entries", f"{error.detail} ({error.reason})", error.hint)]
        found = checks.entries(
            every,
            agents=self._agents.agents,
            trust_domain=self._trust_domain,
            types=plugins.names(plugins.WORKLOAD_ATTESTORS),
            node_types={*plugins.names(plugins.NODE_ATTESTORS), "spiffe_id"},
            now=self._clock.now(),
            token_issuers=config.node_attestors.get("oidc", {}).get("issuers", {}),
        )
        return [*found, *checks.lives(self._settings(), config.ca_ttl_seconds, every)]


async def _checked(name: str, plugin: Checked) -> Sequence[Finding]:
    return await _within(name, plugin, CHECK_SECONDS)


async def _within(name: str, plugin: Checked, seconds: float) -> Sequence[Finding]:
    """A plugin's own findings; its own fault is one as well."""
    try:
        async with asyncio.timeout(seconds):
            return [_named(name, finding) for finding in await plugin.check()]
    except TimeoutError:
        return [failed(name, f"its check was not over within {seconds:g} s")]
    except BurgeeError as error:
        return [failed(name, f"{error.detail} ({error.reason})", error.hint)]
    except Exception as error:
        logger.exception("a plugin's check crashed", reason="CHECK_FAILED", plugin=name)
        return [failed(name, f"its check crashed: {type(error).__name__}", "the server's log has more")]


def _named(name: str, finding: Finding) -> Finding:
    return Finding(what=f"{name}: {finding.what}", level=finding.level, detail=finding.detail, hint=finding.hint)


def _problem(name: str, problem: Problem) -> Finding:
    return failed(name, f"{problem.detail} ({problem.reason})", problem.hint)


def _private(what: str, path: Path, forbidden: int) -> Finding:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        return failed(what, f"`{path}`: {error.strerror}", "it must exist and belong to the server's user")
    if mode & forbidden:
        hint = f"chmod {mode & ~forbidden:04o} {path}"
        return failed(what, f"`{path}` has mode {mode:04o}: others can reach it", hint)
    return ok(what, f"`{path}` has mode {mode:04o}")
