"""Who is on the other end of a connection: verified callers, and the names under which grpcio knows them."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import struct
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import grpc

from ca.errors import Unauthenticated

if TYPE_CHECKING:
    from ca.identity.svid import X509Svid

SO_PEERPIDFD = 77
"""Linux 6.5 and later; the standard library has no name for it yet."""

_NO_PIDFDS = frozenset({errno.ENOSYS, errno.EPERM})
"""A kernel without pidfds, or a sandbox that forbids them."""

_UCRED = struct.Struct("iII")
_ABSTRACT = "unix-abstract:"


@dataclass(frozen=True, slots=True)
class PeerCred:
    """What the kernel says about a Unix socket's peer at the time it connected.

    `pidfd` is borrowed: it is closed with the connection. None where the kernel has no pidfds. `program` is what the
    peer ran when it was accepted, as (device, inode); None where nobody looked.
    """

    pid: int
    uid: int
    gid: int
    pidfd: int | None = None
    program: tuple[int, int] | None = None


class Link(Protocol):
    """The connection behind a Peer."""

    def close(self, reason: str) -> None: ...

    def pidfd(self) -> int | None: ...

    def closed(self) -> bool: ...

    def call_seen(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Peer:
    """A verified caller; one object per connection, equal only to itself.

    unix: `pid`, `uid`, `gid` are set, and `program` as in PeerCred. tls: `svid` is the verified client SVID, or None
    when the client showed no certificate. `remote_address` is `host:port`, or `pid:N` on a Unix socket. `connection`
    is a number that is unique in this process. `link` is the gate's; a Peer made by hand (in a test) has none.
    """

    transport: Literal["unix", "tls"]
    listener: str
    connection: int = 0
    remote_address: str = ""
    pid: int | None = None
    uid: int | None = None
    gid: int | None = None
    program: tuple[int, int] | None = None
    svid: X509Svid | None = None
    link: Link | None = field(default=None, repr=False)

    @property
    def pidfd(self) -> int | None:
        """The peer's pidfd, borrowed: valid only while the connection lives, never to be closed by the borrower."""
        return self.link.pidfd() if self.link is not None else None

    def dup_pidfd(self) -> int | None:
        """A pidfd of the peer that the caller owns and must close; None where there are no pidfds.

        Raises Unauthenticated (PEER_GONE) when the connection has ended.
        """
        if self.closed:
            raise Unauthenticated("the caller is gone", reason="PEER_GONE")
        borrowed = self.pidfd
        return None if borrowed is None else os.dup(borrowed)

    @property
    def closed(self) -> bool:
        """True once the connection has ended."""
        return self.link is not None and self.link.closed()

    def call_seen(self) -> None:
        """One of its calls has been looked at: the gate may let another one in."""
        if self.link is not None:
            self.link.call_seen()

    def close(self, reason: str) -> None:
        """End the connection now; `reason` (UPPER_SNAKE) goes to the log. Streams on it fail with Unavailable."""
        if self.link is not None:
            self.link.close(reason)


current_peer: ContextVar[Peer] = ContextVar("burgee_current_peer")
"""The caller of the RPC being served; set by the gate's layer, unset outside of a call."""


class PeerTable:
    """Names of our sockets towards grpcio → peers. A name has one connection and at least 128 random bits.

    While our socket lives nobody in our network namespace can bind its name. From another namespace one could, but
    only who also enters the private directory and reads our /proc: root or our own user, who could as well trace us.
    """

    def __init__(self) -> None:
        self._peers: dict[str, Peer] = {}

    def register(self, peer: Peer) -> str:
        """A fresh abstract socket name for `peer`; to be bound and connected only after this."""
        name = secrets.token_hex(24)
        self._peers[name] = peer
        return name

    def unregister(self, name: str) -> None:
        """Forget a name; must happen before its socket closes, because then anybody may bind it again."""
        self._peers.pop(name, None)

    def find(self, grpc_peer: str) -> Peer:
        """The peer behind grpcio's `context.peer()`. Raises Unauthenticated (PEER_UNKNOWN)."""
        if grpc_peer.startswith(_ABSTRACT):
            peer = self._peers.get(grpc_peer[len(_ABSTRACT) :])
            if peer is not None:
                return peer
        raise Unauthenticated("this connection did not come through the gate", reason="PEER_UNKNOWN")

    def __len__(self) -> int:
        return len(self._peers)


ReadCred = Callable[[socket.socket], PeerCred]


def read_peer_cred(sock: socket.socket) -> PeerCred:
    """Who connected this Unix socket; the caller owns `pidfd`.

    Raises Unauthenticated: PEER_PID_UNKNOWN for a process in a PID namespace we cannot see (pid 0), PEER_GONE;
    OSError when we are out of file descriptors.
    """
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if pid <= 0:
        raise Unauthenticated(
            "the caller's process cannot be seen from here (pid 0)",
            reason="PEER_PID_UNKNOWN",
            hint="run the agent in the host's PID namespace",
        )
    return PeerCred(pid, uid, gid, _peer_pidfd(sock, pid))


def _peer_pidfd(sock: socket.socket, pid: int) -> int | None:
    """SO_PEERPIDFD pins the process that connected. pidfd_open pins whoever has the pid now: attestors must compare
    start times then. None where the kernel has neither, and only there: a caller who uses up our file descriptors
    does not get the weaker pin by it, but an OSError."""
    try:
        fd = sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except ProcessLookupError:
        raise Unauthenticated("the caller is gone", reason="PEER_GONE") from None
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return _pidfd_open(pid)
    os.set_inheritable(fd, False)
    return fd


def _pidfd_open(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise Unauthenticated("the caller is gone", reason="PEER_GONE") from None
    except OSError as error:
        if error.errno not in _NO_PIDFDS:
            raise
        return None


def peer_of(table: PeerTable, context: grpc.aio.ServicerContext[object, object]) -> Peer:
    """The verified caller of an RPC. Raises Unauthenticated (PEER_UNKNOWN)."""
    return table.find(context.peer())
