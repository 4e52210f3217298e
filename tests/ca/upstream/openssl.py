"""OpenSSL's opinion of a chain: whether a TLS peer would believe an SVID below it."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from tests.support.real import require

PURPOSES = ("sslserver", "sslclient")


def need_openssl() -> None:
    require("openssl", shutil.which("openssl") is not None, "apt-get install openssl")


def verify(
    directory: Path, leaf: bytes, chain: Sequence[bytes], roots: Sequence[bytes], *, at: datetime, strict: bool = False
) -> str:
    """What `openssl verify` has against it, for a server and for a client; empty when it agrees."""
    for name, certificates in (("leaf", [leaf]), ("chain", chain), ("roots", roots)):
        (directory / f"{name}.pem").write_text("".join(ssl.DER_cert_to_PEM_cert(der) for der in certificates))
    options = ["-auth_level", "2", "-attime", str(int(at.timestamp())), "-no-CAfile", "-no-CApath", "-no-CAstore"]
    if strict:
        options += ["-x509_strict", "-check_ss_sig"]
    if chain:
        options += ["-untrusted", "chain.pem"]
    for purpose in PURPOSES:
        command = ["openssl", "verify", *options, "-purpose", purpose, "-trusted", "roots.pem", "leaf.pem"]
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
        if done.returncode:
            return done.stderr or done.stdout or "refused"
    return ""
