"""After a TLS handshake: is this a protocol that is served, and whose certificate is it."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ca.errors import BurgeeError, Unauthenticated
from ca.runtime import log
from ca.runtime.gate_tls import ALPN_H2, ALPN_HTTP1, TlsEngine

if TYPE_CHECKING:
    from ca.identity.svid import X509Svid

VerifyClient = Callable[[Sequence[bytes]], "X509Svid"]
"""Chain (DER, leaf first, as sent) → SVID, verified against the bundle of its own trust domain; raises."""

_log = log.get("gate")


def authenticate(tls: TlsEngine, verify: VerifyClient, *, has_http: bool) -> X509Svid | None:
    """The client's verified SVID, or None when it showed no certificate.

    Raises Unauthenticated: ALPN_MISSING, SESSION_RESUMED, CLIENT_VERIFICATION_FAILED, or what `verify` raises.
    """
    if tls.alpn != ALPN_H2 and not (tls.alpn == ALPN_HTTP1 and has_http):
        # stdlib ssl goes on silently when the client offers none that we know.
        raise Unauthenticated(f"application protocol {tls.alpn or 'not agreed on'}", reason="ALPN_MISSING")
    chain = tls.chain()
    if not chain:
        return None
    if tls.resumed:
        # TLS 1.2 can resume by session id even without tickets; the old verification must not count.
        raise Unauthenticated("a resumed session cannot carry a client certificate", reason="SESSION_RESUMED")
    try:
        return verify(chain)
    except BurgeeError:
        raise
    except Exception as error:
        _log.error("client verification failed", reason="CLIENT_VERIFICATION_FAILED", exc_info=error)
        raise Unauthenticated("internal error", reason="CLIENT_VERIFICATION_FAILED") from error


def words_of(error: ssl.SSLError) -> str:
    """OpenSSL's reason in lower case words."""
    verify = getattr(error, "verify_message", "")
    return verify or (error.reason or "tls error").lower().replace("_", " ")
