"""Where everything of one `burgee up` lives: state in its home, sockets where every demo uid can reach them."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOCKET_PATH_LIMIT = 107
"""Bytes that fit into sockaddr_un.sun_path before its terminating zero (unix(7))."""

_LONGEST_SOCKET = "server-admin/api.sock"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Paths. `home` is kept between runs; `run` holds sockets and may be a short-lived directory elsewhere."""

    home: Path
    run: Path

    @property
    def status(self) -> Path:
        return self.home / "status.json"

    @property
    def lock(self) -> Path:
        return self.home / "lock"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def server_config(self) -> Path:
        return self.home / "server.yaml"

    @property
    def server_data(self) -> Path:
        return self.home / "server"

    @property
    def bundle_file(self) -> Path:
        return self.home / "bundle.pem"

    @property
    def agent_config(self) -> Path:
        return self.home / "agent.yaml"

    @property
    def agent_data(self) -> Path:
        return self.home / "agent"

    @property
    def agent_cache(self) -> Path:
        return self.home / "agent-cache"

    @property
    def join_token(self) -> Path:
        return self.home / "join-token"

    @property
    def programs(self) -> Path:
        return self.home / "bin"

    @property
    def server_admin_socket(self) -> Path:
        return self.run / "server-admin" / "api.sock"

    @property
    def agent_admin_socket(self) -> Path:
        return self.run / "agent-admin" / "api.sock"

    @property
    def workload_socket(self) -> Path:
        return self.run / "workload" / "api.sock"

    def service(self, name: str) -> Path:
        """The directory of one demo service: its Envoy configuration and sockets."""
        return self.run / name

    def log(self, part: str) -> Path:
        return self.logs / f"{part}.log"

    def create(self) -> None:
        """Make the directories: secrets in 0700, what other uids pass through in 0755."""
        for path in (self.home, self.run):
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
            path.chmod(0o755)
        for path in (self.logs, self.server_data, self.agent_data, self.agent_cache, self.programs):
            path.mkdir(mode=0o700, exist_ok=True)


def plan_layout(home: Path, *, shared: bool) -> Layout:
    """Choose where the sockets go.

    `shared` tells that processes of other uids must reach them. Sockets stay in `home`/run when their paths fit into
    107 bytes and, if shared, every directory above lets others pass; otherwise a fresh private directory is made
    under XDG_RUNTIME_DIR, /run or /tmp (its name is unpredictable, so nobody can have prepared it).
    """
    home = home.absolute()
    inside = home / "run"
    fits = len(os.fsencode(inside / _LONGEST_SOCKET)) <= SOCKET_PATH_LIMIT
    if fits and (not shared or passable(home.parent)):
        return Layout(home=home, run=inside)
    return Layout(home=home, run=Path(tempfile.mkdtemp(prefix="burgee-", dir=_short_directory(shared=shared))))


def passable(directory: Path) -> bool:
    """Whether a process of any uid may walk through `directory` and all above it (mode bits; ACLs are not read).

    A directory that does not exist yet will be made with 0755.
    """
    existing = (p for p in (directory, *directory.parents) if p.exists())
    return all(p.stat().st_mode & 0o001 for p in existing)


def _short_directory(*, shared: bool) -> str:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    candidates = ["/run", "/tmp"] if shared else [runtime, "/tmp"]  # noqa: S108 - mkdtemp picks an unpredictable name
    for name in candidates:
        if name and len(name) < 60 and os.path.isdir(name) and os.access(name, os.W_OK | os.X_OK):
            return name
    return tempfile.gettempdir()
