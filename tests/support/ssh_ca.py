"""OpenSSH host certificates, made by the real ssh-keygen."""

from __future__ import annotations

import base64
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.real import require


@dataclass(frozen=True, kw_only=True)
class SshHost:
    """A host's key and its certificate, in files."""

    key: Path
    certificate: Path

    @property
    def blob(self) -> bytes:
        return base64.b64decode(self.certificate.read_bytes().split()[1])


class SshCa:
    """A host CA in one directory."""

    def __init__(self, directory: Path, name: str = "ca", kind: str = "ed25519", bits: int | None = None) -> None:
        require("ssh-keygen", shutil.which("ssh-keygen") is not None, "apt-get install openssh-client")
        self.directory = directory
        self.key = _new_key(directory / name, kind, bits)

    @property
    def line(self) -> str:
        """Its public key, as `authorized_keys` has it."""
        return self.key.with_suffix(".pub").read_text().strip()

    def host(
        self,
        name: str,
        *,
        kind: str = "ed25519",
        bits: int | None = None,
        principals: str | None = "web-7.example.org,web-7",
        validity: str = "-1h:+1h",
        options: tuple[str, ...] = (),
        user: bool = False,
    ) -> SshHost:
        """`kind` and `bits` as ssh-keygen's `-t` and `-b`."""
        key = _new_key(self.directory / name, kind, bits)
        command = ["-s", str(self.key), "-I", f"id of {name}", "-V", validity, "-z", "7", *(() if user else ("-h",))]
        command += ["-n", principals] if principals is not None else []
        for option in options:
            command += ["-O", option]
        keygen(*command, str(key.with_suffix(".pub")))
        return SshHost(key=key, certificate=key.parent / f"{key.name}-cert.pub")


def _new_key(path: Path, kind: str, bits: int | None) -> Path:
    for old in (path, path.with_suffix(".pub")):
        old.unlink(missing_ok=True)
    keygen("-t", kind, "-N", "", "-C", "", "-f", str(path), *(("-b", str(bits)) if bits else ()))
    return path


def keygen(*arguments: str) -> str:
    """What ssh-keygen prints."""
    done = subprocess.run(["ssh-keygen", "-q", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (arguments, done.stderr)
    return done.stdout
