"""The vendors' SDKs: optional, imported where they are configured, and bounded in time."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ca.errors import ConfigError, Unavailable
from ca.runtime.elsewhere import elsewhere
from ca.runtime.notes import note
from ca.runtime.threads import to_thread

MAX_SECRET_BYTES = 16 * 1024
MAX_AT_ONCE = 32

A = TypeVar("A")
R = TypeVar("R")


def needed(module: str, extra: str) -> Any:
    """The module. Raises ConfigError when it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"look-ups by the cloud's API need the Python package of `{module}`, which is not installed",
            reason="CLOUD_SDK_MISSING",
            hint=f"install it with `pip install burgee[{extra}]`, or leave `api` out",
        ) from error


def secret_from(path: Path) -> str:
    """The secret in a file, without the line feed. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SECRET_BYTES + 1)
        text = content.decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read `{path}`", reason="CONFIG_UNREADABLE") from error
    if not text or len(content) > MAX_SECRET_BYTES:
        raise ConfigError(f"`{path}` holds no secret", reason="CONFIG_UNREADABLE")
    return text


class LookUps:
    """Look-ups that block, each in a thread, few at a time; given up after a while, in which it may have waited."""

    def __init__(self, *, seconds: float, vendor: str) -> None:
        self._seconds = seconds
        self._vendor = vendor
        self._places = asyncio.Semaphore(MAX_AT_ONCE)

    async def ask(self, call: Callable[[A], R], argument: A) -> R:
        """Raises Unavailable CLOUD_API and what `call` raises."""
        try:
            async with elsewhere(), asyncio.timeout(self._seconds), self._places:
                return await to_thread(call, argument)
        except TimeoutError as error:
            raise api_unavailable(self._vendor, f"no answer within {self._seconds:g} s") from error


def api_unavailable(vendor: str, why: str) -> Unavailable:
    """Why is for administrators."""
    note(f"API of {vendor}", why)
    return Unavailable(f"the API of {vendor} cannot be asked about this node", reason="CLOUD_API", hint="try again")
