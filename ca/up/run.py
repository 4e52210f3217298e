"""`burgee up` from preflight to the last child's end."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ca.errors import BurgeeError, FailedPrecondition
from ca.up.demo import choose_places
from ca.up.envoy_program import find_envoy
from ca.up.fleet import Fleet, refuse_other_data
from ca.up.layout import plan_layout
from ca.up.options import DEFAULT_DIRECTORY, DEFAULT_PORT, DEFAULT_TRUST_DOMAIN, Options
from ca.up.places import can_become_others
from ca.up.ports import claim
from ca.up.report import JsonReport, Proof, Report, TextReport
from ca.up.rotations import show_rotations

_WATCH_SECONDS = 0.5
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """Somebody asked us to end (Ctrl-C, SIGTERM, a closed terminal)."""


def up(options: Options) -> int:
    """Run it. Returns the exit code: 0 done or stopped on request, 1 a part failed."""
    report: Report = JsonReport(once=options.once) if options.output == "json" else TextReport()
    try:
        asyncio.run(_up(options, report))
    except Stopped:
        report.stopped()
        return 1 if options.once else 0
    except BurgeeError as error:
        report.failed(error)
        return 1
    return 0


async def _up(options: Options, report: Report) -> None:
    if not sys.platform.startswith("linux"):
        raise FailedPrecondition("burgee runs on Linux alone: it asks the kernel who is calling", reason="NOT_LINUX")
    envoy = find_envoy() if options.demo else None
    with _locked(options.directory.absolute()) as home:
        layout = plan_layout(home, shared=envoy is not None and can_become_others())
        refuse_other_data(layout, options)
        port = claim(options.port)
        layout.create()
        fleet = Fleet(options, layout, choose_places(layout, envoy) if envoy else [], report)
        try:
            await _until_asked(_life(fleet, port, report))
        finally:
            await fleet.stop()


async def _life(fleet: Fleet, port: int, report: Report) -> None:
    await fleet.start(port)
    proof = await fleet.demo.prove_policies() if fleet.demo is not None else None
    fleet.finish()
    report.ready(_summary(fleet), proof, _next_steps(fleet, proof))
    if not fleet.options.once:
        await _watch(fleet, report)


async def _watch(fleet: Fleet, report: Report) -> None:
    """Until stopped: show rotations; raises PartFailed when a child goes."""
    rotations = asyncio.create_task(show_rotations(fleet.demo, report)) if fleet.demo else None
    try:
        while True:
            fleet.ensure_running()
            if rotations is not None and rotations.done():
                rotations.result()
            await asyncio.sleep(_WATCH_SECONDS)
    finally:
        if rotations is not None:
            rotations.cancel()
            await asyncio.gather(rotations, return_exceptions=True)


async def _until_asked(life: Any) -> None:
    """Run `life`; a stop signal cancels it and raises Stopped."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(life)
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError as error:
        raise Stopped from error


@contextmanager
def _locked(home: Path) -> Iterator[Path]:
    """Make `home` and hold it; a second `burgee up` on it raises FailedPrecondition."""
    try:
        home.mkdir(mode=0o755, parents=True, exist_ok=True)
        _require_ours(home)
        descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise FailedPrecondition(f"cannot write to `{home}`: {error.strerror}", reason="DIRECTORY") from error
    try:
        _lock(descriptor, home)
        yield home
    finally:
        os.close(descriptor)


def _require_ours(home: Path) -> None:
    """Whoever else can write there could swap a configuration before it is read, or lead a log into another file."""
    found = home.stat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o002:
        raise FailedPrecondition(
            f"`{home}` belongs to somebody else, or everybody can write to it",
            reason="NOT_PRIVATE",
            hint="choose another directory with --dir",
        )


def _lock(descriptor: int, home: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FailedPrecondition(
            f"another `burgee up` is running in `{home}`", reason="RUNNING", hint="stop it, or choose another --dir"
        ) from error


def _summary(fleet: Fleet) -> dict[str, Any]:
    return fleet.status.as_dict()


def _next_steps(fleet: Fleet, proof: Proof | None) -> list[str]:
    """What to type next, as it must be typed from here."""
    here = fleet.options.directory.absolute() == DEFAULT_DIRECTORY.absolute()
    caadmin, burgee = _command("caadmin"), _command("burgee")
    server = "" if here else f" --socket {shlex.quote(str(fleet.layout.server_admin_socket))}"
    agent = "" if here else f" --agent-socket {shlex.quote(str(fleet.layout.agent_admin_socket))}"
    steps = [f"curl {proof.url}"] if proof else []
    steps += [f"{caadmin} entry list{server}", f"{caadmin} agent sds{agent}"]
    refused = [one.decision for one in proof.decisions if not one.allowed] if proof else []
    if refused:
        steps += [
            f"{caadmin} policy rollout{server}",
            f"{caadmin} policy decisions --agent --denied{agent}",
            f"{caadmin} policy explain --decision {refused[0]}{server}{agent}",
            f"{caadmin} policy graph --to reach.html{server}",
        ]
    if fleet.options.once:
        again = shlex.join([burgee, "up", *_arguments(fleet.options)])
        return [f"{again}   (the same, in the foreground; state is kept in {fleet.options.directory})"]
    return [*steps, f"Ctrl-C stops everything; state stays in {fleet.options.directory}"]


def _arguments(options: Options) -> list[str]:
    """What differs from the defaults, as it was typed."""
    words = [] if options.demo else ["--no-demo"]
    for name, value, default in (
        ("--trust-domain", options.trust_domain.name, DEFAULT_TRUST_DOMAIN),
        ("--dir", str(options.directory), str(DEFAULT_DIRECTORY)),
        ("--port", str(options.port), str(DEFAULT_PORT)),
    ):
        words += [name, value] if value != default else []
    return words


def _command(name: str) -> str:
    """How to call our program from here: by name if PATH finds it, else by its shortest path."""
    program = Path(sys.executable).parent / name
    if shutil.which(name) == str(program) or not program.exists():
        return name
    return str(program.relative_to(Path.cwd())) if program.is_relative_to(Path.cwd()) else str(program)
