"""What a PKCS#11 module leaves behind in the calling thread, and how a test notices."""

from __future__ import annotations

import ctypes
import ctypes.util
import ssl
from pathlib import Path

from tests.support.tls_ca import TlsCa


def forget_errors() -> None:
    """For a test that calls a module itself: whatever runs in this thread afterwards may speak TLS."""
    name = ctypes.util.find_library("crypto")
    if name is not None:
        ctypes.CDLL(name).ERR_clear_error()


class QuietConnection:
    """TLS between two ends in one thread, on which nothing is under way."""

    def __init__(self, folder: Path) -> None:
        TlsCa("quiet").server("localhost").write(folder / "cert.pem", folder / "key.pem")
        accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        accepting.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        calling = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        calling.check_hostname, calling.verify_mode = False, ssl.CERT_NONE
        here, there = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._client = calling.wrap_bio(here, there)
        server = accepting.wrap_bio(there, here, server_side=True)
        ends = [self._client, server]
        while ends:
            ends = [end for end in ends if not _greeted(end)]
        server.write(b"x")
        assert self._client.read() == b"x"

    def look(self) -> None:
        """Raises SSLWantReadError, for nothing has come; or what somebody left in this thread."""
        self._client.read()


def _greeted(end: ssl.SSLObject) -> bool:
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True
