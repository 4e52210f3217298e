"""`caadmin doctor agent`: looks at everything that this agent needs, and says of each how it is and what mends it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

from ca.errors import BurgeeError, Code
from ca.identity.bundle import TrustBundle
from ca.ports import Checked, Clock, Finding, FindingLevel
from ca.runtime.addresses import split_address
from ca.runtime.findings import failed, ok, warning
from ca.runtime.log import get
from sds import doctor_checks as checks
from sds.cache import Cache
from sds.condition import Condition
from sds.config import AgentConfig
from sds.first_trust import ServerTrust, read_source
from sds.node_attest import NodeCalls
from sds.state import AgentStore, AgentSvid

DIAL_SECONDS = 3.0
CHECK_SECONDS = 10.0
"""For one attestor's own check."""

log = get("sds.doctor")


class Doctor:
    """Reads and changes nothing. `plugins` are the attestors by what they are called here."""

    def __init__(
        self,
        *,
        config: AgentConfig,
        clock: Clock,
        cache: Cache,
        condition: Condition,
        trust: ServerTrust,
        store: AgentStore,
        svid: Callable[[], AgentSvid | None],
        plugins: Mapping[str, object],
        attestors: Iterable[str],
    ) -> None:
        self._config = config
        self._clock = clock
        self._cache = cache
        self._condition = condition
        self._trust = trust
        self._store = store
        self._svid = svid
        self._plugins = plugins
        self._attestors = frozenset(attestors)
        self._calls = NodeCalls(config=config, trust=trust, clock=clock)

    async def findings(self) -> list[Finding]:
        """All of them, in the order in which things depend on each other."""
        servers = asyncio.gather(*(self._dial(server) for server in self._config.servers))
        groups = await asyncio.gather(servers, self._server(), self._source(), *self._own_checks())
        return [
            *_some_reachable(groups[0]),
            *(finding for group in groups[1:3] for finding in group),
            *checks.identity(self._svid(), self._condition, self._clock.now()),
            *await asyncio.to_thread(self._places),
            *(finding for group in groups[3:] for finding in group),
            *self._holdings(),
        ]

    async def _dial(self, server: str) -> Finding:
        """Whether anything accepts a connection there."""
        host, port = split_address(server)
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                _, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError) as error:
            why = getattr(error, "strerror", None) or f"no answer within {DIAL_SECONDS:g} s"
            hint = "is the server running, is the address in `servers` right, is a firewall between?"
            return failed("reachability", f"`{server}`: {why}", hint)
        writer.close()
        return ok("reachability", f"`{server}` accepts connections")

    async def _server(self) -> list[Finding]:
        """Whether it is the server that we believe, and what it says of the time and of its bundle."""
        held = self._trust.bundle
        if held is None:
            return [failed("server", "there is no trust bundle to verify a server with", "see the first trust")]
        try:
            served, offset = await self._calls.look()
        except BurgeeError as error:
            return [failed("server", f"{error.detail} ({error.reason})", error.hint)]
        found = [ok("server", f"it is the server of `{self._config.trust_domain}`")]
        found.append(_clock(offset))
        return [*found, checks.bundle(self._trust.bundle or held, served)]

    async def _source(self) -> list[Finding]:
        """Whether a node could begin here today."""
        what, trust = "first trust", self._config.trust
        if trust.insecure_bootstrap:
            hint = "configure `trust.bundle_file` or `trust.bundle_url`"
            return [warning(what, "the first server that answers is believed", hint)]
        try:
            found = await read_source(trust, self._config.domain)
        except BurgeeError as error:
            return [warning(what, f"{error.detail} ({error.reason})", error.hint)]
        if (held := self._trust.bundle) is not None and not _common(found, held):
            hint = "put the server's current bundle there: `caadmin bundle show` prints it"
            return [warning(what, "the source has no authority of today's bundle: it is out of date", hint)]
        return [ok(what, "the source has authorities of today's bundle")]

    def _places(self) -> list[Finding]:
        config = self._config
        grouped = config.admin_socket.admin_group is not None
        found = [
            checks.workload_socket(config.workload_socket),
            checks.private("admin socket", config.admin_socket_path, group=grouped),
            checks.private("data directory", config.data_dir),
            checks.processes(),
        ]
        problem = self._store.cache_problem
        if problem is not None:
            found.append(warning("cache", f"{problem.detail} ({problem.reason})", problem.hint))
        return found

    def _own_checks(self) -> list[Awaitable[Sequence[Finding]]]:
        return [_checked(name, plugin) for name, plugin in self._plugins.items() if isinstance(plugin, Checked)]

    def _holdings(self) -> list[Finding]:
        if not self._cache.ready:
            return []
        return [checks.entries(self._cache.entries(), self._attestors), checks.lives(self._cache.svids())]


def _some_reachable(dialled: Sequence[Finding]) -> list[Finding]:
    """One server is enough; another one that is away is worth knowing all the same."""
    if all(finding.level is FindingLevel.FAILED for finding in dialled):
        return list(dialled)
    return [
        replace(finding, level=FindingLevel.WARNING) if finding.level is FindingLevel.FAILED else finding
        for finding in dialled
    ]


def _clock(offset: timedelta | BurgeeError) -> Finding:
    if isinstance(offset, timedelta):
        return checks.clock(offset)
    if offset.code is Code.UNIMPLEMENTED:
        return warning("clock", "this server does not tell its time", "compare the clocks by hand")
    return failed("clock", f"{offset.detail} ({offset.reason})", offset.hint)


def _common(one: TrustBundle, other: TrustBundle) -> bool:
    ours = {authority.certificate for authority in one.x509_authorities}
    return bool(ours & {authority.certificate for authority in other.x509_authorities})


async def _checked(name: str, plugin: Checked) -> Sequence[Finding]:
    """A plugin's own findings; its own fault is one as well."""
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return [_named(name, finding) for finding in await plugin.check()]
    except TimeoutError:
        return [failed(name, f"its check was not over within {CHECK_SECONDS:g} s")]
    except BurgeeError as error:
        return [failed(name, f"{error.detail} ({error.reason})", error.hint)]
    except Exception as error:
        log.exception("an attestor's check crashed", reason="CHECK_FAILED", attestor=name)
        return [failed(name, f"its check crashed: {type(error).__name__}", "the agent's log has more")]


def _named(name: str, finding: Finding) -> Finding:
    return replace(finding, what=f"{name}: {finding.what}")
