"""Writes that are sent again, because the answer was lost: the same key gets what it was answered first."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

from ca.errors import AlreadyExists, InvalidArgument
from ca.ports import Clock
from ca.service.policy.records import Author
from ca.store.policies import ANSWERED, Answer
from ca.store.store import Store

KEPT = timedelta(hours=24)
"""A write that is sent again with its key within this time is not made again."""
MAX_KEY_CHARACTERS = 255

T = TypeVar("T")


class Answers:
    """Of every caller its own keys."""

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def asked(self, author: Author, key: str, request: bytes) -> Answer | None:
        """What is to be remembered of a write; None without a key. `request` is a digest of all that was asked for.
        Raises InvalidArgument IDEMPOTENCY_KEY."""
        check_key(key)
        if not key:
            return None
        return Answer(
            digest=hashlib.sha256(f"{author.name}\0{key}".encode()).digest(),
            request_sha256=request,
            until=self._clock.now() + KEPT,
        )

    async def known(self, answer: Answer | None) -> Answer | None:
        """What the same write was answered before. Raises InvalidArgument where the key was another write's."""
        found = None if answer is None else await self._store.policies.answered(answer.digest, self._clock.now())
        if answer is not None and found is not None and found.request_sha256 != answer.request_sha256:
            raise InvalidArgument(
                "the idempotency key was used for another write", reason="IDEMPOTENCY_KEY", hint="make a new key"
            )
        return found

    async def remember(self, answer: Answer | None) -> None:
        """What changed nothing. Raises AlreadyExists ANSWERED."""
        if answer is not None:
            await self._store.policies.remember(answer, self._clock.now())

    async def once(self, answer: Answer | None, work: Callable[[], Awaitable[T]], again: Callable[[Answer], T]) -> T:
        """What comes of `work`, which remembers the answer; or `again`, of the one that is there."""
        if (known := await self.known(answer)) is not None:
            return again(known)
        try:
            return await work()
        except AlreadyExists as error:  # by another server, meanwhile
            if error.reason != ANSWERED or (known := await self.known(answer)) is None:
                raise
            return again(known)


def check_key(key: str) -> None:
    """Raises InvalidArgument IDEMPOTENCY_KEY."""
    if len(key) > MAX_KEY_CHARACTERS or not key.isprintable():
        raise InvalidArgument(
            f"an idempotency key is printable text of at most {MAX_KEY_CHARACTERS} characters", reason="IDEMPOTENCY_KEY"
        )
