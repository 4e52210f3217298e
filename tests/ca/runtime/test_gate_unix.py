"""The gate on a Unix socket: who is calling, who is turned away, and what a stranger behind the gate gets."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import grpc
import pytest

from ca.errors import ConfigError, FailedPrecondition, Unauthenticated
from ca.runtime import gate_unix
from ca.runtime.gate import Gate, GateLimits, PeerCred
from ca.runtime.peers import Peer, PeerTable, read_peer_cred
from tests.ca.runtime.rig import call, family, rig, until

REPO = Path(__file__).resolve().parents[3]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_every_shape_of_method_sees_the_verified_caller() -> None:
    expected = {"transport": "unix", "pid": os.getpid(), "uid": os.getuid(), "svid": None}
    async with rig() as it, it.unix_channel() as channel:
        assert json.loads(await call(channel, "Who")) == expected
        for method in ("Watch", "Written"):
            stream = channel.unary_stream(f"/test.Probe/{method}")(b"")
            assert json.loads(await stream.read()) == expected
            stream.cancel()
        echo = channel.stream_stream("/test.Probe/Echo")()
        await echo.write(b"hello")
        assert await echo.read() == b"hello"
        echo.cancel()
        (peer,) = it.gate.connections()
        assert (peer.listener, peer.remote_address) == ("local", f"pid:{os.getpid()}")


async def test_the_caller_is_pinned_by_a_pidfd_that_lives_as_long_as_its_connection() -> None:
    async with rig() as it:
        async with it.unix_channel() as channel:
            await call(channel, "Who")
            (peer,) = it.gate.connections()
            borrowed = peer.pidfd
            assert borrowed is not None
            assert f"Pid:\t{os.getpid()}" in Path(f"/proc/self/fdinfo/{borrowed}").read_text()
            own = peer.dup_pidfd()
            assert own is not None
            assert own != borrowed
        await until(lambda: peer.closed)
        assert peer.pidfd is None
        assert "Pid:" in Path(f"/proc/self/fdinfo/{own}").read_text()
        os.close(own)
        with pytest.raises(Unauthenticated) as gone:
            peer.dup_pidfd()
        assert gone.value.reason == "PEER_GONE"


async def test_no_descriptor_is_left_of_connections_however_they_end() -> None:
    async with rig(admit=lambda cred: True, limits=GateLimits(max_connections_per_uid=3)) as it:
        async with it.unix_channel() as channel:
            await call(channel, "Who")
        await until(lambda: not it.gate.connections())
        before = open_files()
        for ending in ("eof", "closed by us", "over the limit", "garbage"):
            sockets = []
            for _ in range(6 if ending == "over the limit" else 3):
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(str(it.unix))
                sockets.append(sock)
                if ending == "garbage":
                    sock.send(b"GET / HTTP/1.1\r\n\r\n")
            wanted = {"over the limit": "CONNECTION_LIMIT_OF_CALLER", "garbage": "PROTOCOL_UNKNOWN"}.get(ending)
            await until(lambda wanted=wanted: wanted in it.reasons() if wanted else len(it.gate.connections()) == 3)
            if ending == "closed by us":
                it.gate.close_peers(lambda peer: True, "TEST")
            for sock in sockets:
                sock.close()
            await until(lambda: not it.gate.connections())
            await until(lambda: open_files() <= before)


async def test_a_released_name_that_somebody_binds_again_is_nobody() -> None:
    async with rig() as it:
        table = it.gate._table
        async with it.unix_channel() as channel:
            await call(channel, "Who")
            (name,) = table._peers
        await until(lambda: not len(table))
        await until(lambda: f"@{name}" not in Path("/proc/net/unix").read_text())
        assert await through(it.private, b"\0" + name.encode()) == "PEER_UNKNOWN"


async def test_a_live_name_cannot_be_bound_twice_and_is_unregistered_before_its_socket_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with rig() as it:
        async with it.unix_channel() as channel:
            await call(channel, "Who")
            (name,) = it.gate._table._peers
            assert len(name) * 4 >= 128
            with socket.socket(socket.AF_UNIX) as thief, pytest.raises(OSError, match="in use"):
                thief.bind(b"\0" + name.encode())
            bound_at_release = []
            real = it.gate._table.unregister

            def release(released: str) -> None:
                real(released)
                bound_at_release.append(f"@{released}" in Path("/proc/net/unix").read_text())

            monkeypatch.setattr(it.gate._host, "release_name", release)
        await until(lambda: bound_at_release)
    assert bound_at_release == [True]


STRANGERS: list[tuple[str, bytes | None]] = [
    ("unnamed", None),
    ("named", b"\0stranger"),
    ("prefix", b"\0unix-abstract:x"),
]


@pytest.mark.parametrize(("kind", "bind"), STRANGERS)
async def test_a_stranger_on_the_private_socket_is_refused_for_every_method(kind: str, bind: bytes | None) -> None:
    """We are the very uid that may reach the private directory (root, where the tests run as root)."""
    async with rig() as it:
        for method in ("/test.Probe/Who", "/test.Probe/Watch", "/grpc.health.v1.Health/Check", "/no.Such/Method"):
            assert await through(it.private, bind, method) == "PEER_UNKNOWN"


async def test_an_unknown_method_is_unimplemented_for_a_known_caller() -> None:
    async with rig() as it, it.unix_channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/no.Such/Method")(b"", timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert family(refused.value).reason == "UNKNOWN_METHOD"


async def through(private: Path, bind: bytes | None, method: str = "/test.Probe/Who") -> str:
    """Call the private server as a stranger would, from a socket bound to `bind`; gives the reason of the refusal."""
    relay = str(private.parent / "stranger.sock")
    loop = asyncio.get_running_loop()
    tasks = []
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = socket.socket(socket.AF_UNIX)
        if bind:
            sock.bind(bind)
        sock.setblocking(False)
        await loop.sock_connect(sock, str(private))
        back_reader, back_writer = await asyncio.open_unix_connection(sock=sock)
        writers.extend((writer, back_writer))
        tasks.extend([asyncio.create_task(pump(reader, back_writer)), asyncio.create_task(pump(back_reader, writer))])

    server = await asyncio.start_unix_server(serve, relay)
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"unix:{relay}", options=options) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(method)(b"", timeout=5)
    server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for writer in writers:
        writer.close()
        await writer.wait_closed()
    await server.wait_closed()
    os.unlink(relay)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    return family(refused.value).reason


async def test_a_caller_in_a_pid_namespace_we_cannot_see_is_refused() -> None:
    """The real thing: a gate in a PID namespace of its own, and we outside of it, whose pid it cannot express."""
    directory = Path(tempfile.mkdtemp(prefix="bg-"))
    script = textwrap.dedent(
        f"""
        import asyncio
        from ca.runtime import log
        from ca.runtime.gate import Gate
        log.configure("json")
        async def main():
            gate = Gate(grpc_socket="{directory}/none")
            await gate.listen_unix("local", "{directory}/pub/api.sock", mode=0o666, dir_mode=0o755)
            print("up", flush=True)
            await asyncio.sleep(60)
        asyncio.run(main())
        """
    )
    unshare = ["unshare", "--pid", "--fork", "--kill-child"]
    if os.geteuid():
        unshare += ["--user", "--map-current-user"]
    child = await asyncio.create_subprocess_exec(
        *unshare, sys.executable, "-c", script, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stderr is not None
    try:
        assert await asyncio.wait_for(child.stdout.readline(), 20) == b"up\n"
        reader, writer = await asyncio.open_unix_connection(f"{directory}/pub/api.sock")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        line = json.loads(await asyncio.wait_for(child.stderr.readline(), 5))
        assert line["reason"] == "PEER_PID_UNKNOWN"
    finally:
        child.kill()
        await child.communicate()  # until its pipes are at their end
        shutil.rmtree(directory)


def test_pid_zero_is_refused_by_the_reader_itself() -> None:
    class Outside:
        def getsockopt(self, level: int, option: int, size: int = 0) -> bytes:
            return bytes(12)

    with pytest.raises(Unauthenticated) as refused:
        read_peer_cred(Outside())  # type: ignore[arg-type]
    assert refused.value.reason == "PEER_PID_UNKNOWN"


def test_a_kernel_without_peer_pidfds_falls_back_to_opening_one() -> None:
    ours, theirs = socket.socketpair()

    class Old:
        def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
            if size == 0:
                raise OSError(92, "Protocol not available")
            return ours.getsockopt(level, option, size)

    cred = read_peer_cred(Old())  # type: ignore[arg-type]
    assert cred.pid == os.getpid()
    assert cred.pidfd is not None
    os.close(cred.pidfd)
    ours.close()
    theirs.close()


async def test_a_uid_that_is_not_admitted_is_closed_at_once_and_told_apart_in_the_metrics() -> None:
    seen: list[PeerCred] = []

    def nobody(cred: PeerCred) -> bool:
        seen.append(cred)
        return False

    async with rig(admit=nobody) as it:
        counts = []
        for _ in range(2):  # a loop opens a file of its own for the first client
            reader, writer = await asyncio.open_unix_connection(str(it.unix))
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
            await writer.wait_closed()
            await asyncio.sleep(0.05)
            counts.append(open_files())
        assert (seen[0].pid, seen[0].uid, seen[0].gid) == (os.getpid(), os.getuid(), os.getgid())
        assert "UID_NOT_ADMITTED" in it.reasons()
        assert counts[1] <= counts[0]


async def test_an_admission_that_fails_admits_nobody() -> None:
    def broken(cred: PeerCred) -> bool:
        raise KeyError(cred.uid)

    async with rig(admit=broken) as it:
        reader, writer = await asyncio.open_unix_connection(str(it.unix))
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        assert "ADMISSION_FAILED" in it.reasons()


async def test_out_of_files_callers_wait_and_are_served_when_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig() as it:
        (listener,) = it.gate._listeners
        real, failures = listener.sock, 2

        class Scarce:
            def accept(self) -> Any:
                nonlocal failures
                if failures:
                    failures -= 1
                    raise OSError(24, "Too many open files")
                return real.accept()

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

        monkeypatch.setattr(listener, "sock", Scarce())
        async with it.unix_channel() as channel:
            assert await call(channel, "Who")
        assert failures == 0
        monkeypatch.setattr(listener, "sock", real)


async def test_the_socket_and_its_directory_have_exactly_the_permissions_asked_for() -> None:
    async with rig() as it:
        assert stat.S_IMODE(it.unix.stat().st_mode) == 0o600
        assert stat.S_IMODE(it.unix.parent.stat().st_mode) == 0o700
        group = it.directory / "grp" / "api.sock"
        await it.gate.listen_unix("group", group, mode=0o660, dir_mode=0o750, gid=os.getgid())
        assert stat.S_IMODE(group.stat().st_mode) == 0o660
        assert stat.S_IMODE(group.parent.stat().st_mode) == 0o750
        with pytest.raises(FailedPrecondition) as open_directory:
            await it.gate.listen_unix("shared", "/tmp/burgee-never.sock")
        assert open_directory.value.reason == "NOT_PRIVATE"
        with pytest.raises(ConfigError):
            await it.gate.listen_unix("long", it.directory / ("x" * 108))


async def test_a_stale_socket_is_replaced_and_one_that_is_in_use_is_not() -> None:
    async with rig() as it:
        with pytest.raises(FailedPrecondition) as used:
            await it.gate.listen_unix("again", it.unix)
        assert used.value.reason == "ADDRESS_IN_USE"
        stale = it.unix.parent / "stale.sock"
        left = socket.socket(socket.AF_UNIX)
        left.bind(str(stale))
        left.close()
        await it.gate.listen_unix("fresh", stale)
        async with it.unix_channel(stale) as channel:
            assert await call(channel, "Who")
        plain = it.unix.parent / "file"
        plain.write_bytes(b"precious")
        with pytest.raises(FailedPrecondition):
            await it.gate.listen_unix("file", plain)
        assert plain.read_bytes() == b"precious"
    assert not stale.exists()


async def test_the_sockets_name_is_there_only_when_it_can_be_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig() as it:
        path, seen = it.unix.parent / "new.sock", []

        class Watched(socket.socket):
            def listen(self, backlog: int = 0, /) -> None:
                seen.append(path.exists())
                super().listen(backlog)
                seen.append(path.exists())

        monkeypatch.setattr(gate_unix.socket, "socket", Watched)
        await it.gate.listen_unix("new", path)
        assert seen == [False, False]
        monkeypatch.undo()
        async with it.unix_channel(path) as channel:
            assert await call(channel, "Who")
        assert sorted(os.listdir(path.parent)) == sorted({path.name, it.unix.name})
    assert not path.exists()


async def test_of_two_that_start_at_once_the_second_takes_nothing_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig() as it:
        path, name = it.unix.parent / "race.sock", os.link

        def after_somebody_else(source: Path, target: Path) -> None:
            monkeypatch.undo()
            name(it.unix, target)
            name(source, target)

        monkeypatch.setattr(os, "link", after_somebody_else)
        with pytest.raises(FailedPrecondition) as taken:
            await it.gate.listen_unix("race", path)
        assert taken.value.reason == "ADDRESS_IN_USE"
        assert path.stat().st_ino == it.unix.stat().st_ino
        assert sorted(os.listdir(path.parent)) == sorted({path.name, it.unix.name})


async def test_whoever_says_nothing_is_closed_after_the_first_bytes_timeout() -> None:
    async with rig(limits=GateLimits(first_bytes_timeout_seconds=0.05)) as it:
        for opening in (b"", b"PRI * HTTP/2.0\r\n"):
            reader, writer = await asyncio.open_unix_connection(str(it.unix))
            writer.write(opening)
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
        assert "FIRST_BYTES_TIMEOUT" in it.reasons()
        async with it.unix_channel() as channel:
            await call(channel, "Who")
            await asyncio.sleep(0.1)
            assert await call(channel, "Who"), "the timeout is for the first bytes alone"
            assert it.gate.connections()[0].connection < 10


async def test_the_limit_of_connections_holds_and_recovers() -> None:
    async with rig(limits=GateLimits(max_connections=2)) as it:
        held = [await asyncio.open_unix_connection(str(it.unix)) for _ in range(2)]
        await until(lambda: len(it.gate.connections()) == 2)
        reader, writer = await asyncio.open_unix_connection(str(it.unix))
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        assert "CONNECTION_LIMIT" in it.reasons()
        for _, held_writer in held:
            held_writer.close()
        await until(lambda: not it.gate.connections())
        async with it.unix_channel() as channel:
            assert await call(channel, "Who")


async def test_without_a_grpc_server_the_caller_is_closed_and_no_name_is_left(tmp_path: Path) -> None:
    async with rig() as it:
        gate = Gate(grpc_socket=tmp_path / "nobody.sock")
        path = it.directory / "pub" / "lonely.sock"
        await gate.listen_unix("lonely", path)
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        assert not len(gate._table)
        await gate.close()
    assert "BACKEND_UNAVAILABLE" in it.reasons()


def test_peers_made_by_hand_can_be_used_without_a_connection() -> None:
    peer = Peer(transport="unix", listener="admin", pid=1, uid=0, gid=0)
    peer.close("TEST")
    assert (peer.closed, peer.pidfd, peer.dup_pidfd()) == (False, None, None)
    table = PeerTable()
    name = table.register(peer)
    assert table.find(f"unix-abstract:{name}") is peer
    for stranger in ("", "unix:", f"unix:{name}", f"ipv4:{name}", "unix-abstract:", f"unix-abstract:{name}0"):
        with pytest.raises(Unauthenticated):
            table.find(stranger)
