"""What the gate itself says in HTTP/2: frames of ours among those that grpcio sends to a client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ca.runtime.gate_h2 import (
    GOAWAY_NO_ERROR,
    MAX_HEADER_BLOCK_BYTES,
    PREFACE,
    FrameTracker,
    ping_answer,
    ping_before_call,
)

ANSWER_SECONDS = 0.01
"""A ping's answer waits so long for something to go with."""


class Insertions:
    """Frames of ours, each between two of grpcio's. Sees all that goes to the client before it does; `send` sends bytes
    when nothing else is about to, and `behind` tells whether the client has not taken all that was sent."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, send: Callable[[bytes], None], behind: Callable[[], bool]
    ) -> None:
        self._loop = loop
        self._send = send
        self._behind = behind
        self._frames = FrameTracker()
        self._due = b""
        self._answering: asyncio.TimerHandle | None = None

    def carry(self, chunk: memoryview) -> memoryview | bytes:
        """What to send in place of the next chunk for the client."""
        frames, due = self._frames, self._due
        before = bool(due) and frames.between_frames
        frames.feed(chunk)
        if not due or not (before or frames.between_frames):
            return chunk
        self._due = b""
        return due + bytes(chunk) if before else bytes(chunk) + due

    def go_away(self) -> None:
        """Asks the client to leave, now or as soon as a frame of ours may stand."""
        self._due += GOAWAY_NO_ERROR
        self._flush()

    def answer(self, ping: bytes) -> bool:
        """Answers a PING frame (RFC 9113 §6.7) together with what is sent next, or a little later. False while another
        answer is due, and for a client that does not read: then the ping is for grpcio, which knows who pings too much,
        and waits with what it has to say."""
        if self._due or self._behind():
            return False
        self._due = ping_answer(ping)
        if self._answering is None:  # else it comes soon enough for this one too
            self._answering = self._loop.call_later(ANSWER_SECONDS, self._answer_alone)
        return True

    def close(self) -> None:
        """Nothing is sent any more."""
        self._due = b""
        if self._answering is not None:
            self._answering.cancel()

    def _answer_alone(self) -> None:
        self._answering = None
        self._flush()

    def _flush(self) -> None:
        if self._due and self._frames.between_frames:
            due, self._due = self._due, b""
            self._send(due)


class Requests:
    """Sees all that comes from the client before it goes to grpcio."""

    def __init__(self, insertions: Insertions) -> None:
        self._insertions = insertions
        self._frames = FrameTracker(skip_bytes=len(PREFACE))

    @property
    def too_large(self) -> bool:
        """Of the last call's header fields."""
        return self._frames.block_bytes > MAX_HEADER_BLOCK_BYTES

    def follow(self, plain: bytes) -> bytes:
        """What of the next bytes is for grpcio.

        Not the ping before a call: grpcio would wake up for it, and so would we for its answer. All other pings are
        for grpcio, which ends connections that do nothing else.
        """
        if self._frames.between_frames:
            ping = ping_before_call(plain, self._frames.last_stream)
            if ping is not None and self._insertions.answer(plain[ping]):
                plain = plain[: ping.start] + plain[ping.stop :]
        self._frames.feed(plain)
        return plain
