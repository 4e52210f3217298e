"""Workload attestation from what systemd says: which unit the caller belongs to, and which file describes it.

The system manager is asked over D-Bus with a pidfd, which names one process whatever becomes of its number and
whichever pid namespace we are in. A systemd that cannot take one (before 253) is asked by number, provided that the bus
sees the agent under the number that the agent has: then both count in the same namespace.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import Field

from ca.errors import ConfigError, Unavailable
from ca.identity.selector import Selector
from ca.ports import Finding, Process, WorkloadAttestorPlugin
from ca.runtime.config import StrictModel
from ca.runtime.findings import failed, ok
from ca.runtime.notes import note
from ca.runtime.threads import to_thread

if TYPE_CHECKING:
    from attestor.workload.dbus import Connection

NAME = "systemd"
SYSTEMD = "org.freedesktop.systemd1"
MAX_IDLE = 4
"""Connections to the bus that are kept for the next attestations."""

_NO_UNIT = (f"{SYSTEMD}.NoUnitForPID", f"{SYSTEMD}.NoSuchUnit", "org.freedesktop.DBus.Error.UnknownObject")
_UNKNOWN_METHOD = ("org.freedesktop.DBus.Error.UnknownMethod", "org.freedesktop.DBus.Error.AccessDenied")
"""Where systemd does not know the method, its policy on the bus does not allow it either."""

_HINT = "is that the host's system bus, is systemd on it, and does the bus's policy let the agent's user call it?"

T = TypeVar("T")


class Config(StrictModel):
    """Where systemd is asked."""

    bus_socket_path: Path = Field(
        default=Path("/run/dbus/system_bus_socket"), description="The socket of the system's message bus."
    )
    timeout_seconds: float = Field(default=2.0, gt=0, le=60, description="What each answer may take.")


class SystemdAttestor:
    """Finds `systemd:` selectors; of a process that belongs to no unit, none.

    Raises Unavailable: SYSTEMD_UNREACHABLE, SYSTEMD_ANSWER, SYSTEMD_PID_NAMESPACE.
    """

    def __init__(self, config: Config) -> None:
        try:
            from attestor.workload import dbus
        except ImportError as error:
            raise ConfigError(
                "the workload attestor `systemd` needs the module jeepney",
                hint="pip install 'burgee[systemd]', or: pip install jeepney",
            ) from error
        self._dbus = dbus
        self._config = config
        self._idle: list[Connection] = []

    async def attest(self, process: Process) -> frozenset[Selector]:
        process.ensure_alive()
        found = await to_thread(self._look, process)
        process.ensure_alive()  # what was asked by number is the caller's only if it lives still
        return frozenset(Selector(NAME, value) for value in found)

    async def check(self) -> Sequence[Finding]:
        """Implements ca.ports.Checked: whether systemd says which unit this agent is in, or that it is in none."""
        try:
            found = await to_thread(self._look, cast(Process, _Ourselves()))
        except Unavailable as error:
            return [failed("systemd", f"{error.detail} ({error.reason})", error.hint or _HINT)]
        return [ok("systemd", f"it answers, and has this agent in {', '.join(found) or 'no unit'}")]

    def _look(self, process: Process) -> list[str]:
        try:
            return self._with_connection(lambda connection: self._values(connection, process))
        except OSError as error:
            raise Unavailable(
                f"cannot ask systemd over `{self._config.bus_socket_path}`: {error.strerror or error}",
                reason="SYSTEMD_UNREACHABLE",
                hint="is `bus_socket_path` in `workload_attestors.systemd` the system bus of the host?",
            ) from error
        except (self._dbus.CallFailed, ValueError, IndexError, TypeError) as error:
            raise Unavailable("systemd gave no answer that could be read", reason="SYSTEMD_ANSWER") from error

    def _with_connection(self, ask: Callable[[Connection], T]) -> T:
        """One that was kept may be to a bus that is no more: then once more on a new one."""
        kept = self._kept()
        if kept is not None:
            with suppress(ConnectionError):
                return self._once(kept, ask)
        return self._once(self._connect(), ask)

    def _kept(self) -> Connection | None:
        try:
            return self._idle.pop()  # in one step: other threads do the same
        except IndexError:
            return None

    def _once(self, connection: Connection, ask: Callable[[Connection], T]) -> T:
        try:
            answer = ask(connection)
        except BaseException:
            connection.close()
            raise
        if len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def _connect(self) -> Connection:
        return self._dbus.Connection(self._config.bus_socket_path, timeout_seconds=self._config.timeout_seconds)

    def _values(self, connection: Connection, process: Process) -> list[str]:
        try:
            path = self._unit(connection, process)
            unit, fragment = (self._property(connection, path, name) for name in ("Id", "FragmentPath"))
        except self._dbus.CallFailed as error:
            if error.name not in _NO_UNIT:
                raise
            note("unit", f"none: {error}")
            return []
        note("unit", f"{unit} ({fragment or 'it has no file'})")
        values = [f"id:{unit}"] if unit else []
        return [*values, f"fragment_path:{fragment}"] if fragment else values

    def _unit(self, connection: Connection, process: Process) -> str:
        """The object path of the unit."""
        manager = self._address("/org/freedesktop/systemd1", f"{SYSTEMD}.Manager")
        pidfd = _pidfd_of(process)
        if pidfd is not None:
            try:
                return _text(connection.call(manager, "GetUnitByPIDFD", "h", pidfd)[0])
            except self._dbus.CallFailed as error:
                if error.name not in _UNKNOWN_METHOD:
                    raise
            finally:
                os.close(pidfd)
        self._require_same_numbers(connection)
        return _text(connection.call(manager, "GetUnitByPID", "u", process.pid)[0])

    def _require_same_numbers(self, connection: Connection) -> None:
        (seen,) = connection.call(self._dbus.BUS, "GetConnectionUnixProcessID", "s", connection.name)
        if seen != os.getpid():
            raise Unavailable(
                "this systemd is asked by pid, and the agent is in another pid namespace",
                reason="SYSTEMD_PID_NAMESPACE",
                hint="run the agent in the host's pid namespace, or systemd 253 or newer",
            )

    def _property(self, connection: Connection, path: str, name: str) -> str:
        properties = self._address(path, "org.freedesktop.DBus.Properties")
        kind, value = connection.call(properties, "Get", "ss", f"{SYSTEMD}.Unit", name)[0]
        if kind != "s":
            raise TypeError("the property is no text")
        return _text(value)

    def _address(self, path: str, interface: str) -> Any:
        return self._dbus.address(path, name=SYSTEMD, interface=interface)


class _Ourselves:
    """As much of a ca.ports.Process as systemd is asked about."""

    def __init__(self) -> None:
        self.pid = os.getpid()

    def ensure_alive(self) -> None:
        """Whoever asks is."""


def _pidfd_of(process: Process) -> int | None:
    """It is the caller's if the caller lives after it was opened; None where the kernel has none (before 5.3)."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        process.ensure_alive()
        raise
    except OSError:
        return None
    try:
        process.ensure_alive()
    except BaseException:
        os.close(pidfd)
        raise
    return pidfd


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


plugin = WorkloadAttestorPlugin(name=NAME, config=Config, attestor=SystemdAttestor)
