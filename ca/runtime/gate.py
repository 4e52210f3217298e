"""The gate: owns the public listeners, authenticates each connection, relays it to grpcio or to HTTP/1.1.

grpcio can neither ask for an optional client certificate nor tell who is on a Unix socket. So nobody but the gate
reaches the private grpcio server: each relayed connection comes from a socket bound to a random abstract name, which
grpcio reports as the peer, and which `peer_of` maps back to the verified caller.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ca.errors import BurgeeError
from ca.ports import Clock
from ca.runtime import gate_unix, log
from ca.runtime.clock import SystemClock
from ca.runtime.files import raise_open_files_limit
from ca.runtime.gate_connection import Connection
from ca.runtime.gate_endings import ACCEPTED, CONNECTIONS, REFUSED
from ca.runtime.gate_layer import OnlyThroughGate
from ca.runtime.gate_leg import CHUNK_BYTES
from ca.runtime.gate_listener import Listener
from ca.runtime.gate_pace import SLOWED, Pace, Throttle
from ca.runtime.gate_places import GateLimits, Places, origin_of_address
from ca.runtime.gate_tls import server_context
from ca.runtime.log_limit import Sparingly
from ca.runtime.peers import Peer, PeerCred, PeerTable, ReadCred, current_peer, read_peer_cred
from ca.runtime.rpc_handlers import Context
from ca.runtime.tls import TlsMaterial

if TYPE_CHECKING:
    from ca.identity.svid import X509Svid

__all__ = ["Gate", "GateLimits", "Peer", "PeerCred", "TlsMaterial", "current_peer"]

HttpProtocolFactory = Callable[[Peer], asyncio.BaseProtocol]
"""Makes the protocol that serves one HTTP/1.1 connection of this peer; it is given an ordinary socket transport."""

SWEEP_SECONDS = 1.0
REFUSALS_LOGGED_PER_SECOND = 10
"""Of one listener and reason: whoever is refused may come again at once, and the log has other readers."""

_log = log.get("gate")


@dataclass(slots=True)
class _TlsListener:
    """A TCP listener's own part."""

    material: Callable[[], TlsMaterial]
    verify: Callable[[Sequence[bytes]], X509Svid]
    context: ssl.SSLContext


