"""Reading a configuration again: what may change at run time changes, the rest is named and waits for a restart."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from ca.errors import BurgeeError
from ca.runtime import log, notify
from ca.runtime.config import load_yaml

M = TypeVar("M", bound=BaseModel)
_log = log.get("reload")


@dataclass(frozen=True, slots=True)
class Merged(Generic[M]):
    """The configuration to go on with, and the dotted keys that changed: taken over now, or only by a restart."""

    config: M
    applied: tuple[str, ...]
    waiting: tuple[str, ...]


def merge(old: M, new: M, live: Collection[str]) -> Merged[M]:
    """`old` with the values of `new` where their key, or a key above, is in `live`."""
    applied: list[str] = []
    waiting: list[str] = []
    return Merged(_merge(old, new, live, "", applied, waiting), tuple(applied), tuple(waiting))


def _merge(old: M, new: M, live: Collection[str], prefix: str, applied: list[str], waiting: list[str]) -> M:
    values: dict[str, Any] = {}
    for name in type(old).model_fields:
        before, after, key = getattr(old, name), getattr(new, name), f"{prefix}{name}"
        if before == after:
            continue
        if isinstance(before, BaseModel) and type(before) is type(after) and key not in live:
            values[name] = _merge(before, after, live, f"{key}.", applied, waiting)
        elif key in live:
            applied.extend(_changed(before, after, key))
            values[name] = after
        else:
            waiting.append(key)
    return old.model_copy(update=values)


def _changed(before: Any, after: Any, key: str) -> list[str]:
    """The leaves below `key` that differ."""
    if not isinstance(before, BaseModel) or type(before) is not type(after):
        return [key]
    names = [name for name in type(before).model_fields if getattr(before, name) != getattr(after, name)]
    return [leaf for name in names for leaf in _changed(getattr(before, name), getattr(after, name), f"{key}.{name}")]


def reload(
    path: Path, current: M, *, live: Collection[str], check: Callable[[M], None], apply: Callable[[M], None]
) -> M:
    """Read `path` again and apply what is live; returns the configuration that is in force then.

    A file that cannot be read or is wrong changes nothing, and the log says why. systemd is told of both ends.
    """
    notify.reloading()
    try:
        merged = merge(current, load_yaml(path, type(current)), live)
        check(merged.config)
        apply(merged.config)
    except BurgeeError as error:
        _log.error(
            "configuration not reloaded; the old one stays in force",
            reason="RELOAD_FAILED",
            file=str(path),
            detail=error.detail,
            hint=error.hint,
        )
        return current
    finally:
        notify.ready()
    _log.info("configuration reloaded", file=str(path), applied=list(merged.applied))
    if merged.waiting:
        _log.warning(
            "these keys changed and need a restart", reason="RESTART_NEEDED", file=str(path), keys=list(merged.waiting)
        )
    return merged.config
