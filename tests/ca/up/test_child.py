"""Child processes: started, watched, stopped, and never outliving their supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ca.errors import Unavailable
from ca.up import launch
from ca.up.child import Child
from ca.up.failure import PartFailed


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def gone(pid: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if f"/proc/{pid}/stat" and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


async def test_its_output_is_in_the_log_and_its_end_is_reported_with_it(tmp_path: Path) -> None:
    child = await Child.start("part", script("print('hello'); raise SystemExit(3)"), log=tmp_path / "log")

    async def never() -> None:
        return None

    with pytest.raises(PartFailed) as caught:
        await child.until("never", never, seconds=20)
    assert caught.value.part == "part"
    assert caught.value.detail == "it exited with 3"
    assert caught.value.log_tail == ("hello",)


async def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    child = await Child.start("part", ["/nonexistent/program"], log=tmp_path / "log")
    await child.process.wait()
    assert child.process.returncode == 126
    assert child.tail() == ["cannot start `/nonexistent/program`: No such file or directory"]


async def test_waiting_ends_with_what_was_last_heard(tmp_path: Path) -> None:
    child = await Child.start("part", script("import time; time.sleep(60)"), log=tmp_path / "log")

    async def refused() -> None:
        raise Unavailable("nobody is listening")

    with pytest.raises(PartFailed, match=r"it was not ready within 0\.1 s: nobody is listening"):
        await child.until("it was not ready", refused, seconds=0.1)
    await child.stop()
    assert not child.running


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    ignoring = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    )
    child = await Child.start("part", script(ignoring), log=tmp_path / "log")

    async def ready() -> bool:
        return child.tail() == ["ready"]

    await child.until("it said nothing", ready, seconds=10)
    await child.stop(grace_seconds=0.1)
    assert child.process.returncode == -signal.SIGKILL


async def test_it_lives_in_a_process_group_of_its_own(tmp_path: Path) -> None:
    child = await Child.start("part", script("import time; time.sleep(60)"), log=tmp_path / "log")
    assert os.getpgid(child.pid) == child.pid
    await child.stop()


def test_children_die_with_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    supervisor = (
        "import asyncio, pathlib, sys\n"
        "from ca.up.child import Child\n"
        "async def main():\n"
        "    program = [sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(60)']\n"
        f"    child = await Child.start('part', program, log=pathlib.Path({str(tmp_path / 'log')!r}))\n"
        "    while not child.tail(): await asyncio.sleep(0.02)\n"
        "    print(child.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", supervisor], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    assert gone(pid)


LOOK = "print(open('/proc/self/environ').read().replace(chr(0), ' ')); print(open('/proc/self/status').read())"


def fields(status: list[str]) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in status if ":\t" in line)


@pytest.mark.parametrize(
    "uid",
    [None, pytest.param(64155, marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to change uids"))],
)
async def test_a_confined_program_inherits_nothing_and_gains_nothing(
    tmp_path: Path, uid: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", "hunter2")
    home = Path("/some/where")
    python = os.path.realpath(sys.executable)
    child = await Child.start("part", [python, "-I", "-c", LOOK], log=tmp_path / "log", uid=uid, home=home)
    assert await child.process.wait() == 0, child.tail()
    environment, *status = child.tail(200)
    assert environment.split() == [f"PATH={os.defpath}", "HOME=/some/where"]
    assert fields(status)["NoNewPrivs"] == "1"
    assert fields(status)["Uid"].split()[0] == str(os.getuid() if uid is None else uid)


async def test_the_others_keep_their_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Server and agent may be configured by it, for example to find a password file."""
    monkeypatch.setenv("NO_SECRET", "kept")
    child = await Child.start("part", script(LOOK), log=tmp_path / "log")
    assert await child.process.wait() == 0
    environment, *status = child.tail(200)
    assert "NO_SECRET=kept" in environment.split()
    assert fields(status)["NoNewPrivs"] == fields(Path("/proc/self/status").read_text().splitlines())["NoNewPrivs"]


def test_a_kernel_that_refuses_confinement_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def prctl(self, *arguments: int) -> int:
            return -1

    monkeypatch.setattr(launch.ctypes, "CDLL", lambda *arguments, **options: Refusing())
    with pytest.raises(OSError):  # noqa: PT011 - which one is the kernel's to say
        launch.confine("/some/where")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: run the tests as root to change uids")
async def test_as_another_uid_it_has_that_uid_alone_even_behind_closed_doors(tmp_path: Path) -> None:
    """The program stands in a directory which the uid may not enter, as a checkout in /root would."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    program = closed / "id"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    program.chmod(0o755)
    child = await Child.start("part", [str(program)], log=tmp_path / "log", uid=64155)
    assert await child.process.wait() == 0
    assert child.tail() == ["uid=64155 gid=64155 groups=64155"]
