"""Certificates as a PKI of others makes them: keys and certificates by the real openssl, one command each."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.real import require

LEAF = ("basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature", "authorityKeyIdentifier=keyid")
CA = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign", "subjectKeyIdentifier=hash")
EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")


def need_openssl() -> None:
    require("openssl", shutil.which("openssl") is not None, "apt-get install openssl")


@dataclass(frozen=True, kw_only=True)
class Made:
    """A certificate and its key in files."""

    certificate: Path
    key: Path

    @property
    def der(self) -> bytes:
        return self.parsed.public_bytes(Encoding.DER)

    @property
    def parsed(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.certificate.read_bytes())


class OpensslCa:
    """Everything lies in one directory."""

    def __init__(self, directory: Path) -> None:
        need_openssl()
        self.directory = directory

    def make(
        self,
        name: str,
        issuer: Made | None = None,
        *,
        extensions: Sequence[str] = LEAF,
        subject: str | None = None,
        days: int = 30,
        key: Sequence[str] = EC,
        serial: str | None = None,
        of: Made | None = None,
    ) -> Made:
        """Self-signed without an issuer; `of` is whose key it certifies, a new one by default."""
        config, certificate = self.directory / f"{name}.cnf", self.directory / f"{name}.pem"
        config.write_text(
            "[req]\ndistinguished_name=dn\nx509_extensions=ext\nstring_mask=utf8only\n[dn]\n[ext]\n"
            + "\n".join(extensions)
        )
        key_file = of.key if of else self.directory / f"{name}.key"
        subject = f"/CN={name}" if subject is None else subject
        command = ["req", "-x509", "-config", str(config), "-subj", subject, "-days", str(days), "-nodes", "-utf8"]
        command += ["-key", str(key_file)] if of else [*key, "-keyout", str(key_file)]
        command += ["-CA", str(issuer.certificate), "-CAkey", str(issuer.key)] if issuer else []
        command += ["-set_serial", serial] if serial else []
        run(*command, "-out", str(certificate))
        return Made(certificate=certificate, key=key_file)

    def accepts(self, leaf: Made, between: Sequence[Made], roots: Sequence[Made], *, at: float) -> bool:
        """What `openssl verify` says; an authority that is no root is an anchor too."""
        bundle, untrusted = self.directory / "roots.tmp", self.directory / "untrusted.tmp"
        bundle.write_bytes(b"".join(one.certificate.read_bytes() for one in roots))
        untrusted.write_bytes(b"".join(one.certificate.read_bytes() for one in between))
        command = [
            "openssl",
            "verify",
            "-partial_chain",
            "-x509_strict",
            "-attime",
            str(int(at)),
            "-CAfile",
            str(bundle),
        ]
        command += ["-untrusted", str(untrusted)] if between else []
        done = subprocess.run([*command, str(leaf.certificate)], capture_output=True, timeout=20)
        return done.returncode == 0


def run(*arguments: str, stdin: bytes = b"") -> bytes:
    """What openssl prints."""
    done = subprocess.run(["openssl", *arguments], input=stdin, capture_output=True, timeout=30)
    assert done.returncode == 0, (arguments, done.stderr)
    return done.stdout
