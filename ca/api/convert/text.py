"""Errors that name the part of the request they are about."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ca.errors import BurgeeError

T = TypeVar("T")


def named(what: str, read: Callable[[], T]) -> T:
    """The result of `read`; what it raises gets `what` in front of its detail."""
    try:
        return read()
    except BurgeeError as error:
        error.detail = f"{what}: {error.detail}"
        raise
