"""One accepted connection: authenticated, then relayed, then ended; each ending has a reason."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import ssl

from ca.errors import BurgeeError
from ca.runtime.gate_authentication import VerifyClient, authenticate, words_of
from ca.runtime.gate_endings import tell
from ca.runtime.gate_h2 import PREFACE
from ca.runtime.gate_host import Host
from ca.runtime.gate_insertions import Insertions, Requests
from ca.runtime.gate_leg import Leg
from ca.runtime.gate_pace import Throttle
from ca.runtime.gate_tls import ALPN_H2, TlsEngine
from ca.runtime.peers import Peer, PeerCred

MAX_HANDSHAKE_BYTES = 256 << 10
LINGER_SECONDS = 2.0
"""How long an ended connection waits for the client to read the last bytes."""

GOAWAY_DRAIN_SECONDS = 5.0
"""From GOAWAY to the end of the connection."""


class Connection:
    """Implements peers.Link. Stages: handshake (TLS only), first bytes, relay, linger.

    Bytes flow front (client) ⇄ back (grpcio or HTTP); the plain ones are seen by the back only.
    """

    def __init__(
        self, host: Host, sock: socket.socket, *, number: int, listener: str, address: str, origins: tuple[object, ...]
    ) -> None:
        self.host = host
        self.number = number
        self.listener = listener
        self.address = address
        self.origins = origins
        self.began = host.loop.time()
        self.peer: Peer | None = None
        self.cred: PeerCred | None = None
        self.front = Leg(
            host.loop, sock, host.view, on_chunk=self._first, on_end=self._front_ended, on_drained=self._front_drained
        )
        self.back: Leg | None = None
        self._name = ""
        self._tls: TlsEngine | None = None
        self._verify: VerifyClient | None = None
        self._insertions: Insertions | None = None
        self._requests: Requests | None = None
        self._leaving = False
        self._allowance = math.inf
        self._head = bytearray()
        self._handshake_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._over = False
        self._lingering = False
        self._waiting = False
        self._throttle: Throttle | None = None

    # ---- stage 1: who is there

    def start_unix(self, cred: PeerCred) -> None:
        """Begin with a caller the kernel has named; its pidfd is ours from now on."""
        self.cred = cred
        self.peer = Peer(
            transport="unix",
            listener=self.listener,
            connection=self.number,
            remote_address=self.address,
            pid=cred.pid,
            uid=cred.uid,
            gid=cred.gid,
            program=cred.program,
            link=self,
        )
        self._await_first_bytes()

    def start_tls(self, context: ssl.SSLContext, verify: VerifyClient) -> None:
        """Begin with a TLS handshake."""
        self._tls = TlsEngine(context)
        self._verify = verify
        self.front.on_chunk = self._handshake
        self._arm(self.host.handshake_timeout_seconds, "HANDSHAKE_TIMEOUT")
        self.front.resume()

    def _handshake(self, chunk: memoryview) -> None:
        tls = self._engine()
        self._handshake_bytes += len(chunk)
        if self._handshake_bytes > MAX_HANDSHAKE_BYTES:
            self.close("HANDSHAKE_TOO_LARGE")
            return
        tls.feed(chunk)
        try:
            complete = tls.handshake()
        except ssl.SSLError as error:
            self.front.write(tls.outgoing())  # the alert
            self._refuse("HANDSHAKE_FAILED", words_of(error))
            return
        self.front.write(tls.outgoing())
        if complete and not self._over and self._authenticate(tls):
            self._await_first_bytes()
            if not self._over:
                self._receive(memoryview(b""))

    def _authenticate(self, tls: TlsEngine) -> bool:
        """Decide on ALPN and certificate; False when the connection was refused."""
        try:
            svid = authenticate(tls, self._verifier(), has_http=self.host.has_http)
        except BurgeeError as error:
            self._refuse(error.reason, error.detail)
            return False
        self.peer = Peer(
            transport="tls",
            listener=self.listener,
            connection=self.number,
            remote_address=self.address,
            svid=svid,
            link=self,
        )
        if svid is None:
            self._allowance = self.host.max_anonymous_bytes
        return True

    # ---- stage 2: what it speaks

    def _await_first_bytes(self) -> None:
        self._arm(self.host.first_bytes_timeout_seconds, "FIRST_BYTES_TIMEOUT")
        reason = self.host.admitted(self)
        if reason:
            self._refuse(reason, "")
            return
        if self._tls is not None:
            self.front.on_chunk = self._receive
            return
        self.front.resume()
        self.front.read()  # mostly the client has already spoken

    def _first(self, plain: memoryview | bytes) -> None:
        """Plain bytes before the back is open: wait until they tell HTTP/2 from HTTP/1.1."""
        self._head += plain
        if self._tls is not None:
            self._open(h2=self._tls.alpn == ALPN_H2)
        elif not PREFACE.startswith(self._head[: len(PREFACE)]):
            self._open(h2=False)
        elif len(self._head) >= len(PREFACE):
            self._open(h2=True)

    def _open(self, *, h2: bool) -> None:
        peer = self._known_peer()
        if not h2 and not self.host.has_http:
            self._refuse("PROTOCOL_UNKNOWN", "neither HTTP/2 nor anything else that is served here")
            return
        try:
            self._name, sock = self.host.open_grpc(peer) if h2 else ("", self.host.open_http(peer))
        except BlockingIOError:
            # grpcio's backlog is full: keep the first bytes and try again, for as long as a handshake may take.
            self.front.pause()
            if not self._waiting:
                self._waiting = True
                self._arm(self.host.first_bytes_timeout_seconds, "BACKEND_UNAVAILABLE")
            self.host.loop.call_later(0.005, self._retry_open, h2)
            return
        except OSError as error:
            self._refuse("BACKEND_UNAVAILABLE", error.strerror or str(error))
            return
        self._disarm()
        if h2 and peer.transport == "tls":
            self._insertions = Insertions(
                self.host.loop,
                lambda frames: self._send_plain(self._encrypt(frames)),
                behind=lambda: bool(self.front.pending),
            )
            self._requests = Requests(self._insertions)
        self.back = Leg(
            self.host.loop,
            sock,
            self.host.view,
            on_chunk=self._send if self._tls is not None else self._send_plain,
            on_end=self._back_ended,
            on_drained=self.resume_front,
        )
        if self._tls is None:
            self._throttle = self.host.throttle(self) if h2 else None
            self.front.on_chunk = self.relay_plain if self._throttle is None else self._throttle.receive
        self.front.resume()
        self.back.resume()
        head, self._head = bytes(self._head), bytearray()
        (self.relay_plain if self._throttle is None else self._throttle.receive)(head)

    def _retry_open(self, h2: bool) -> None:
        if not self._over:
            self._open(h2=h2)

    # ---- stage 3: relay

    def relay_plain(self, plain: memoryview | bytes) -> None:
        """Client → back."""
        back, requests = self.back, self._requests
        if requests is not None:
            plain = requests.follow(bytes(plain))
            if requests.too_large:
                self._refuse("HEADERS_TOO_LARGE", "header fields without end")
                return
        if back is not None:
            back.write(plain)
            if back.pending:
                self.front.pause()

    def resume_front(self) -> None:
        if self._over or (self.back is not None and self.back.pending):
            return
        if self._throttle is None or not self._throttle.holding:
            self.front.resume()

    def _receive(self, chunk: memoryview) -> None:
        """Client → back, through TLS."""
        tls = self._engine()
        self._allowance -= len(chunk)
        if self._allowance < 0:  # grpcio would keep megabytes of half a request for each stream of a stranger
            self._refuse("ANONYMOUS_TOO_MUCH", "more bytes than a caller without certificate may send")
            return
        tls.feed(chunk)
        try:
            plain = tls.read()
            answer = tls.outgoing()
        except ssl.SSLError as error:
            self._refuse("TLS_FAILED", words_of(error))
            return
        if answer:
            self.front.write(answer)
            if self.front.pending:
                self._pause_back()  # answers to key updates count as output: whoever does not read gets no more
                self.front.pause()
        if plain and not self._over:
            if self.back is None:
                self._first(plain)
            else:
                self.relay_plain(plain)
        if tls.ended and not self._over:
            self._front_ended()

    def _send_plain(self, chunk: memoryview | bytes) -> None:
        """Back → client."""
        self.front.write(chunk)
        if self.front.pending:
            self._pause_back()

    def _send(self, chunk: memoryview) -> None:
        """Back → client through TLS."""
        self._send_plain(self._encrypt(chunk if self._insertions is None else self._insertions.carry(chunk)))

    def _encrypt(self, plain: memoryview | bytes) -> memoryview | bytes:
        return plain if self._tls is None else self._tls.write(plain)

    def _pause_back(self) -> None:
        if self.back is not None:
            self.back.pause()

    def _front_drained(self) -> None:
        if self._lingering:
            self._half_close()
            return
        if self.back is not None:
            self.back.resume()
            self.resume_front()

    # ---- stage 4: endings

    def go_away(self, reason: str) -> None:
        """Ask the client to leave (GOAWAY where the protocol has it), and end the connection a little later."""
        if self._over or self._leaving or self._lingering:
            return
        self._leaving = True
        if self._insertions is None:
            self.close(reason)
            return
        self._arm(GOAWAY_DRAIN_SECONDS, reason)
        self._insertions.go_away()

    def _front_ended(self) -> None:
        self._finish("CLIENT_CLOSED" if self.back is not None or self._lingering else "CLIENT_LEFT_EARLY")

    def _back_ended(self) -> None:
        """The back has said its last: deliver it, then close."""
        self._release_back()
        self._lingering = True
        if self._insertions is not None:
            self._insertions.close()
        self._arm(LINGER_SECONDS, "BACKEND_CLOSED")
        self.front.on_chunk = lambda chunk: None
        if not self.front.pending:
            self._half_close()

    def _half_close(self) -> None:
        if self._tls is not None:
            tail, self._tls = self._tls.close_notify(), None
            self.front.write(tail)
            if self.front.pending:
                return  # comes back here when it is drained
        try:
            self.front.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._finish("BACKEND_CLOSED")
            return
        self.front.resume()

    def close(self, reason: str) -> None:
        """End the connection now. Implements Link."""
        self._refuse(reason, "")

    def _refuse(self, reason: str, detail: str) -> None:
        if self._over:
            return
        tell(self.listener, reason, detail, remote=self.address, peer=self.peer)
        self._finish(reason)

    def _finish(self, reason: str) -> None:
        if self._over:
            return
        self._over = True
        self._disarm()
        if self._throttle is not None:
            self._throttle.close()
        if self._insertions is not None:
            self._insertions.close()
        self._release_back()
        self.front.close()
        if self.cred is not None and self.cred.pidfd is not None:
            os.close(self.cred.pidfd)
        self.host.ended(self)

    def _release_back(self) -> None:
        """Unregister first: once the socket is closed, anybody may bind its name."""
        if self._name:
            self.host.release_name(self._name)
            self._name = ""
        if self.back is not None:
            self.back.close()
            self.back = None

    # ---- small things

    def stalled_for(self, now: float) -> float:
        """Seconds for which bytes have been waiting for one side without any progress; 0 when none wait."""
        legs = (self.front, self.back) if self.back is not None else (self.front,)
        return max(now - leg.since if leg is not None and leg.pending else 0.0 for leg in legs)

    @property
    def anonymous(self) -> bool:
        """True for a network client that was let in without a certificate."""
        return self.peer is not None and self.peer.transport == "tls" and self.peer.svid is None

    def pidfd(self) -> int | None:
        """Implements Link."""
        return self.cred.pidfd if self.cred is not None and not self._over else None

    def closed(self) -> bool:
        """Implements Link."""
        return self._over or self._lingering

    def call_seen(self) -> None:
        """Implements Link."""
        if self._throttle is not None:
            self._throttle.seen()

    def _arm(self, seconds: float, reason: str) -> None:
        self._disarm()
        self._timer = self.host.loop.call_later(seconds, self.close, reason)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _engine(self) -> TlsEngine:
        if self._tls is None:
            raise RuntimeError("not a TLS connection")
        return self._tls

    def _verifier(self) -> VerifyClient:
        if self._verify is None:
            raise RuntimeError("not a TLS connection")
        return self._verify

    def _known_peer(self) -> Peer:
        if self.peer is None:
            raise RuntimeError("not authenticated")
        return self.peer
