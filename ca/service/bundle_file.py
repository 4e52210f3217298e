"""Keeps the server's own trust bundle in a PEM file, from which agents take their first trust."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ca.errors import FailedPrecondition
from ca.identity.bundle import TrustBundle
from ca.identity.bundle_pem import format_pem
from ca.runtime import log
from ca.runtime.files import atomic_write
from ca.service.trust import Trust

logger = log.get("bundle-file")

MODE = 0o644
"""Certificates are public; what counts is who may write here."""


class BundleFile:
    """Replaced as a whole whenever the bundle changes."""

    def __init__(self, path: Path, trust: Trust) -> None:
        self._path = path
        self._trust = trust
        self._changed = asyncio.Event()
        self._written = ""
        trust.on_change(self._on_change)

    async def write(self) -> None:
        """Writes the bundle of now. Raises FailedPrecondition (BUNDLE_FILE)."""
        text = format_pem(self._trust.own)
        if text != self._written:
            try:
                await asyncio.to_thread(atomic_write, self._path, text.encode(), MODE)
            except OSError as error:
                detail = f"cannot write the bundle to `{self._path}`: {error.strerror}"
                raise FailedPrecondition(detail, reason="BUNDLE_FILE", hint="its directory must exist") from error
            self._written = text
            logger.info("trust bundle written", path=str(self._path))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self.write()

    def _on_change(self, bundle: TrustBundle) -> None:
        if bundle.trust_domain == self._trust.trust_domain:
            self._changed.set()
