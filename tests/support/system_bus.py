"""A real dbus-daemon of the test's own, and on it what systemd shows of its manager and its units.

The daemon is Debian's; systemd cannot be had where it is not the first process, so its answers are made here, with the
names, signatures and errors of org.freedesktop.systemd1(5).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jeepney import (
    HeaderFields,
    Message,
    MessageType,
    message_bus,
    new_error,
    new_method_return,
)
from jeepney.io.blocking import DBusConnection, open_dbus_connection

from tests.support.real import require

SYSTEMD = "org.freedesktop.systemd1"
_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_type="method_call"/>
    <allow send_requested_reply="true"/>
    <allow receive_requested_reply="true"/>
    <allow receive_type="method_call"/>
    {denied}
  </policy>
</busconfig>
"""


class SystemBus:
    """`start` and `close` the daemon; its socket is `path`. `denied` are methods that its policy lets nobody call."""

    def __init__(self, directory: Path | None = None, *, denied: tuple[str, ...] = ()) -> None:
        program = shutil.which("dbus-daemon")
        require("dbus-daemon", program is not None, "apt-get install dbus-daemon")
        assert program is not None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="bus-"))
        self.path = self.directory / "system_bus_socket"
        self._program = program
        rules = "".join(f'<deny send_interface="{SYSTEMD}.Manager" send_member="{name}"/>' for name in denied)
        (self.directory / "bus.conf").write_text(_CONFIG.format(path=self.path, denied=rules))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [self._program, f"--config-file={self.directory}/bus.conf", "--nofork", "--nopidfile"]
        self._process = subprocess.Popen(
            [*command, "--print-address"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "it did not start"

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@dataclass
class Unit:
    """What a unit's properties say."""

    id: str
    fragment_path: Any = ""

    @property
    def path(self) -> str:
        """Its object path, escaped as sd_bus_path_encode(3) does."""
        escaped = re.sub(r"[^A-Za-z0-9]", lambda found: f"_{ord(found[0]):02x}", self.id)
        return f"/org/freedesktop/systemd1/unit/{escaped}"


@dataclass
class StandInSystemd:
    """Serves `units`, by pid, on a bus. `version` below 253 has no GetUnitByPIDFD. `asked` has the methods called."""

    bus: SystemBus
    version: int = 255
    units: dict[int, Unit] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    silent: bool = False

    def start(self) -> None:
        self._connection = open_dbus_connection(f"unix:path={self.bus.path}", enable_fds=True)
        self._connection.send_and_get_reply(message_bus.RequestName(SYSTEMD), timeout=5)
        threading.Thread(target=self._serve, args=(self._connection,), daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):  # the bus may have gone first
            self._connection.sock.shutdown(2)

    def _serve(self, connection: DBusConnection) -> None:
        try:
            while True:
                call = connection.receive()
                if call.header.message_type is MessageType.method_call and not self.silent:
                    connection.send(self._answer(call))
        except OSError:
            connection.close()

    def _answer(self, call: Message) -> Message:
        member = call.header.fields[HeaderFields.member]
        self.asked.append(member)
        if member == "GetUnitByPIDFD" and self.version >= 253:
            with call.body[0] as descriptor:
                pid = _pid_of(descriptor.fileno())
            unit = self.units.get(pid)
            return self._no_unit(call, pid) if unit is None else _returns(call, "osay", (unit.path, unit.id, b""))
        if member == "GetUnitByPID":
            unit = self.units.get(call.body[0])
            return self._no_unit(call, call.body[0]) if unit is None else _returns(call, "o", (unit.path,))
        if member == "Get" and call.body[0] == f"{SYSTEMD}.Unit":
            return self._property(call)
        for descriptor in call.body:
            if hasattr(descriptor, "close"):
                descriptor.close()
        return new_error(call, "org.freedesktop.DBus.Error.UnknownMethod", "s", (f"Unknown method {member}",))

    def _no_unit(self, call: Message, pid: int) -> Message:
        detail = f"PID {pid} does not belong to any loaded unit."
        return new_error(call, f"{SYSTEMD}.NoUnitForPID", "s", (detail,))

    def _property(self, call: Message) -> Message:
        path = call.header.fields[HeaderFields.path]
        (unit,) = (unit for unit in self.units.values() if unit.path == path)
        value = {"Id": unit.id, "FragmentPath": unit.fragment_path}[call.body[1]]
        return _returns(call, "v", (("s", value) if isinstance(value, str) else ("u", value),))


def _returns(call: Message, signature: str, body: tuple[Any, ...]) -> Message:
    return new_method_return(call, signature, body)


def _pid_of(pidfd: int) -> int:
    """From the kernel's own record of the descriptor."""
    lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)["Pid"])
