"""The server as a program: configuration, start, stop, restart, and what it shows to the outside."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from ca.proto.burgee import admin_pb2
from ca.proto.spire import server_bundle_pb2
from ca.runtime.rpc import connect
from tests.support.server import Caller, entry, eventually, make_csr, running_server


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="bg-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def write_config(directory: Path, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "trust_domain": "example.org",
        "data_dir": str(directory / "d"),
        "bind_address": "127.0.0.1",
        "bind_port": 0,
        "metrics_address": "127.0.0.1:0",
        "log": {"format": "json"},
        **changes,
    }
    path = directory / "server.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


async def spawn(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ca.serve", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


async def finished(*arguments: str) -> tuple[int, str, str]:
    process = await spawn(*arguments)
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


class Program:
    """A server in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.ready: dict[str, Any] = {}
        self.lines: list[dict[str, Any]] = []

    async def wait_ready(self) -> None:
        assert self.process.stderr is not None
        async with asyncio.timeout(20):
            while not self.ready:
                text = await self.process.stderr.readline()
                assert text, "the server ended"
                line = json.loads(text)
                self.lines.append(line)
                if line["event"] == "ready":
                    self.ready = line

    async def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def program(config: Path) -> AsyncIterator[Program]:
    running = Program(await spawn("--config", str(config)))
    try:
        await running.wait_ready()
        yield running
    finally:
        await running.stop(signal.SIGKILL)


async def fetch(address: str, path: str) -> tuple[int, str]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split(b" ")[1]), body.decode()


class TestConfiguration:
    @pytest.mark.parametrize(
        ("changes", "part"),
        [
            ({"trust_domian": "x"}, "trust_domain"),
            ({"trust_domain": "Not Good"}, "trust_domain"),
            ({"ca_ttl_seconds": 3600, "x509_svid_ttl_seconds": 3600}, "set ca_ttl_seconds to 21600 or more"),
            ({"keys": {"plugin": "dsik"}}, "did you mean `disk`"),
            ({"node_attestors": {"join_tokn": {}}}, "did you mean `join_token`"),
            ({"node_attestors": {"join_token": {"ttl": 1}}}, "ttl"),
            ({"store": {"url": "mysql://x"}}, "mysql"),
            ({"admin_socket": {"admin_group": "nobody-has-this-group", "path": "/tmp/x/a.sock"}}, "nobody-has-this"),
        ],
    )
    async def test_mistakes_end_with_2_and_a_hint(self, directory: Path, changes: dict[str, Any], part: str) -> None:
        code, _, err = await finished("--config", str(write_config(directory, **changes)))
        assert code == 2, err
        assert part in err
        assert "Traceback" not in err

    async def test_a_duplicate_key_and_a_missing_file(self, directory: Path) -> None:
        path = write_config(directory)
        path.write_text(path.read_text() + "trust_domain: other.org\n")
        code, _, err = await finished("--config", str(path))
        assert (code, "twice" in err) == (2, True), err
        code, _, err = await finished("--config", str(directory / "nope.yaml"))
        assert (code, "nope.yaml" in err) == (2, True), err

    async def test_check_touches_nothing(self, directory: Path) -> None:
        code, out, _ = await finished("--config", str(write_config(directory)), "--check")
        assert (code, "is valid" in out) == (0, True)
        assert not (directory / "d").exists()

    @pytest.mark.parametrize("data_dir_exists", [False, True])
    @pytest.mark.parametrize("key", ["bind_port", "metrics_address"])
    async def test_a_port_in_use_changes_nothing(self, directory: Path, key: str, data_dir_exists: bool) -> None:
        data_dir = directory / "d"
        if data_dir_exists:
            data_dir.mkdir(mode=0o755)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            value: Any = port if key == "bind_port" else f"127.0.0.1:{port}"
            code, _, err = await finished("--config", str(write_config(directory, **{key: value})))
        assert (code, "(ADDRESS_IN_USE)" in err) == (1, True), err
        assert f"127.0.0.1:{port}" in err
        assert "Traceback" not in err
        assert data_dir.exists() == data_dir_exists
        assert not data_dir_exists or (list(data_dir.iterdir()), stat.S_IMODE(data_dir.stat().st_mode)) == ([], 0o755)

    @pytest.mark.parametrize("listens", [True, False])
    async def test_an_admin_socket_in_use_changes_nothing(self, directory: Path, listens: bool) -> None:
        """Nor does a file in its place; what a killed server left behind is replaced later on."""
        path = directory / "run" / "admin.sock"
        path.parent.mkdir(mode=0o700)
        with socket.socket(socket.AF_UNIX) as taken:
            if listens:
                taken.bind(str(path))
                taken.listen()
            else:
                path.write_text("somebody's")
            config = write_config(directory, admin_socket={"path": str(path)})
            code, _, err = await finished("--config", str(config))
        assert (code, "(ADDRESS_IN_USE)" in err) == (1, True), err
        assert not (directory / "d").exists()
        assert path.exists()


