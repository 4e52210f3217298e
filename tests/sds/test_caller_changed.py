"""A process that becomes another user or program keeps nothing of what it connected as, and can come back as it is."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from ca.runtime.config import from_values
from sds.agent import Agent
from sds.config import AgentConfig
from sds.peer import PinnedProcess
from sds.program import HIDDEN, program_of_pid
from sds.workloads import FRESH_SECONDS
from tests.attestor.processes import copy_of_sleep, runs
from tests.sds.lab import Lab, Me, entry, eventually, status_of
from tests.sds.test_agent import create, held, started, values
from tests.support.pair import free_port
from tests.support.server import RunningServer, running_server
from tests.support.workload_client import WorkloadClient

ROOT = Path(__file__).parents[2]
SCRIPT = str(Path(__file__).with_name("changing_process.py"))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
CHANGED = ("UNAUTHENTICATED", "the caller began another program after it connected")


@pytest.fixture
def home() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="bg-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    async with running_server(bind_port=free_port()) as running:
        yield running


@pytest.fixture
async def agent(home: Path, server: RunningServer) -> AsyncIterator[Agent]:
    (home / "token").write_text(await server.token())
    async with started(from_values(values(home, server), AgentConfig)) as running:
        await eventually(lambda: running.cache.ready)
        yield running


class Accomplice:
    """A process that connected for us, and our copy of its connection."""

    def __init__(self, process: subprocess.Popen[bytes], line: socket.socket, connection: socket.socket) -> None:
        self.process = process
        self.connection = connection
        self._line = line

    def become_the_program(self) -> None:
        self._line.send(b"!")
        assert runs(self.process.pid, "web")


@contextmanager
def accomplice(agent: Agent, program: Path) -> Iterator[Accomplice]:
    ours, theirs = socket.socketpair()
    arguments = [sys.executable, SCRIPT, "exec", str(agent.config.workload_socket), str(program)]
    process = subprocess.Popen(arguments, stdin=theirs, cwd=ROOT, env=ENVIRONMENT)
    theirs.close()
    try:
        ours.settimeout(20)
        connection = socket.socket(fileno=socket.recv_fds(ours, 1, 1)[1][0])
        yield Accomplice(process, ours, connection)
        connection.close()
    finally:
        process.kill()
        process.wait()
        ours.close()


@asynccontextmanager
async def speaking_on(connection: socket.socket, home: Path) -> AsyncIterator[WorkloadClient]:
    """A client whose bytes go over a connection that another process made; it cannot make a second one."""
    upstream: list[socket.socket] = [connection]

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not upstream:
            writer.close()
            return
        back, forth = await asyncio.open_unix_connection(sock=upstream.pop())
        await asyncio.wait(
            [asyncio.create_task(pump(reader, forth)), asyncio.create_task(pump(back, writer))],
            return_when=asyncio.FIRST_COMPLETED,
        )
        writer.close()
        forth.close()

    listener = await asyncio.start_unix_server(relay, home / "relay.sock")
    async with WorkloadClient(str(home / "relay.sock")) as client:
        yield client
    listener.close()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


def connections(agent: Agent) -> int:
    return len(agent.workload_endpoint.gate.connections())


async def test_who_becomes_a_program_after_connecting_does_not_get_its_identity(
    home: Path, agent: Agent, server: RunningServer
):
    """The identity of a path alone, for whoever holds a copy of the connection of a process that then executes it."""
    program = copy_of_sleep(home / "web")
    await held(agent, await create(agent, server, "/web", f"path:{program}"))
    with accomplice(agent, program) as it:
        async with speaking_on(it.connection, home) as client:
            assert await status_of(client.x509_svids()) == ("PERMISSION_DENIED", "no identity issued")
            it.become_the_program()
            assert await status_of(client.x509_svids()) == CHANGED
            await eventually(lambda: connections(agent) == 0)


async def test_an_open_stream_ends_when_its_process_becomes_another_program(
    home: Path, agent: Agent, server: RunningServer
):
    program = copy_of_sleep(home / "web")
    await held(agent, await create(agent, server, "/me"), await create(agent, server, "/web", f"path:{program}"))
    with accomplice(agent, program) as it:
        async with speaking_on(it.connection, home) as client:
            stream = client.x509_svids()
            assert [svid.spiffe_id for svid in (await stream.read()).svids] == ["spiffe://example.org/me"]
            it.become_the_program()
            assert await status_of(stream) == CHANGED
            await eventually(lambda: connections(agent) == 0)


@pytest.mark.skipif(os.getuid() != 0, reason="becoming another user takes root: run the tests as root")
async def test_a_daemon_that_drops_its_privileges_after_connecting_is_served_as_what_it_is(
    agent: Agent, server: RunningServer
):
    """Its client library knows nothing of that: it asks again on the channel that it has."""
    await held(agent, await create(agent, server, "/root"), await create(agent, server, "/daemon", "uid:54321"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, SCRIPT, "setuid", str(agent.config.workload_socket), "54321"),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    seen: list[str] = []
    try:
        async with asyncio.timeout(30):
            while not seen or seen[-1] != "spiffe://example.org/daemon":
                seen.append((await process.stdout.readline()).decode().strip())
    finally:
        process.kill()
        await process.wait()
    assert seen[0] == "spiffe://example.org/root"
    refused = seen.index("UNAUTHENTICATED the caller changed its user or group after it connected")
    assert "spiffe://example.org/root" not in seen[refused:]


# --- without sockets --------------------------------------------------------------------------------------------------


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    lab = Lab(interval=0.05)
    lab.snapshot(entry("a"))
    runner = asyncio.create_task(lab.workloads.run())
    yield lab
    runner.cancel()
    lab.workloads.close()


async def test_a_call_within_the_freshness_of_an_attestation_sees_the_change_too(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
):
    lab.workloads.again._interval = 3600
    own = program_of_pid(os.getpid())
    me = Me(program=own)
    async with lab.workloads.session(me, needs_svid=False):
        pass
    assert lab.attested == 1
    monkeypatch.setattr("sds.peer.program_of", lambda proc: (own[0], own[1] + 1))
    with pytest.raises(Exception, match="another program") as refused:
        async with lab.workloads.session(me, needs_svid=False):
            pass
    assert getattr(refused.value, "reason", "") == "CALLER_CHANGED"
    assert lab.attested == 1, f"it was within {FRESH_SECONDS} s"
    await eventually(lambda: me.closed == ["CALLER_CHANGED"])


async def test_every_stream_of_a_changed_process_ends_and_says_why(lab: Lab, monkeypatch: pytest.MonkeyPatch):
    own = program_of_pid(os.getpid())
    me = Me(program=own)

    async def stream() -> None:
        async with lab.workloads.session(me, needs_svid=False) as subscription:
            while True:
                await subscription.changed()

    streams = [asyncio.create_task(stream()) for _ in range(2)]
    await eventually(lambda: lab.cache.streams() == 2)
    monkeypatch.setattr("sds.peer.program_of", lambda proc: (own[0], own[1] + 1))
    ends = await asyncio.wait_for(asyncio.gather(*streams, return_exceptions=True), 5)
    assert [getattr(end, "reason", "") for end in ends] == ["CALLER_CHANGED"] * 2
    await eventually(lambda: me.closed == ["CALLER_CHANGED"] * 2)


async def test_what_a_process_connected_as_before_and_after_are_two(lab: Lab):
    """An old connection that is no good any more takes nothing away from a new one."""
    own = program_of_pid(os.getpid())
    async with lab.workloads.session(Me(program=own), needs_svid=False) as good:
        for other in ((own[0], own[1] + 1), HIDDEN):
            with pytest.raises(Exception, match="another program"):
                async with lab.workloads.session(Me(program=other), needs_svid=False):
                    pass
        good.check()


def test_the_program_is_the_file_that_stat_shows(tmp_path: Path):
    program = copy_of_sleep(tmp_path / "web")
    process = subprocess.Popen([str(program), "60"])
    try:
        found = program.stat()
        assert program_of_pid(process.pid) == (found.st_dev, found.st_ino)
        pinned = PinnedProcess.pin(pid=process.pid, uid=0, gid=0, program=program_of_pid(process.pid))
        program.unlink()  # an upgrade replaces the file of a running program
        copy_of_sleep(tmp_path / "web")
        pinned.ensure_same_program()
    finally:
        process.kill()
        process.wait()
    pinned.ensure_same_program()  # it is gone, which is another error
    pinned.close()
    assert program_of_pid(process.pid) == HIDDEN


def test_a_process_that_hides_is_not_taken_for_one_that_changed(monkeypatch: pytest.MonkeyPatch):
    own = program_of_pid(os.getpid())
    pinned = PinnedProcess.pin(pid=os.getpid(), uid=0, gid=0, program=own)
    monkeypatch.setattr("sds.peer.program_of", lambda proc: HIDDEN)
    pinned.ensure_same_program()
    pinned.close()
