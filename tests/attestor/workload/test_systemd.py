"""The systemd attestor over a real dbus-daemon: which unit a process is in, by pidfd or by number; what can fail."""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from attestor.workload.dbus import MAX_MESSAGE_BYTES
from attestor.workload.run import attest_all
from attestor.workload.systemd import MAX_IDLE, Config, SystemdAttestor
from ca.errors import ConfigError, Unavailable
from ca.runtime.config import from_values
from tests.attestor.processes import SLEEP, child, pinned
from tests.contracts.attestors import WorkloadSample
from tests.support.system_bus import StandInSystemd, SystemBus, Unit

WEB = Unit("web@1.service", "/etc/systemd/system/web@.service")
ITS = {"id:web@1.service", "fragment_path:/etc/systemd/system/web@.service"}


@cache
def _lasting() -> SystemBus:
    bus = SystemBus()
    bus.start()
    atexit.register(bus.close)
    atexit.register(shutil.rmtree, bus.directory, ignore_errors=True)
    StandInSystemd(bus, units={os.getpid(): WEB}).start()
    return bus


def contract_sample() -> WorkloadSample:
    return WorkloadSample(config={"bus_socket_path": str(_lasting().path)})


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[SystemBus]:
    made = SystemBus(tmp_path)
    made.start()
    yield made
    made.close()


@pytest.fixture
def systemd(bus: SystemBus) -> Iterator[StandInSystemd]:
    made = StandInSystemd(bus, units={os.getpid(): WEB})
    made.start()
    yield made
    made.close()


def attestor(bus: Path | SystemBus, **config: Any) -> SystemdAttestor:
    path = bus.path if isinstance(bus, SystemBus) else bus
    return SystemdAttestor(from_values({"bus_socket_path": str(path), **config}, Config))


async def values(made: SystemdAttestor, pid: int | None = None) -> set[str]:
    with pinned(pid or os.getpid()) as process:
        return {selector.value for selector in await made.attest(process)}


async def test_the_unit_and_its_file_by_pidfd(bus: SystemBus, systemd: StandInSystemd) -> None:
    assert await values(attestor(bus)) == ITS
    assert systemd.asked == ["GetUnitByPIDFD", "Get", "Get"]


async def test_a_systemd_without_pidfds_is_asked_by_number(bus: SystemBus, systemd: StandInSystemd) -> None:
    systemd.version = 252
    assert await values(attestor(bus)) == ITS
    assert systemd.asked == ["GetUnitByPIDFD", "GetUnitByPID", "Get", "Get"]


async def test_so_is_one_whose_policy_does_not_know_the_method(tmp_path: Path) -> None:
    bus = SystemBus(tmp_path, denied=("GetUnitByPIDFD",))
    bus.start()
    systemd = StandInSystemd(bus, units={os.getpid(): WEB})
    systemd.start()
    try:
        assert await values(attestor(bus)) == ITS
        assert systemd.asked == ["GetUnitByPID", "Get", "Get"]
    finally:
        systemd.close()
        bus.close()


