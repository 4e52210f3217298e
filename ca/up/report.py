"""What a person or a program sees of `burgee up`: lines of text, or JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Protocol, TextIO

from ca.errors import BurgeeError
from ca.up.failure import PartFailed


@dataclass(frozen=True, kw_only=True)
class Decided:
    """One request web → api, and what was decided of it at `target`'s Envoy: by a filter that was `pushed` to it, or by
    asking (`ext_authz`). `decision` is the ID that the caller was told."""

    source: str
    target: str
    url: str
    status: int
    allowed: bool
    decision: str
    revision: int
    explanation: str


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One request web → api, as the two Envoys told it. `client_id` is what api's Envoy saw, `server_id` what web's;
    `decisions` are of further requests."""

    url: str
    status: int
    client_id: str
    server_id: str
    tls_version: str
    svid_not_after: str
    svid_remaining_seconds: int
    svid_ttl_seconds: int
    decisions: tuple[Decided, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """A service's Envoy has taken over a new certificate; `request_status` is that of a request right after."""

    service: str
    spiffe_id: str
    serial: str
    not_after: str
    remaining_seconds: int
    request_status: int


_WAYS = {"pushed": "sidecar", "ext_authz": "gateway"}


class Report(Protocol):
    """Receives what happens, in order."""

    def part(self, name: str, state: str, detail: str) -> None: ...

    def ready(self, summary: dict[str, Any], proof: Proof | None, next_steps: list[str]) -> None: ...

    def rotation(self, rotation: Rotation) -> None: ...

    def failed(self, error: BurgeeError) -> None: ...

    def stopped(self) -> None: ...


class TextReport:
    """For a person; colour only on a terminal and without NO_COLOR."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._colour = self._out.isatty() and "NO_COLOR" not in os.environ

    def part(self, name: str, state: str, detail: str) -> None:
        self._line(f"{self._paint('32', f'{name:<9}')}{state:<10}{detail}")

    def ready(self, summary: dict[str, Any], proof: Proof | None, next_steps: list[str]) -> None:
        if proof is not None:
            self._line("")
            request = f"GET {proof.url} → {proof.status} over mutual {proof.tls_version}"
            self._line(self._paint("1;32", "proof    ") + request)
            self._line(f"         api's Envoy saw   {proof.client_id}")
            self._line(f"         web's Envoy saw   {proof.server_id}")
            self._line(f"         SVID life left    {proof.svid_remaining_seconds} s of {proof.svid_ttl_seconds} s")
            self._decisions(proof.decisions)
        self._line("")
        for number, step in enumerate(next_steps):
            self._line(("next     " if number == 0 else "         ") + step)

    def _decisions(self, decisions: Sequence[Decided]) -> None:
        """Of what is refused the whole explanation."""
        for number, one in enumerate(decisions):
            first = number == 0 or decisions[number - 1].source != one.source
            if first:
                self._line("")
            head = self._paint("1;32", f"{_WAYS.get(one.source, one.source):<9}") if first else " " * 9
            self._line(f"{head}GET {one.url} → {one.status}, decision {one.decision}")
            lines = one.explanation.splitlines()
            for line in lines[:1] if one.allowed else lines:
                self._line(" " * 9 + line)

    def rotation(self, rotation: Rotation) -> None:
        clock = datetime.now().astimezone().strftime("%H:%M:%S")
        self._line(
            f"{clock} {self._paint('36', 'rotated')} {rotation.service}: serial {rotation.serial[:16]}…, "
            f"{rotation.remaining_seconds} s to live, a request right after: {rotation.request_status}"
        )

    def failed(self, error: BurgeeError) -> None:
        part = f"{error.part}: " if isinstance(error, PartFailed) else ""
        print(f"burgee up failed: {part}{error.detail} ({error.reason})", file=self._err)
        if error.hint:
            print(f"  hint: {error.hint}", file=self._err)
        for line in error.log_tail if isinstance(error, PartFailed) else ():
            print(f"  | {line}", file=self._err)

    def stopped(self) -> None:
        self._line("stopped")

    def _line(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text


class JsonReport:
    """For a program: with `once` a single object at the end, otherwise one object per line as things happen."""

    def __init__(self, *, once: bool, out: TextIO | None = None) -> None:
        self._once = once
        self._out = out or sys.stdout

    def part(self, name: str, state: str, detail: str) -> None:
        if not self._once:
            self._write({"event": "part", "part": name, "state": state, "detail": detail})

    def ready(self, summary: dict[str, Any], proof: Proof | None, next_steps: list[str]) -> None:
        event = {} if self._once else {"event": "ready"}
        self._write({**event, "ok": True, **summary, "proof": asdict(proof) if proof else None})

    def rotation(self, rotation: Rotation) -> None:
        self._write({"event": "rotation", **asdict(rotation)})

    def failed(self, error: BurgeeError) -> None:
        event = {} if self._once else {"event": "failed"}
        failed = error if isinstance(error, PartFailed) else None
        self._write(
            {
                **event,
                "ok": False,
                "part": failed.part if failed else None,
                "reason": error.reason,
                "error": error.detail,
                "hint": error.hint,
                "log_tail": list(failed.log_tail) if failed else [],
            }
        )

    def stopped(self) -> None:
        self._write({"event": "stopped"} if not self._once else {"ok": False, "reason": "STOPPED", "error": "stopped"})

    def _write(self, value: dict[str, Any]) -> None:
        print(json.dumps(value, indent=2 if self._once else None), file=self._out, flush=True)
