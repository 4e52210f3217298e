"""The vendors' SDKs: optional, imported where they are configured, and bounded in time."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from ca.errors import ConfigError, Unavailable
from ca.runtime.elsewhere import elsewhere
from ca.runtime.notes import note
from ca.runtime.threads import to_thread

MAX_SECRET_BYTES = 16 * 1024

P = ParamSpec("P")
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


async def deadline(call: Callable[[Any], R], argument: Any, *, seconds: float, vendor: str) -> R:
    """Blocking look-ups in a thread, given up after a while. Raises Unavailable CLOUD_API and what `call` raises."""
    try:
        async with elsewhere(), asyncio.timeout(seconds):
            return await to_thread(call, argument)
    except TimeoutError as error:
        raise api_unavailable(vendor, f"no answer within {seconds:g} s") from error


def api_unavailable(vendor: str, why: str) -> Unavailable:
    """Why is for administrators."""
    note(f"API of {vendor}", why)
    return Unavailable(f"the API of {vendor} cannot be asked about this node", reason="CLOUD_API", hint="try again")
