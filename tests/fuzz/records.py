"""A sequence of steps in one input: each is a letter, a length of two bytes, and so many bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from tests.fuzz.harness import Mutate

MAX_STEPS = 64


def split(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Letter and bytes of each step; the last one may be cut off."""
    at = 0
    for _ in range(MAX_STEPS):
        if at >= len(data):
            return
        size = int.from_bytes(data[at + 1 : at + 3], "big")
        yield data[at : at + 1], data[at + 3 : at + 3 + size]
        at += 3 + size


def join(steps: Sequence[tuple[bytes, bytes]]) -> bytes:
    return b"".join(letter + len(content).to_bytes(2, "big") + content for letter, content in steps)


def mutating(inner: Callable[[bytes, int, int, Mutate], bytes] | None = None) -> Callable[..., bytes]:
    """A mutator that drops, doubles or moves a step, or changes one by `inner` (the fuzzer's own by default)."""

    def mutate(data: bytes, max_bytes: int, seed: int, default: Mutate) -> bytes:
        rng = random.Random(seed)
        steps = list(split(data))
        if not steps or rng.random() < 0.1:
            return default(data, max_bytes)
        at = rng.randrange(len(steps))
        match rng.randrange(6):
            case 0 if len(steps) > 1:
                del steps[at]
            case 1:
                steps.insert(rng.randrange(len(steps) + 1), steps[at])
            case 2:
                other = rng.randrange(len(steps))
                steps[at], steps[other] = steps[other], steps[at]
            case _:
                letter, content = steps[at]
                size = min(len(content) + 256, 65535)
                changed = inner(content, size, seed, default) if inner else default(content or b"\x00", size)
                steps[at] = letter, changed
        whole = join(steps)
        return whole if len(whole) <= max_bytes else data

    return mutate
