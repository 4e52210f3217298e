"""The trust bundle in a file of this machine, for programs that read one.

The first line of a PEM file, or a member of a SPIFFE document, says whose copy it is; a file that says nothing of the
kind is somebody's, and stays.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints

from ca.errors import FailedPrecondition, Unavailable
from ca.identity.bundle import TrustBundle
from ca.identity.bundle_json import MAX_BUNDLE_BYTES
from ca.ports import AuthorityHost, BundlePublisherPlugin
from ca.publish.form import Form, foreign, text_of
from ca.runtime.config import StrictModel
from ca.runtime.files import atomic_write

MEMBER = "kept_by"
_HINT = "remove the file, or choose another path"


class FilePublisherConfig(StrictModel):
    """Where the file is and how it looks."""

    path: Path
    """The file. Its directory must exist; nobody but whom you trust with the trust domain may write there."""

    format: Form = Form.PEM
    """`pem` for the X.509 authorities, `spiffe` for the whole SPIFFE bundle document."""

    mode: Annotated[str, StringConstraints(pattern=r"^0?[0-7]{3}\z")] = "0644"
    """The file's permissions, octal."""


class FilePublisher:
    """Replaced as a whole, so that a reader sees the old bundle or the new one."""

    def __init__(self, config: FilePublisherConfig, host: AuthorityHost) -> None:
        self._path = config.path
        self._form = config.format
        self._mode = int(config.mode, 8)
        self._mark = f"burgee, for {host.trust_domain.id}"

    @property
    def where(self) -> str:
        return f"`{self._path}`"

    async def publish(self, bundle: TrustBundle) -> bool:
        return await asyncio.to_thread(self._write, self._content(bundle))

    async def close(self) -> None:
        """There is nothing to let go."""

    def _content(self, bundle: TrustBundle) -> bytes:
        text = text_of(bundle, self._form)
        if self._form is Form.PEM:
            return f"# kept by {self._mark}\n{text}".encode()
        # Readers pass over members that they do not know (RFC 7517 §5).
        document = {MEMBER: self._mark} | json.loads(text)
        return (json.dumps(document, indent=4) + "\n").encode()

    def _write(self, content: bytes) -> bool:
        try:
            before = self._read()
            if before == content:
                return False
            if before and not self._is_ours(before):
                raise foreign(self.where, _HINT)
            atomic_write(self._path, content, self._mode)
        except FileNotFoundError as error:
            raise FailedPrecondition(
                f"there is no directory `{self._path.parent}`", reason="PUBLISH_FILE", hint="make it"
            ) from error
        except OSError as error:
            raise Unavailable(f"cannot write {self.where}: {error.strerror}", reason="PUBLISH_FILE") from error
        return True

    def _read(self) -> bytes:
        """Nothing where there is no file yet. Whatever else is there is not ours: a link would lead elsewhere."""
        if self._path.is_symlink() or (self._path.exists() and not self._path.is_file()):
            raise foreign(self.where, _HINT)
        try:
            with self._path.open("rb") as file:
                return file.read(MAX_BUNDLE_BYTES + 1)
        except FileNotFoundError:
            return b""

    def _is_ours(self, content: bytes) -> bool:
        if content.startswith(f"# kept by {self._mark}\n".encode()):
            return True
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):
            return False
        return isinstance(document, dict) and document.get(MEMBER) == self._mark


plugin = BundlePublisherPlugin(name="file", config=FilePublisherConfig, publisher=FilePublisher)
