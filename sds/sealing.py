"""Named blobs on disk, sealed with AES-256-GCM and bound to trust domain, agent and machine.

File: magic, length of the header, header (JSON: trust domain, agent, name), nonce, ciphertext. The associated data
is everything before the nonce and the machine's id, so that a file moved to another name, agent, trust domain or
machine does not open. Where the key lives decides what sealing is worth:

* a systemd credential `burgee-seal` ($CREDENTIALS_DIRECTORY), which systemd can bind to the machine's TPM;
* the kernel's user keyring, for what need not survive a reboot: a stolen disk is then worthless;
* otherwise a 0600 file beside the data. That guards copies of single files (a backup of the cache, a stray volume),
  not the disk: whoever reads the whole directory reads the key.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ca.errors import FailedPrecondition
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.runtime.files import atomic_write, make_private_dir, read_private
from ca.runtime.log import get
from sds import keyring

MAGIC = b"BURGEE-SEALED-1\n"
NONCE_BYTES = 12
MAX_FILE_BYTES = 256 * 1024 * 1024
CREDENTIAL = "burgee-seal"
KEY_FILE = "seal.key"
MACHINE_ID_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
log = get("sds.sealing")


@dataclass(frozen=True, kw_only=True)
class SealingKey:
    """A key, where it came from (`credential`, `keyring`, `file`) and how to destroy it."""

    secret: bytes = field(repr=False)
    source: str
    destroy: Callable[[], None]


class SealedStore:
    """Blobs by name in one 0700 directory."""

    def __init__(self, directory: Path, *, trust_domain: TrustDomain, key: SealingKey, machine_id: str = "") -> None:
        self.directory = directory
        self.key = key
        self._trust_domain = trust_domain
        self._erased = False
        self._lock = Lock()
        self._machine = (machine_id or read_machine_id()).encode()
        self._aead = AESGCM(HKDF(hashes.SHA256(), 32, salt=None, info=b"burgee sealing 1").derive(key.secret))

    def save(self, name: str, data: bytes, *, agent: SpiffeId | None = None) -> None:
        """Replaces the blob atomically. Raises FailedPrecondition when the directory cannot be written."""
        header = json.dumps({"trust_domain": self._trust_domain.name, "agent": str(agent or ""), "name": name}).encode()
        head = MAGIC + struct.pack(">H", len(header)) + header
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._aead.encrypt(nonce, data, head + self._machine)
        try:
            with self._lock:
                if self._erased:
                    return  # a ban is final: what is still under way must not be written after it
                make_private_dir(self.directory)
                atomic_write(self._path(name), head + nonce + sealed, 0o600)
        except OSError as error:
            raise FailedPrecondition(
                f"cannot write `{self._path(name)}`: {error.strerror}",
                reason="STATE_NOT_WRITABLE",
                hint="the agent's data and cache directories must belong to its user and have room",
            ) from error

    def load(self, name: str, *, agent: SpiffeId | None = None) -> bytes | None:
        """The blob, or None when there is none or it is damaged, truncated or foreign, which is logged.

        With `agent` given, a blob saved for another agent is foreign.
        """
        path = self._path(name)
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                return self._ignore(path, "is too large to be ours")
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            return self._ignore(path, f"cannot be read: {error.strerror}")
        return self._open(path, name, content, agent)

    def forget(self, name: str) -> None:
        """Removes one blob, if it is there."""
        with self._lock:
            self._unlink(f"{name}.sealed")

    def sweep(self) -> None:
        """Removes what a process that was killed while it saved has left. Nobody else may be saving here."""
        with self._lock:
            self._unlink(".*.sealed.*")

    def erase(self) -> None:
        """Removes every blob and destroys the key: what was copied while sealed stays sealed."""
        with self._lock:
            self._erased = True
            try:
                self.key.destroy()
            finally:
                self._unlink("*.sealed")
                self._unlink(".*.sealed.*")

    def _unlink(self, pattern: str) -> None:
        for path in self.directory.glob(pattern) if self.directory.is_dir() else ():
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("cannot remove", reason="STATE_NOT_WRITABLE", path=str(path), detail=error.strerror)

    def _open(self, path: Path, name: str, content: bytes, agent: SpiffeId | None) -> bytes | None:
        start = len(MAGIC) + 2
        if len(content) < start + NONCE_BYTES or not content.startswith(MAGIC):
            return self._ignore(path, "is truncated or no sealed file")
        (length,) = struct.unpack_from(">H", content, len(MAGIC))
        head, rest = content[: start + length], content[start + length :]
        try:
            opened = self._aead.decrypt(rest[:NONCE_BYTES], rest[NONCE_BYTES:], head + self._machine)
        except (InvalidTag, ValueError):
            return self._ignore(path, "does not open: it is damaged, or was sealed elsewhere or with another key")
        header = json.loads(head[start:])  # authentic from here on
        expected = {"trust_domain": self._trust_domain.name, "name": name}
        if agent is not None:
            expected["agent"] = str(agent)
        if any(header.get(key) != value for key, value in expected.items()):
            return self._ignore(path, "belongs to another agent, trust domain or purpose")
        return opened

    def _ignore(self, path: Path, why: str) -> bytes | None:
        log.warning("sealed state ignored", reason="SEALED_STATE_IGNORED", path=str(path), detail=why)
        return None

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.sealed"


def durable_key(directory: Path) -> SealingKey:
    """The key for what must survive a reboot: a systemd credential, else a 0600 file in `directory`."""
    return _credential_key() or _file_key(directory / KEY_FILE)


def cache_key(directory: Path, description: str) -> SealingKey:
    """The key for what need not: a systemd credential, else the kernel's keyring, else a file in `directory`."""
    credential = _credential_key()
    if credential:
        return credential
    secret = keyring.read_or_make(description)
    if secret is None:
        return _file_key(directory / KEY_FILE)
    return SealingKey(secret=secret, source="keyring", destroy=lambda: keyring.forget(description))


def read_machine_id() -> str:
    """The machine's id (machine-id(5)); its host name where there is none, as in many containers."""
    for path in MACHINE_ID_FILES:
        try:
            text = path.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text:
            return text
    return socket.gethostname()


def _credential_key() -> SealingKey | None:
    root = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(root) / CREDENTIAL if root else None
    if path is None or not path.is_file():
        return None
    secret = path.read_bytes()
    if len(secret) < 32:
        raise FailedPrecondition(
            f"the credential `{CREDENTIAL}` holds {len(secret)} bytes, at least 32 are needed",
            reason="SEALING_CREDENTIAL_SHORT",
            hint="`head -c 32 /dev/urandom | systemd-creds encrypt --name=burgee-seal - burgee-seal.cred` makes one",
        )
    return SealingKey(secret=secret, source="credential", destroy=lambda: None)


def _file_key(path: Path) -> SealingKey:
    make_private_dir(path.parent)
    if not path.exists():
        atomic_write(path, os.urandom(32), 0o600)
    secret = read_private(path)
    if len(secret) != 32:
        log.warning("sealing key replaced", reason="SEALING_KEY_DAMAGED", path=str(path))
        secret = os.urandom(32)
        atomic_write(path, secret, 0o600)
    return SealingKey(secret=secret, source="file", destroy=lambda: path.unlink(missing_ok=True))
