"""What a fuzz target is, and the promises that hold for all of them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ca.errors import BurgeeError

T = TypeVar("T")

CORPUS = Path(__file__).parent / "corpus"
MAX_CPU_SECONDS = 3.0
"""For one input, far above what any needs: what takes longer grows faster than its input."""

MAX_DETAIL_CHARACTERS = 16 * 1024
_REASON = re.compile(r"[A-Z][A-Z0-9_]*")

Mutate = Callable[[bytes, int], bytes]
"""The fuzzer's own mutation: bytes and their greatest length."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """`run` takes arbitrary bytes and raises when a promise is broken; what is refused in order is no exception.

    `mutate(data, max_bytes, seed, default)` knows the format (checksums, lengths, signatures) and is used in turns
    with the fuzzer's own mutations, `default`. `words` are spliced in.
    """

    name: str
    run: Callable[[bytes], None]
    mutate: Callable[[bytes, int, int, Mutate], bytes] | None = None
    words: tuple[bytes, ...] = ()
    max_bytes: int = 4096
    corpus: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "corpus", CORPUS / self.name)

    def check(self, data: bytes) -> None:
        """`run` within bounded time."""
        before = time.process_time()
        self.run(data)
        spent = time.process_time() - before
        assert spent < MAX_CPU_SECONDS, f"took {spent:.1f} s for {len(data)} bytes"


def outcome(call: Callable[..., T], *args: Any, refusal: type[BurgeeError], **options: Any) -> T | None:
    """What `call` returns, or None when it refused with exactly this class, in words fit for a log line."""
    try:
        return call(*args, **options)
    except BurgeeError as error:
        check_refusal(error, refusal)
        return None


def check_refusal(error: BurgeeError, *families: type[BurgeeError]) -> None:
    """The class, the reason code, and a detail of one bounded, printable line."""
    if type(error) not in families:
        raise error
    if _REASON.fullmatch(error.reason) is None:
        raise AssertionError(f"reason code {error.reason!r}") from error
    if not 0 < len(error.detail) <= MAX_DETAIL_CHARACTERS:
        raise AssertionError(f"a detail of {len(error.detail)} characters") from error
    if not error.detail.isprintable():
        raise AssertionError(f"detail is not one printable line: {error.detail!r}") from error


def text_of(data: bytes) -> str:
    """Any bytes as text, lone surrogates included, as a careless caller would hand them on."""
    return data.decode("utf-8", "surrogateescape")