async def test_by_number_only_where_both_count_alike(
    bus: SystemBus, systemd: StandInSystemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pid namespace of our own the caller's number is another process's for systemd."""
    systemd.version = 252
    made = attestor(bus)
    with pinned(os.getpid()) as process:
        monkeypatch.setattr("attestor.workload.systemd.os.getpid", lambda: 1)
        with pytest.raises(Unavailable) as caught:
            await made.attest(process)
    assert caught.value.reason == "SYSTEMD_PID_NAMESPACE"
    assert "GetUnitByPID" not in systemd.asked


async def test_a_process_in_no_unit_has_no_selectors(bus: SystemBus, systemd: StandInSystemd) -> None:
    made = attestor(bus)
    with child([SLEEP, "60"]) as process:
        assert await values(made, process.pid) == set()
        systemd.version = 252
        assert await values(made, process.pid) == set()
    with pinned(os.getpid()) as pin:
        systemd.units.clear()
        told = await attest_all({"systemd": made}, pin)
    assert [note.what for note in told.outcomes[0].notes] == ["unit"]


async def test_a_unit_without_a_file_has_its_id_alone(bus: SystemBus, systemd: StandInSystemd) -> None:
    systemd.units[os.getpid()] = Unit("session-3.scope")
    assert await values(attestor(bus)) == {"id:session-3.scope"}


async def test_a_property_of_another_type_is_no_answer(bus: SystemBus, systemd: StandInSystemd) -> None:
    systemd.units[os.getpid()] = Unit("web.service", 7)
    with pytest.raises(Unavailable) as caught:
        await values(attestor(bus))
    assert caught.value.reason == "SYSTEMD_ANSWER"


async def test_a_bus_without_systemd(bus: SystemBus) -> None:
    with pytest.raises(Unavailable) as caught:
        await values(attestor(bus))
    assert caught.value.reason == "SYSTEMD_ANSWER"


async def test_no_bus(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        await values(attestor(tmp_path / "none"))
    assert caught.value.reason == "SYSTEMD_UNREACHABLE"


async def test_a_systemd_that_hangs_is_given_up(bus: SystemBus, systemd: StandInSystemd) -> None:
    systemd.silent = True
    with pytest.raises(Unavailable) as caught:
        await values(attestor(bus, timeout_seconds=0.1))
    assert caught.value.reason == "SYSTEMD_UNREACHABLE"


async def test_connections_are_kept_and_a_bus_that_came_again_is_found(bus: SystemBus, systemd: StandInSystemd) -> None:
    made = attestor(bus)
    assert await asyncio.gather(*(values(made) for _ in range(12))) == [ITS] * 12
    assert 1 <= len(made._idle) <= MAX_IDLE
    kept = {connection.name for connection in made._idle}
    assert await values(made) == ITS
    assert {connection.name for connection in made._idle} == kept
    systemd.close()
    bus.close()
    bus.path.unlink(missing_ok=True)
    bus.start()
    again = StandInSystemd(bus, units={os.getpid(): WEB})
    again.start()
    try:
        assert await values(made) == ITS
    finally:
        again.close()


class Junk:
    """A socket that authenticates like a bus and then says `what`."""

    def __init__(self, path: Path, what: bytes, *, first: bytes = b"OK 1234\r\n") -> None:
        self._what, self._first = what, first
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, suppress(OSError):  # it hangs up when it has heard enough
            for answer in (self._first, b"AGREE_UNIX_FD\r\n", self._what):
                connection.recv(4096)
                connection.sendall(answer)
            connection.recv(4096)

    def close(self) -> None:
        self._listener.close()


HUGE = b"l\x02\x01\x01" + (MAX_MESSAGE_BYTES * 100).to_bytes(4, "little") + b"\x01\x00\x00\x00" + bytes(4)


@pytest.mark.parametrize(
    ("what", "first"),
    [
        (b"\0" * 64, b"OK 1\r\n"),
        (b"x" * 64, b"OK 1\r\n"),
        (HUGE, b"OK 1\r\n"),
        (b"l\x02\x01\x01" + b"\xff" * 60, b"OK 1\r\n"),
        (b"", b"REJECTED EXTERNAL\r\n"),
        (b"", b"y" * 4096),
    ],
    ids=["zeros", "text", "huge", "lengths", "rejected", "no line"],
)
async def test_what_is_no_bus_is_refused(tmp_path: Path, what: bytes, first: bytes) -> None:
    junk = Junk(tmp_path / "bus", what, first=first)
    try:
        with pytest.raises(Unavailable):
            await values(attestor(tmp_path / "bus", timeout_seconds=0.5))
    finally:
        junk.close()


def test_without_jeepney_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name for name in sys.modules if name == "jeepney" or name.startswith(("jeepney.", "attestor.workload.dbus"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jeepney", None)
    import attestor.workload

    monkeypatch.delattr(attestor.workload, "dbus", raising=False)
    with pytest.raises(ConfigError) as caught:
        SystemdAttestor(Config())
    assert "burgee[systemd]" in caught.value.hint
