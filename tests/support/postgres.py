"""A real PostgreSQL, one server per test process on a private Unix socket, one database per test."""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.support.launching import dying_with_us
from tests.support.real import require

HOW = "apt-get install -y --no-install-recommends postgresql"
_START_SECONDS = 30.0
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Server:
    """A running server; `directory` holds its socket."""

    directory: Path
    process: subprocess.Popen[bytes]

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.directory}"

    def stop(self) -> None:
        """Fast shutdown, then nothing of it is left."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def binaries() -> Path | None:
    """Where the newest installed server's programs are."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else None


@contextlib.contextmanager
def database() -> Iterator[str]:
    """The URL of an empty database that is dropped afterwards. Skips (or fails) where there is no PostgreSQL."""
    require("PostgreSQL", binaries() is not None and _user() is not None, HOW)
    running = server()
    name = f"burgee_{next(_numbers)}"
    with psycopg.connect(running.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            yield running.url(name)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@functools.cache
def server() -> Server:
    """The server of this process; started at the first call, stopped when the process ends."""
    programs, user = binaries(), _user()
    assert programs is not None
    assert user is not None
    directory = Path(tempfile.mkdtemp(prefix="bg-pg-"))
    os.chown(directory, user.pw_uid, user.pw_gid)
    subprocess.run(
        [programs / "initdb", "-D", directory / "data", "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8"],
        check=True,
        capture_output=True,
        cwd="/",
        **_as(user),
    )
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": str(directory),
        "max_connections": "200",
        "fsync": "off",  # the data are thrown away; what durability costs is not measured here
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            dying_with_us(
                [programs / "postgres", "-D", directory / "data", *options],
                signal="QUIT",
                user=user if os.geteuid() == 0 else None,
            ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
        )
    running = Server(directory, process)
    atexit.register(running.stop)
    _await_ready(running)
    return running


def _user() -> pwd.struct_passwd | None:
    """Who shall run it: it refuses root."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return None


def _as(user: pwd.struct_passwd) -> dict[str, object]:
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}


def _await_ready(running: Server) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            psycopg.connect(running.url("postgres")).close()
            return
        except psycopg.OperationalError as error:
            if running.process.poll() is not None or time.monotonic() > deadline:
                log = (running.directory / "log").read_text()
                raise RuntimeError(f"PostgreSQL did not start: {log[-2000:]}") from error
            time.sleep(0.05)