class Gate:
    """Make it inside of the running loop, give `layer()` to the private grpcio server, then listen.

    `grpc_socket` is that server's Unix socket, in a directory that is ours alone (0700), or tells which of several is
    for a peer: what callers of one server do holds up none of another's. Without `http_protocol_factory` HTTP/1.1 is
    refused. All methods belong to the loop's thread.
    """

    def __init__(
        self,
        *,
        grpc_socket: str | os.PathLike[str] | Callable[[Peer], str | os.PathLike[str]],
        http_protocol_factory: HttpProtocolFactory | None = None,
        limits: GateLimits | None = None,
        clock: Clock | None = None,
        read_cred: ReadCred = read_peer_cred,
    ) -> None:
        self.limits = limits or GateLimits()
        self._clock = clock or SystemClock()
        self._read_cred = read_cred
        self._table = PeerTable()
        socket_of = grpc_socket if callable(grpc_socket) else lambda peer: grpc_socket
        self._host = _Host(self, socket_of, http_protocol_factory, self._table)
        self._listeners: list[Listener] = []
        self._tls: dict[str, _TlsListener] = {}
        self._tls_is_old = False
        self._admit: dict[str, Callable[[PeerCred], bool]] = {}
        self._share_of: dict[str, Callable[[PeerCred], str]] = {}
        self._connections: dict[int, Connection] = {}
        rate = self.limits.calls_per_second_per_share
        self._pace = Pace(rate) if rate is not None else None
        self._places = Places(self.limits, raise_open_files_limit())
        self._numbers = itertools.count(1)
        self._sparingly = Sparingly(REFUSALS_LOGGED_PER_SECOND)
        self._expiries: list[tuple[datetime, int]] = []
        self._sweeper = self._host.loop.create_task(self._sweep(), name="gate-sweep")

    # ---- listeners

    async def listen_tcp(
        self,
        name: str,
        host: str,
        port: int,
        *,
        tls: Callable[[], TlsMaterial],
        verify_client: Callable[[Sequence[bytes]], X509Svid],
    ) -> tuple[str, int]:
        """Listen with TLS; returns the address and port that were bound (port 0 takes a free one).

        `tls` is asked now and at each `reload_tls`. `verify_client` gets a client's chain (DER, leaf first, as sent)
        and returns its SVID, verified against the bundle of its own trust domain, or raises; a client without a
        certificate is let in with `svid=None`. Raises ssl.SSLError, FailedPrecondition.
        """
        context = server_context(tls())
        sock = gate_unix.listen_tcp(host, port)
        self._tls[name] = _TlsListener(tls, verify_client, context)
        self._listeners.append(Listener(self._host.loop, name, sock, self._accept_tcp))
        bound = sock.getsockname()
        return bound[0], bound[1]

    async def listen_unix(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        mode: int = 0o600,
        dir_mode: int = 0o700,
        gid: int | None = None,
        admit: Callable[[PeerCred], bool] = lambda cred: True,
        share_of: Callable[[PeerCred], str] | None = None,
    ) -> None:
        """Listen on a Unix socket with exactly `mode`, in a directory of `dir_mode`, both of group `gid` if given.

        `admit` sees the kernel's word on each caller before a byte is read. A caller with pid 0 is refused.
        `share_of` names the share of the places that a caller uses, beside its uid's.
        Raises ConfigError, FailedPrecondition.
        """
        sock = gate_unix.listen_unix(path, mode=mode, dir_mode=dir_mode, gid=gid)
        self._admit[name] = admit
        if share_of is not None:
            self._share_of[name] = share_of
        self._listeners.append(Listener(self._host.loop, name, sock, self._accept_unix, path=os.fspath(path)))

    def reload_tls(self) -> None:
        """Ask every TCP listener's material anew; open connections go on.

        Raises ssl.SSLError or OSError: then all keep the old one, and the gate tries again every second by itself.
        """
        self._tls_is_old = True
        fresh = {name: server_context(listener.material()) for name, listener in self._tls.items()}
        for name, context in fresh.items():
            self._tls[name].context = context
        self._tls_is_old = False

    def refresh_tls(self) -> None:
        """`reload_tls` for those who have more to do than to hear of its failure, which is logged."""
        try:
            self.reload_tls()
        except Exception as error:
            _log.error("cannot reload TLS material", reason="TLS_RELOAD_FAILED", exc_info=error)

    # ---- callers

    def layer(self) -> OnlyThroughGate:
        """Refuses an unregistered peer for every service, and with its `unknown` for every other method; sets
        `current_peer` for the call."""
        return OnlyThroughGate(self._table)

    def peer_of(self, context: Context) -> Peer:
        """The verified caller of an RPC. Raises Unauthenticated (PEER_UNKNOWN), also once its connection has ended."""
        return self._table.find(context.peer())

    def connections(self) -> tuple[Peer, ...]:
        """The callers that are authenticated and connected."""
        return tuple(c.peer for c in self._connections.values() if c.peer is not None and not c.closed())

    def close_peers(self, predicate: Callable[[Peer], bool], reason: str) -> int:
        """End every connection whose peer the predicate picks, now; returns how many. `reason` is UPPER_SNAKE."""
        chosen = [peer for peer in self.connections() if predicate(peer)]
        for peer in chosen:
            peer.close(reason)
        return len(chosen)

    # ---- endings

    def stop_listening(self) -> None:
        """Accept nobody any more; what is open goes on."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    async def close(self) -> None:
        """Stop listening and end every connection. Stop the grpcio server first if its calls shall end well."""
        self.stop_listening()
        for connection in list(self._connections.values()):
            connection.close("GATE_CLOSED")
        self._sweeper.cancel()
        await asyncio.gather(self._sweeper, return_exceptions=True)
        await self._host.close()

    # ---- accepting

    def _accept_unix(self, listener: Listener, sock: socket.socket, _: object) -> None:
        try:
            cred = self._read_cred(sock)
        except (BurgeeError, OSError) as error:
            self._turn_away(listener, sock, getattr(error, "reason", "PEER_UNKNOWN"), "")
            return
        reason, origins = self._not_admitted(listener, cred)
        if reason:
            if cred.pidfd is not None:
                os.close(cred.pidfd)
            self._turn_away(listener, sock, reason, f"pid:{cred.pid}", uid=cred.uid)
            return
        self._connection(listener, sock, f"pid:{cred.pid}", origins).start_unix(cred)

    def _not_admitted(self, listener: Listener, cred: PeerCred) -> tuple[str, tuple[object, ...]]:
        """Why this caller is not let in, empty when it is; and whose places it uses."""
        origins: tuple[object, ...] = (("uid", cred.uid),)
        try:
            if not self._admit[listener.name](cred):
                return "UID_NOT_ADMITTED", origins
            share_of = self._share_of.get(listener.name)
            share = ("share", share_of(cred)) if share_of is not None else None
        except Exception as error:
            _log.error("admission failed", listener=listener.name, exc_info=error)
            return "ADMISSION_FAILED", origins
        reason = self._places.refusal_of_uid(cred.uid)
        if share is not None:
            reason = reason or self._places.refusal_of_share(share)
            origins = (*origins, share)
        return reason, origins

    def _accept_tcp(self, listener: Listener, sock: socket.socket, address: Any) -> None:
        host, port = address[0], address[1]
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        reason = self._places.refusal_of_address(host)
        if reason:
            self._turn_away(listener, sock, reason, shown)
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        tls = self._tls[listener.name]
        self._connection(listener, sock, shown, (origin_of_address(host),)).start_tls(tls.context, tls.verify)

    def _turn_away(self, listener: Listener, sock: socket.socket, reason: str, remote: str, **more: object) -> None:
        sock.close()
        REFUSED.labels(listener.name, reason).inc()
        left_out = self._sparingly.more((listener.name, reason))
        if left_out is not None:
            _log.info("connection refused", listener=listener.name, reason=reason, remote=remote, **more, **left_out)

    def _connection(
        self, listener: Listener, sock: socket.socket, address: str, origins: tuple[object, ...]
    ) -> Connection:
        connection = Connection(
            self._host, sock, number=next(self._numbers), listener=listener.name, address=address, origins=origins
        )
        self._connections[connection.number] = connection
        self._places.take(*origins)
        CONNECTIONS.labels(listener.name).inc()
        ACCEPTED.labels(listener.name).inc()
        return connection

    def throttle(self, connection: Connection) -> Throttle | None:
        """What slows a connection down, on a listener that tells its callers apart."""
        if self._pace is None or connection.listener not in self._share_of:
            return None
        return Throttle(
            self._pace,
            str(connection.origins[-1]),
            self._host.loop,
            forward=connection.relay_plain,
            pause=connection.front.pause,
            resume=connection.resume_front,
            slowed=SLOWED.labels(connection.listener).inc,
        )

    def authenticated(self, connection: Connection) -> str:
        """A connection has a peer; note when its certificate ends. Returns why it cannot stay, or nothing."""
        if connection.anonymous:
            self._places.anonymous += 1
            return "ANONYMOUS_LIMIT" if self._places.anonymous > self.limits.max_anonymous_connections else ""
        if connection.peer is not None and connection.peer.svid is not None:
            heapq.heappush(self._expiries, (connection.peer.svid.not_after, connection.number))
            if len(self._expiries) > 1000 + 2 * len(self._connections):
                self._expiries = [item for item in self._expiries if item[1] in self._connections]
                heapq.heapify(self._expiries)
        return ""

    def forget(self, connection: Connection) -> None:
        """A connection is over."""
        del self._connections[connection.number]
        CONNECTIONS.labels(connection.listener).dec()
        self._places.give_back(*connection.origins)
        if connection.anonymous:
            self._places.anonymous -= 1

    # ---- time

    async def _sweep(self) -> None:
        """End what has expired, stalled, or stayed too long without a certificate."""
        while True:
            await self._clock.sleep(SWEEP_SECONDS)
            self._end_expired()
            if self._tls_is_old:
                # Whoever asked for new material may not ask again before the old one has expired.
                self.refresh_tls()
            now = self._host.loop.time()
            for connection in list(self._connections.values()):
                if connection.stalled_for(now) > self.limits.stall_timeout_seconds:
                    connection.close("CLIENT_STALLED")
                elif connection.anonymous and now - connection.began > self.limits.max_anonymous_seconds:
                    self._go_away(connection, "ANONYMOUS_TOO_LONG")

    def _end_expired(self) -> None:
        now = self._clock.now()
        while self._expiries:
            not_after, number = self._expiries[0]
            if (now - not_after).total_seconds() < self.limits.expiry_grace_seconds:
                return
            heapq.heappop(self._expiries)
            connection = self._connections.get(number)
            if connection is not None:
                self._go_away(connection, "SVID_EXPIRED")

    def _go_away(self, connection: Connection, reason: str) -> None:
        """One connection that cannot even be asked to leave must not keep the others in."""
        try:
            connection.go_away(reason)
        except Exception as error:
            _log.error("cannot send GOAWAY", reason=reason, exc_info=error)
            connection.close(reason)


class _Host:
    """Implements gate_host.Host: backs, names and shared buffers for the connections of one gate."""

    def __init__(
        self,
        gate: Gate,
        socket_of: Callable[[Peer], str | os.PathLike[str]],
        http: HttpProtocolFactory | None,
        table: PeerTable,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.view = memoryview(bytearray(CHUNK_BYTES))
        self.handshake_timeout_seconds = gate.limits.handshake_timeout_seconds
        self.first_bytes_timeout_seconds = gate.limits.first_bytes_timeout_seconds
        self.max_anonymous_bytes = gate.limits.max_anonymous_bytes
        self.has_http = http is not None
        self.admitted = gate.authenticated
        self.throttle = gate.throttle
        self.ended = gate.forget
        self.release_name = table.unregister
        self._socket_of = socket_of
        self._http = http
        self._table = table
        self._tasks: set[asyncio.Task[Any]] = set()

    def open_grpc(self, peer: Peer) -> tuple[str, socket.socket]:
        """A socket to grpcio under a registered name; raises OSError and then nothing is left registered."""
        name = self._table.register(peer)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.bind(b"\0" + name.encode())
            sock.connect(os.fspath(self._socket_of(peer)))
        except OSError:
            self._table.unregister(name)
            sock.close()
            raise
        return name, sock

    def open_http(self, peer: Peer) -> socket.socket:
        """One end of a socket pair whose other end the HTTP protocol serves, in this process."""
        factory = self._http
        if factory is None:
            raise RuntimeError("no HTTP/1.1 here")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        task = self.loop.create_task(self.loop.connect_accepted_socket(lambda: factory(peer), theirs))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return ours

    async def close(self) -> None:
        """Wait for the HTTP ends that are just being set up."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
