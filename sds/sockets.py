"""The agent's two sockets, each a gate before a private gRPC server: workloads here, administrators there."""

from __future__ import annotations

import grp
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Container, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from ca.errors import ConfigError, Denied
from ca.ports import Clock
from ca.runtime.addresses import MAX_SOCKET_PATH_BYTES
from ca.runtime.files import make_private_dir
from ca.runtime.gate import Gate, GateLimits, PeerCred, current_peer
from ca.runtime.peers import read_peer_cred
from ca.runtime.rpc import grpc_server
from ca.runtime.rpc_handlers import Answer, Context, Layer, Yielding
from sds.config import AdminSocketConfig
from sds.program import program_of_pid

MAX_REQUEST_BYTES = 256 * 1024
"""Requests on the agent's sockets are small; a larger one is refused unread."""


class Endpoint:
    """A gate and its private server. Make it inside of the running loop, register services, then `listen`."""

    def __init__(
        self,
        name: str,
        *,
        private_directory: Path,
        clock: Clock,
        layers: Sequence[Layer] = (),
        limits: GateLimits | None = None,
    ) -> None:
        self._name = name
        self._directory = _private(private_directory, name)
        private = self._directory / f"{name}.sock"
        self.gate = Gate(grpc_socket=private, clock=clock, limits=limits, read_cred=read_caller)
        outermost = self.gate.layer()
        self.server = grpc_server(
            private, [outermost, *layers], unknown=outermost.unknown, max_receive_bytes=MAX_REQUEST_BYTES
        )

    async def listen(
        self,
        path: Path,
        *,
        mode: int,
        dir_mode: int,
        gid: int | None = None,
        admit: Callable[[PeerCred], bool] = lambda cred: True,
        share_of: Callable[[PeerCred], str] | None = None,
    ) -> None:
        """Serve. Raises ConfigError, FailedPrecondition (ADDRESS_IN_USE, NOT_PRIVATE)."""
        await self.server.start()
        await self.gate.listen_unix(
            self._name, path, mode=mode, dir_mode=dir_mode, gid=gid, admit=admit, share_of=share_of
        )

    async def close(self, *, grace_seconds: float | None = None) -> None:
        """Accept nobody any more; what is open may end within the grace, or is ended at once without one."""
        self.gate.stop_listening()
        await self.server.stop(grace_seconds)
        await self.gate.close()
        shutil.rmtree(self._directory, ignore_errors=True)


def read_caller(sock: socket.socket) -> PeerCred:
    """Who connected, and which program it runs now: what it becomes with the connection in its hands is not it.

    Raises Unauthenticated, OSError as read_peer_cred does.
    """
    cred = read_peer_cred(sock)
    return PeerCred(cred.pid, cred.uid, cred.gid, cred.pidfd, program_of_pid(cred.pid))


class AdministratorsOnly:
    """Implements rpc_handlers.Layer: every service but those named is for `uids` alone, whoever may connect."""

    def __init__(self, uids: Container[int], *, open_services: frozenset[str] = frozenset()) -> None:
        self._uids = uids
        self._open = open_services

    def answer(self, method: str, inner: Answer, *, streaming: bool) -> Answer:
        if self._is_open(method):
            return inner

        async def admitted(request: Any, context: Context) -> Any:
            self._check()
            return await inner(request, context)

        return admitted

    def yielding(self, method: str, inner: Yielding) -> Yielding:
        if self._is_open(method):
            return inner

        async def admitted(request: Any, context: Context) -> AsyncIterator[Any]:
            self._check()
            responses: Any = inner(request, context)
            async with aclosing(responses):
                async for response in responses:
                    yield response

        return admitted

    def _is_open(self, method: str) -> bool:
        return method.removeprefix("/").rpartition("/")[0] in self._open

    def _check(self) -> None:
        if current_peer.get().uid not in self._uids:
            raise Denied("only an administrator of this agent may call this", reason="NOT_ADMINISTRATOR")


class Administrators:
    """Root, our own user, and those that are configured; `configured` may be replaced at any time."""

    def __init__(self, configured: Sequence[int]) -> None:
        self.configured = tuple(configured)

    def __contains__(self, uid: object) -> bool:
        return uid in (0, os.geteuid()) or uid in self.configured


def admin_access(
    config: AdminSocketConfig, *, uids: Container[int] | None = None, delegates: bool = False
) -> dict[str, Any]:
    """The admin socket's permissions as keyword arguments of `listen`: 0600 in 0700, or 0660 in 0750 for a group.

    The file's mode says who can connect; whoever connects must also be root, our own user, or one of `admin_uids`,
    unless there are `delegates`, who are known by their SPIFFE ID and not by their user: AdministratorsOnly then
    guards the other services. Raises ConfigError for a group that does not exist.
    """
    uids = Administrators(config.admin_uids) if uids is None else uids
    access: dict[str, Any] = {"mode": 0o600, "dir_mode": 0o700, "admit": lambda cred: delegates or cred.uid in uids}
    if config.admin_group is not None:
        try:
            access |= {"mode": 0o660, "dir_mode": 0o750, "gid": grp.getgrnam(config.admin_group).gr_gid}
        except KeyError:
            raise ConfigError(f"`admin_socket.admin_group`: there is no group `{config.admin_group}`") from None
    return access


def _private(directory: Path, name: str) -> Path:
    """A fresh 0700 directory for one private socket, with a path that a socket's name has room for."""
    if len(os.fsencode(directory / "abcdefgh" / f"{name}.sock")) < MAX_SOCKET_PATH_BYTES:
        make_private_dir(directory)
        return Path(tempfile.mkdtemp(dir=directory))
    return Path(tempfile.mkdtemp(prefix="burgee-"))
