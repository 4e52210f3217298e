"""Private keys as files: one unencrypted PKCS#8 PEM file per key, 0600, in a directory of their own, 0700.

Who can read the directory can sign as this authority: the files are its whole secret, and a backup of them is too.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from ca.errors import FailedPrecondition
from ca.keys.key_id import check_key_id, in_use
from ca.keys.signer import LocalSigner, PrivateKey, generate_private_key
from ca.ports import AuthorityHost, KeyManagerPlugin, KeyType, Signer
from ca.runtime.config import StrictModel
from ca.runtime.files import make_private_dir, read_private, require_private, sync_directory

MAX_KEY_FILE_BYTES = 64 * 1024

SCRATCH_SECONDS = 600.0
"""A file that was begun so long ago is not being written any more."""

_SUFFIX = ".pem"
_SCRATCH = re.compile(r"\.[0-9a-f]{16}\.pem")


class DiskKeysConfig(StrictModel):
    """Options of the disk key manager."""

    directory: str | None = None
    """Where the key files are; `<data_dir>/keys` if not given."""


class DiskKeyManager:
    """Implements ca.ports.KeyManager and Dated.

    A key file is complete and on the disk before its name exists. Every `get` reads the file again and checks who
    else could: a file or directory that is open to others, or a symbolic link, raises FailedPrecondition (NOT_PRIVATE);
    a file that holds no key of ours raises FailedPrecondition (KEY_FILE_CORRUPT).
    """

    remote = False

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Makes the directory, or checks the one that is there and sweeps it. Raises FailedPrecondition."""
        self._directory = Path(directory)
        try:
            make_private_dir(self._directory)
            require_private(self._directory)  # and no symbolic link to one
            _sweep(self._directory)
        except OSError as error:
            raise FailedPrecondition(
                f"`{self._directory}` cannot be the directory of keys: {error.strerror}", reason="KEY_DIRECTORY"
            ) from error

    async def generate(self, key_id: str, key_type: KeyType) -> Signer:
        check_key_id(key_id)
        return await asyncio.to_thread(self._generate, key_id, key_type)

    async def get(self, key_id: str) -> Signer | None:
        check_key_id(key_id)
        return await asyncio.to_thread(self._read, key_id)

    async def list(self) -> Sequence[str]:
        names = await asyncio.to_thread(os.listdir, self._directory)
        # A name that begins with a dot is a file that was being written when the power went.
        return sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX) and name[0] != ".")

    async def made_at(self, key_id: str) -> datetime | None:
        """When the file was written; a copy that was put back may be younger than its key, and is never older."""
        check_key_id(key_id)
        try:
            found = await asyncio.to_thread(os.lstat, self._path(key_id))
        except FileNotFoundError:
            return None
        return datetime.fromtimestamp(found.st_mtime, UTC)

    async def delete(self, key_id: str) -> None:
        check_key_id(key_id)
        await asyncio.to_thread(self._delete, key_id)

    def _path(self, key_id: str) -> Path:
        return self._directory / (key_id + _SUFFIX)

    def _generate(self, key_id: str, key_type: KeyType) -> Signer:
        require_private(self._directory)
        if os.path.lexists(self._path(key_id)):
            raise in_use(key_id)
        key = generate_private_key(key_type)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            _write_new(self._path(key_id), pem)
        except FileExistsError as error:
            raise in_use(key_id) from error
        except OSError as error:
            raise FailedPrecondition(
                f"key `{key_id}` cannot be stored: {error.strerror}", reason="KEY_DIRECTORY"
            ) from error
        return LocalSigner(key_id, key)

    def _read(self, key_id: str) -> Signer | None:
        path = self._path(key_id)
        require_private(self._directory)
        try:
            pem = read_private(path, MAX_KEY_FILE_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise FailedPrecondition(
                    f"`{path}` is a symbolic link", reason="NOT_PRIVATE", hint="put the key file itself there"
                ) from error
            raise FailedPrecondition(f"`{path}` cannot be read: {error.strerror}", reason="KEY_FILE") from error
        return LocalSigner(key_id, _load(pem, path))

    def _delete(self, key_id: str) -> None:
        self._path(key_id).unlink(missing_ok=True)
        sync_directory(self._directory)


def _sweep(directory: Path) -> None:
    """Remove what was being written when the process was killed: it may be a whole key, and has no name."""
    before = time.time() - SCRATCH_SECONDS
    for name in os.listdir(directory):
        if _SCRATCH.fullmatch(name) and os.lstat(directory / name).st_mtime < before:
            (directory / name).unlink(missing_ok=True)


def _write_new(path: Path, data: bytes) -> None:
    """Like an atomic write, but never in place of another file: a hard link fails where a rename would replace."""
    scratch = path.parent / f".{secrets.token_hex(8)}{_SUFFIX}"
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    sync_directory(path.parent)


def _load(pem: bytes, path: Path) -> PrivateKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _corrupt(path) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise _corrupt(path)
    return key


def _corrupt(path: Path) -> FailedPrecondition:
    return FailedPrecondition(
        f"`{path}` holds no private key in PKCS#8 PEM",
        reason="KEY_FILE_CORRUPT",
        hint="restore it from a backup; or move it away, and the server makes a new authority",
    )


def _manager(config: DiskKeysConfig, host: AuthorityHost) -> DiskKeyManager:
    return DiskKeyManager(config.directory or Path(host.data_directory) / "keys")


plugin = KeyManagerPlugin(name="disk", config=DiskKeysConfig, manager=_manager)
