"""OpenSSL's opinion of a chain: whether a TLS peer would believe an SVID below it."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca.identity.spiffe_id import SpiffeId
from ca.issuing.issuer import IssuerTemplate
from ca.issuing.lifetime import plan_lifetime
from ca.issuing.profile import WORKLOAD
from ca.issuing.serial import SERIAL_RANDOM_BYTES, new_serial
from ca.issuing.spki import read_public_key
from ca.issuing.x509 import prepare_leaf, sign
from ca.keys.signer import LocalSigner, PrivateKey
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


def svid_below(authority: bytes, key: PrivateKey, *, now: datetime, path: str = "/web") -> bytes:
    """What this server would issue with such an authority (DER) and its key."""
    issuer = IssuerTemplate.from_certificate(authority)
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    token = prepare_leaf(
        profile=WORKLOAD,
        spiffe_id=SpiffeId.parse(f"{issuer.trust_domain.id}{path}"),
        dns_names=(),
        public_key=read_public_key(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)),
        lifetime=plan_lifetime(now, 60, 60, issuer.not_after, 1),
        serial=new_serial(os.urandom(SERIAL_RANDOM_BYTES)),
        issuer=issuer,
    )
    return sign(token, LocalSigner("k", key), remote=True)
