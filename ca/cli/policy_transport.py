"""HTTP/1.1 to a server: through its admin socket, or over TLS as whom an X.509-SVID says, to one that proves itself."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
from pathlib import Path

from ca.cli.connection import Remote
from ca.errors import Unauthenticated, Unavailable

DIAL_SECONDS = 5.0


def connect(where: Path | Remote, seconds: float) -> http.client.HTTPConnection:
    """A connection that is not open yet; `seconds` are for one answer. Opening it raises Unavailable, Unauthenticated,
    and what is wrong with files of an SVID."""
    return _Remote(where, seconds) if isinstance(where, Remote) else _Local(where, seconds)


class _Local(http.client.HTTPConnection):
    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__("localhost")
        self._seconds = seconds
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DIAL_SECONDS)
        try:
            self.sock.connect(str(self._path))
        except OSError as error:
            self.close()
            raise _unreachable(self._path) from error
        self.sock.settimeout(self._seconds)


class _Remote(http.client.HTTPConnection):
    def __init__(self, remote: Remote, seconds: float) -> None:
        super().__init__("localhost")
        self._seconds = seconds
        self._remote = remote

    def connect(self) -> None:
        from ca.cli.remote import credentials_of
        from ca.runtime.addresses import split_address
        from ca.runtime.gate_tls import ALPN_HTTP1, unverified_chain
        from ca.runtime.tls_relay import client_context

        credentials = credentials_of(self._remote)
        context = client_context(credentials.material, alpn=ALPN_HTTP1)
        try:
            plain = socket.create_connection(split_address(self._remote.address), DIAL_SECONDS)
            opened = context.wrap_socket(plain)
        except OSError as error:
            raise _unreachable(self._remote) from error
        try:
            credentials.verify_server(unverified_chain(opened))
            if opened.selected_alpn_protocol() != ALPN_HTTP1:
                raise Unauthenticated("the peer does not speak HTTP/1.1 over TLS (ALPN)", reason="SERVER_ALPN")
        except BaseException:
            opened.close()
            raise
        opened.settimeout(self._seconds)
        self.sock = opened


def _unreachable(where: Path | Remote) -> Unavailable:
    if isinstance(where, Remote):
        return Unavailable(
            f"cannot reach the server at `{where.address}`",
            reason="SERVER_UNREACHABLE",
            hint="is the server running, and is this its address?",
        )
    hint = "start it, or say where it is with --socket or BURGEE_ADMIN_SOCKET"
    if where.exists() and not os.access(where, os.W_OK):
        hint = "you may not use this socket; become root, or be named in `admin_uids` or `admin_group`"
    return Unavailable(f"no server answers at `{where}`", reason="UNREACHABLE", hint=hint)


def broken(where: Path | Remote, error: Exception) -> Unavailable:
    """A connection that ended before the answer did."""
    if isinstance(error, ssl.SSLError):  # in TLS 1.3 its verdict on our certificate comes after the handshake
        text = (error.reason or "TLS error").lower().replace("_", " ")
        return Unavailable(
            f"the server ended the TLS connection: {text}",
            reason="SERVER_REFUSED_TLS",
            hint="does the server still know the authority of our SVID, and do both clocks agree?",
        )
    name = where.address if isinstance(where, Remote) else where
    if isinstance(error, TimeoutError):
        return Unavailable(f"the server at `{name}` did not answer in time", reason="UNREACHABLE", hint="try again")
    hint = ""
    if isinstance(where, Path):
        from ca.cli.connection import grpc_target
        from ca.cli.sockets import Kind, advice

        hint = advice(grpc_target(where), Kind.SERVER)
    return Unavailable(f"what is at `{name}` ended the connection, or speaks no HTTP", reason="UNREACHABLE", hint=hint)
