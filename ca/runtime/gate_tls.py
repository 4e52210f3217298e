"""TLS without sockets: a server context by our rules, and an engine that turns wire bytes into plain ones and back."""

from __future__ import annotations

import _ssl
import hashlib
import ssl
from typing import Any

from ca.runtime import log
from ca.runtime.tls import TlsMaterial, load_chain

ALPN_H2 = "h2"
ALPN_HTTP1 = "http/1.1"
_RECORD_BYTES = 16 << 10
_log = log.get("gate")


def server_context(material: TlsMaterial) -> ssl.SSLContext:
    """TLS 1.2 or later, an optional client certificate, no tickets, ALPN. Raises ssl.SSLError for bad material.

    OpenSSL checks a client's chain against all authorities at once; that a chain ends in an authority of its own
    trust domain is for the caller to check. Session tickets would carry a verification past a change of the bundle.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_OPTIONAL
    # A bundle may hold an authority that is not self-signed; SVIDs need not satisfy OpenSSL's strict profile.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VerifyFlags.VERIFY_X509_STRICT
    context.set_alpn_protocols([ALPN_H2, ALPN_HTTP1])
    load_chain(context, material.chain_pem, material.key_pem)
    for authority in dict.fromkeys(material.client_authorities):
        _trust(context, authority)
    return context


def _trust(context: ssl.SSLContext, authority: bytes) -> None:
    """One that OpenSSL cannot read vouches for nobody; the others, of other domains perhaps, still do."""
    try:
        context.load_verify_locations(cadata=authority)
    except ssl.SSLError as error:
        digest = hashlib.sha256(authority).hexdigest()
        _log.error("authority cannot be read", reason="AUTHORITY_UNREADABLE", sha256=digest, error=str(error))


def unverified_chain(connection: ssl.SSLObject | ssl.SSLSocket) -> tuple[bytes, ...]:
    """The peer's certificates as it sent them, DER, leaf first; empty without a certificate.

    The one place that needs more of `ssl` than Python 3.11 and 3.12 publish.
    """
    if hasattr(connection, "get_unverified_chain"):
        published: list[bytes] = connection.get_unverified_chain()
        return tuple(published)
    private: Any = getattr(connection, "_sslobj")  # noqa: B009 (private: mypy need not know it)
    found = private.get_unverified_chain() or ()
    # A server side without a client certificate reports a chain of one None.
    return tuple(item.public_bytes(_ssl.ENCODING_DER) for item in found if item is not None)


class TlsEngine:
    """One TLS connection in memory. Methods raise ssl.SSLError when the peer breaks the protocol."""

    __slots__ = ("_in", "_out", "_tls", "ended")

    def __init__(
        self, context: ssl.SSLContext, *, server_hostname: str | None = None, server_side: bool = True
    ) -> None:
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=server_side, server_hostname=server_hostname)
        self.ended = False
        """True once the peer has closed its side properly."""

    def feed(self, data: memoryview | bytes) -> None:
        """Take bytes from the wire."""
        self._in.write(data)

    def outgoing(self) -> bytes:
        """Bytes for the wire, empty when there are none."""
        return self._out.read() if self._out.pending else b""

    def handshake(self) -> bool:
        """Go on with the handshake; True when it is complete."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def read(self) -> bytes:
        """All plain bytes that the fed ones contain."""
        parts = []
        try:
            while part := self._tls.read(_RECORD_BYTES):
                parts.append(part)
                if not self._in.pending and not self._tls.pending():
                    return part if len(parts) == 1 else b"".join(parts)
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, data: memoryview | bytes) -> bytes:
        """Plain bytes as bytes for the wire (with whatever else was due)."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest) :]
        return self._out.read()

    def close_notify(self) -> bytes:
        """The bytes that end our side properly."""
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # it wants the peer's close_notify, for which we do not wait
        return self.outgoing()

    @property
    def alpn(self) -> str | None:
        """The application protocol both sides agreed on, if any."""
        return self._tls.selected_alpn_protocol()

    @property
    def resumed(self) -> bool:
        """True when the peer resumed an older session: then nobody has verified a certificate in this one."""
        return bool(self._tls.session_reused)

    @property
    def version(self) -> str:
        """Such as `TLSv1.3`."""
        return self._tls.version() or ""

    def chain(self) -> tuple[bytes, ...]:
        """The peer's certificates, DER, leaf first, as sent; empty without a certificate."""
        return unverified_chain(self._tls)
