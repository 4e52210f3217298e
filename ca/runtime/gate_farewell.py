"""Asks an HTTP/2 client to leave: one GOAWAY, put between two frames of what goes to it."""

from __future__ import annotations

from collections.abc import Callable

from ca.runtime.gate_h2 import GOAWAY_NO_ERROR, FrameTracker


class Farewell:
    """Follows what has been sent to one client; `send` sends bytes of ours after it."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._frames = FrameTracker()
        self._due = False
        self._said = False

    def follow(self, chunk: memoryview | bytes) -> None:
        """The client has been sent this."""
        if not self._said:
            self._frames.feed(chunk)
            self._say_if_due()

    def say(self) -> None:
        """Now, or as soon as a frame of ours may stand."""
        self._due = True
        self._say_if_due()

    def _say_if_due(self) -> None:
        if self._due and not self._said and self._frames.between_frames:
            self._said = True
            self._send(GOAWAY_NO_ERROR)
