"""What the names of one discovery service stand for, at one moment and for one kind of caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sds.memory import Room


@dataclass(frozen=True, slots=True)
class Found:
    """A serialized google.protobuf.Any with the resource. Lower ranks are sent first: roots, then leaves.

    `version` is a hash of the bytes, the same on every stream, in every agent and after a restart. `note`: what an
    operator should know of it, also when it was accepted.
    """

    resource: bytes
    rank: int
    version: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Missing:
    """Why a name means nothing, and what would give it a meaning. `pending`: it has one, which is on its way."""

    detail: str
    pending: bool = False


class Answers(Protocol):
    """The resources of a discovery service."""

    @property
    def type_url(self) -> str:
        """Of every resource."""

    @property
    def version(self) -> str:
        """A name for all of it, the same on every stream."""

    @property
    def held_bytes(self) -> int:
        """About how much of it is kept for one stream alone."""

    def every_name(self) -> Sequence[str]:
        """What a request without names stands for."""

    def find(self, name: str) -> Found | Missing:
        """What one name stands for."""

    def once_for(self, room: Room | None, key: tuple[object, ...], make: Callable[[], bytes]) -> bytes:
        """What `make` gives, made once for a key that callers choose, as long as there is room for it."""
