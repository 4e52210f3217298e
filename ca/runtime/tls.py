"""Certificates and keys for stdlib `ssl` without a file: a memfd instead of a path on disk."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsMaterial:
    """What a TLS listener presents and whom it can verify.

    `chain_pem` is the leaf and then its intermediates, `key_pem` the leaf's private key (PKCS#8 PEM).
    `client_authorities` are DER certificates of every trust domain we know: they only let a handshake succeed;
    whether a peer's chain holds for its own trust domain is decided afterwards.
    """

    chain_pem: bytes
    key_pem: bytes
    client_authorities: tuple[bytes, ...] = ()


def load_chain(context: ssl.SSLContext, chain_pem: bytes, key_pem: bytes) -> None:
    """Load a chain and its key into `context`; neither touches a disk. Raises ssl.SSLError."""
    fd = os.memfd_create("burgee-tls", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(key_pem.rstrip() + b"\n" + chain_pem)
        # OpenSSL opens the path anew and so reads from the start; /proc/self/fd names the memfd.
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