class TestLife:
    async def test_start_show_stop(self, directory: Path) -> None:
        bundle_file = directory / "bundle.pem"
        async with program(write_config(directory, bundle_file=str(bundle_file))) as running:
            address = running.ready["metrics_address"]
            assert (await fetch(address, "/live"))[0] == 200
            assert (await fetch(address, "/ready"))[0] == 200
            metrics = (await fetch(address, "/metrics"))[1]
            for name in ("burgee_authority_not_after_seconds", "burgee_server_svid_not_after_seconds", "burgee_issued"):
                assert name in metrics
            (root,) = x509.load_pem_x509_certificates(bundle_file.read_bytes())
            assert stat.S_IMODE(bundle_file.stat().st_mode) == 0o644
            channel = connect(running.ready["admin_socket"])
            bundle = await Caller(channel).bundles.GetBundle(server_bundle_pb2.GetBundleRequest())
            status = await Caller(channel).admin.GetStatus(admin_pb2.GetStatusRequest())
            await channel.close()
            assert [a.asn1 for a in bundle.x509_authorities] == [root.public_bytes(_der())]
            assert status.ready
            started = time.monotonic()
            assert await running.stop() == 0
            assert time.monotonic() - started < 5
        assert not (directory / "d" / "run" / "admin.sock").exists()

    async def test_a_killed_server_comes_back_as_the_same_authority(self, directory: Path) -> None:
        config = write_config(directory)
        bundles = []
        for number in (signal.SIGKILL, signal.SIGINT):
            async with program(config) as running:
                channel = connect(running.ready["admin_socket"])
                bundles.append(await Caller(channel).bundles.GetBundle(server_bundle_pb2.GetBundleRequest()))
                await channel.close()
                await running.stop(number)
        assert bundles[0] == bundles[1]

    async def test_a_second_server_on_the_same_data_is_refused(self, directory: Path) -> None:
        config = write_config(directory)
        async with program(config):
            code, _, err = await finished("--config", str(config))
        assert code == 1
        assert "Traceback" not in err
        assert re.search(r"error: .*(lock|use|another)", err), err

    async def test_private_files(self, directory: Path) -> None:
        async with program(write_config(directory)):
            data = directory / "d"
            for path in (data, data / "keys", data / "private", data / "run"):
                assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
            for path in (*(data / "keys").iterdir(), data / "store.sqlite3", data / "server-id"):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


class TestInside:
    async def test_a_new_server_svid_is_shown_without_dropping_connections(self) -> None:
        async with running_server() as server:
            identity, caller = await server.agent()
            await caller.bundles.GetBundle(server_bundle_pb2.GetBundleRequest())
            assert caller.tls is not None
            before = server.server.server_svid.material().chain_pem
            await server.server.server_svid.renew()
            assert server.server.server_svid.material().chain_pem != before
            await caller.bundles.GetBundle(server_bundle_pb2.GetBundleRequest())
            assert caller.tls.connections == 1
            again = await server.caller(identity)
            await again.bundles.GetBundle(server_bundle_pb2.GetBundleRequest())
            assert again.tls is not None
            assert again.tls.server_id == "spiffe://example.org/spire/server"

    async def test_the_server_svid_renews_itself_at_half_of_its_life(self) -> None:
        async with running_server(x509_svid_ttl_seconds=4) as server:
            first = server.server.server_svid.material().chain_pem
            assert not server.server.server_svid.due
            await eventually(lambda: server.server.server_svid.material().chain_pem != first)

    async def test_a_rotated_root_reaches_the_bundle_file_and_the_next_handshake(self, directory: Path) -> None:
        bundle_file = directory / "bundle.pem"
        settings = {"ca_ttl_seconds": 12, "x509_svid_ttl_seconds": 2, "agent_ttl_seconds": 2, "jwt_svid_ttl_seconds": 2}
        async with running_server(bundle_file=str(bundle_file), **settings) as server:
            first = server.server.authority.x509().issuer.authority_id

            def roots() -> int:
                return len(x509.load_pem_x509_certificates(bundle_file.read_bytes()))

            await eventually(lambda: roots() == 2)
            await eventually(lambda: server.server.authority.x509().issuer.authority_id != first)
            identity, caller = await server.agent()
            (made,) = await server.create(entry("/w", identity.path))
            from ca.proto.spire import server_svid_pb2

            params = [server_svid_pb2.NewX509SVIDParams(entry_id=made.id, csr=make_csr())]
            answer = await caller.svids.BatchNewX509SVID(server_svid_pb2.BatchNewX509SVIDRequest(params=params))
            assert answer.results[0].status.code == 0

    async def test_a_long_data_directory_still_has_its_private_socket(self, directory: Path) -> None:
        deep = directory / ("d" * 100)
        async with running_server(data_dir=str(deep), admin_socket={"path": str(directory / "r" / "a.sock")}) as server:
            await server.agent()

    async def test_a_lost_store_is_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ca.errors import Unavailable
        from ca.service.store_watch import StoreWatch

        async with running_server() as server:
            watch = StoreWatch(store=server.server.store, follower=server.server.follower, clock=server.server.clock)
            await watch.ask()
            assert watch.check() is None

            async def lost(revision: int, limit: int) -> object:
                raise Unavailable("the store cannot be reached or written now")

            monkeypatch.setattr(server.server.store.changes, "since", lost)
            await watch.ask()
            problem = watch.check()
            assert problem is not None
            assert problem.reason == "STORE_UNAVAILABLE"

    async def test_a_failed_start_leaves_nothing_behind(self, directory: Path) -> None:
        from ca.errors import BurgeeError

        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(BurgeeError):
                async with running_server(bind_port=taken.getsockname()[1], data_dir=str(directory / "d")):
                    pass
        async with running_server(data_dir=str(directory / "d")) as server:  # the store's lock was let go
            await server.agent()


def _der() -> Any:
    from cryptography.hazmat.primitives.serialization import Encoding

    return Encoding.DER
