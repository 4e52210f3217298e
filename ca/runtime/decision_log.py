"""The decision log: who asks hands over a record and goes on, a thread writes. What cannot be kept is counted.

Lines are records as `DecisionRecord.json_line` writes them, and here and there a `Loss`. The file that is written to is
`decisions.jsonl`; those put aside are `decisions.jsonl.1` (the last) and so on. What was only asked about, over AuthZEN
and `evaluate`, is in `asked.jsonl` likewise, with a queue of its own: who may ask as much as he likes never pushes out
what proxies enforced.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ca.runtime.decision_log_config import DecisionLogConfig
from ca.runtime.files import make_private_dir
from ca.runtime.log import get
from ca.runtime.log_limit import Sparingly
from ca.runtime.metrics import counter, gauge
from policy.decision_record import MASK, MAX_LINE_BYTES, DecisionRecord, Source

if TYPE_CHECKING:
    from prometheus_client import Counter

FILE, ASKED_FILE = "decisions.jsonl", "asked.jsonl"
ASKED = frozenset({Source.AUTHZEN, Source.EVALUATE})
"""Whose answers nobody here enforces, and that whoever may read policies can have made."""
CLAIMS_IN = "envoy.filters.http.jwt_authn"
"""The filter that leaves the claims of tokens in the request's metadata."""
BATCH = 512
GATHER_SECONDS = 0.05
"""What comes within this time of the first is written at once."""
FLUSH_SECONDS = 2.0

DECISIONS = counter(
    "policy_decisions", "Decisions by policies, by who made them and what they were", ["source", "verdict"]
)
SHADOW = counter("policy_shadow_decisions", "Decisions that would be others with shadow policies enforced", ["shadow"])
LOST = counter("decision_log_lost", "Decisions that are not in the decision log although they should be")
SAMPLED = counter("decision_log_sampled_out", "Allowed requests that are not in the log because of `sample_allowed`")
WAITING = gauge("decision_log_waiting", "Decisions that wait to be written")

log = get("decision_log")


@dataclass(frozen=True, slots=True)
class Loss:
    """So many records were lost before this line."""

    lost: int
    at: datetime

    def json_line(self) -> str:
        return json.dumps({"lost": self.lost, "at": self.at.astimezone(UTC).isoformat()}, separators=(",", ":"))


class DecisionLog:
    """One log. `close` writes what waits. Not thread-safe to `add` to: one event loop does.

    `agent` is written into records that name none.
    """

    def __init__(
        self,
        config: DecisionLogConfig,
        directory: Path,
        *,
        agent: Callable[[], str] = str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.config, self.directory = config, directory
        self.watchers: list[Callable[[DecisionRecord], None]] = []
        """Called with every record, those that are not kept included; must not raise or wait."""
        self.agent = agent
        self._now, self._chance = now, chance
        self._mask = Mask(config.mask_headers, config.mask_claims)
        self._enforced = _Share(_Rotating(directory / FILE, config.max_file_bytes, config.max_files))
        self._asked = _Share(_Rotating(directory / ASKED_FILE, config.max_file_bytes, config.max_asked_files))
        self._shares = self._enforced, self._asked
        self._wake = threading.Condition()
        self._stopping = False
        self._writing = 0
        self._complain = Sparingly(1)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to write. Raises OSError, FailedPrecondition where the directory cannot be made or is not private."""
        if self.config.enabled and self._thread is None:
            make_private_dir(self.directory)
            self._enforced.file.open()
            self._thread = threading.Thread(target=self._run, name="decision-log", daemon=True)
            self._thread.start()

    def add(self, record: DecisionRecord) -> None:
        """Count a decision, show it to who watches, and keep it; never waits."""
        _counted(record.source, allowed=record.allowed).inc()
        if record.shadow is not None and record.shadow is not record.allowed:
            SHADOW.labels("allowed" if record.shadow else "denied").inc()
        record = self._mask.applied(record)
        if not record.agent and (agent := self.agent()):
            record = replace(record, agent=agent)
        for watcher in self.watchers:
            watcher(record)
        if self._thread is None:
            return
        share = self._asked if record.source in ASKED else self._enforced
        if record.allowed and record.shadow is not False and self._chance() >= self.config.sample_allowed:
            SAMPLED.inc()
        elif len(share.waiting) >= self.config.max_waiting:
            share.lose()
        else:
            share.waiting.append(record)
            if len(share.waiting) == 1:
                with self._wake:
                    self._wake.notify_all()

    def lose(self, count: int = 1) -> None:
        """So many decisions that were enforced could not be kept."""
        self._enforced.lose(count)

    @property
    def lost(self) -> int:
        """Losses that are not yet in the log."""
        return sum(share.lost for share in self._shares)

    def flush(self, seconds: float = FLUSH_SECONDS) -> None:
        """Wait until what was added is written, for so long at most. To be called from another thread."""
        with self._wake:
            self._wake.notify_all()
            self._wake.wait_for(lambda: not self._waits and not self._writing, seconds)

    def close(self) -> None:
        """Write what waits, within FLUSH_SECONDS; harmless when done twice."""
        if self._thread is not None:
            with self._wake:
                self._stopping = True
                self._wake.notify_all()
            self._thread.join(FLUSH_SECONDS)
            self._thread = None
            for share in self._shares:
                share.file.close()

    @property
    def _waits(self) -> int:
        return sum(len(share.waiting) for share in self._shares)

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waits or self._stopping)
                if not self._stopping:
                    self._wake.wait_for(lambda: self._stopping, GATHER_SECONDS)
                stopping, self._writing = self._stopping, 1
            fails: set[_Share] = set()
            while due := [share for share in self._shares if share not in fails and share.due]:
                WAITING.set(self._waits)
                fails.update(share for share in due if not self._write(share))
            with self._wake:
                self._writing = 0
                self._wake.notify_all()
            if stopping and not self._waits:
                return

    def _write(self, share: _Share) -> bool:
        """One batch of it."""
        try:
            share.write(self._now())
        except OSError as error:
            if (more := self._complain.more("write")) is not None:
                log.error("decisions cannot be kept", reason="DECISION_LOG", cause=str(error), lost=self.lost, **more)
            return False
        return True


@cache
def _counted(source: Source, *, allowed: bool) -> Counter:
    return DECISIONS.labels(source, "allowed" if allowed else "denied")


def line_of(record: DecisionRecord) -> str:
    """A record's line; of one that is too long, only who, what and why."""
    line = record.json_line()
    if len(line) <= MAX_LINE_BYTES:
        return line
    cut = ("headers", "claims", "metadata", "path", "host")
    return replace(
        record, headers={}, claims=None, metadata={}, path=None, host=None, masked=(*record.masked[:100], *cut)
    ).json_line()


class Mask:
    """Replaces values that must not be kept, and says of which."""

    def __init__(self, headers: Iterable[str], claims: Iterable[str]) -> None:
        self._headers, self._claims = frozenset(headers), frozenset(claims)

    def applied(self, record: DecisionRecord) -> DecisionRecord:
        headers = self._headers & record.headers.keys()
        claims = self._claims & (record.claims or {}).keys()
        if self._claims and CLAIMS_IN in record.metadata:
            record = self._without_claims(record)
        if not headers and not claims:
            return record
        masked = (*record.masked, *(f"headers.{n}" for n in sorted(headers)), *(f"claims.{n}" for n in sorted(claims)))
        return replace(
            record,
            headers=_masked(record.headers, headers),
            claims=None if record.claims is None else _masked(record.claims, claims),
            masked=masked,
        )

    def _without_claims(self, record: DecisionRecord) -> DecisionRecord:
        """The same claims, as the proxy's filter left them."""
        left: dict[str, Any] = dict(record.metadata[CLAIMS_IN])
        masked: list[str] = []
        for name, payload in left.items():
            if isinstance(payload, dict) and (found := self._claims & payload.keys()):
                left[name] = _masked(payload, found)
                masked += (f"metadata.{CLAIMS_IN}.{name}.{claim}" for claim in sorted(found))
        metadata = {**record.metadata, CLAIMS_IN: left}
        return replace(record, metadata=metadata, masked=(*record.masked, *masked)) if masked else record


def _masked(found: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: MASK if name in names else value for name, value in found.items()}


class _Share:
    """What waits to be written into one file, and how much was lost of it: nothing else takes its room."""

    def __init__(self, file: _Rotating) -> None:
        self.file = file
        self.waiting: deque[DecisionRecord] = deque()
        self.lost = 0
        self._counting = threading.Lock()

    @property
    def due(self) -> bool:
        return bool(self.waiting or self.lost)

    def lose(self, count: int = 1) -> None:
        LOST.inc(count)
        with self._counting:
            self.lost += count

    def write(self, now: datetime) -> None:
        """One batch. Raises OSError; what was in it is lost then."""
        with self._counting:
            lost, self.lost = self.lost, 0
        lines: list[str] = []
        while self.waiting and len(lines) < BATCH:
            lines.append(line_of(self.waiting.popleft()))
        try:
            self.file.write([Loss(lost, now).json_line(), *lines] if lost else lines)
        except OSError:
            self.lose(len(lines))
            with self._counting:
                self.lost += lost
            raise


class _Rotating:
    """A file that is put aside when it has grown; 0600, whatever the umask. Used by one thread."""

    def __init__(self, path: Path, max_bytes: int, max_files: int) -> None:
        self._path, self._max_bytes, self._max_files = path, max_bytes, max_files
        self._fd = -1
        self._size = 0

    def open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._path, flags, 0o600)
        os.fchmod(self._fd, 0o600)
        self._size = os.fstat(self._fd).st_size
        if self._size and os.pread(self._fd, 1, self._size - 1) != b"\n":
            self._append(b"\n")  # an earlier run ended within a line

    def write(self, lines: Iterable[str]) -> None:
        """Raises OSError; what was written of the lines is not known then."""
        if self._fd < 0:
            self.open()
        whole: list[bytes] = []
        size = self._size
        for line in lines:
            raw = line.encode() + b"\n"
            if size + len(raw) > self._max_bytes and size:
                self._append(b"".join(whole))
                self._rotate()
                whole, size = [], 0
            whole.append(raw)
            size += len(raw)
        self._append(b"".join(whole))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, raw: bytes) -> None:
        view = memoryview(raw)
        try:
            while view:
                written = os.write(self._fd, view)
                self._size += written
                view = view[written:]
        except OSError:
            self.close()
            raise

    def _rotate(self) -> None:
        self.close()
        for number in range(self._max_files - 1, 0, -1):
            before = self._path if number == 1 else aside(self._path, number - 1)
            if before.exists():
                os.replace(before, aside(self._path, number))
        if self._max_files == 1:
            self._path.unlink(missing_ok=True)
        self._remove_more()
        self.open()

    def _remove_more(self) -> None:
        """Files beyond the number, of a time when it was higher."""
        number = self._max_files
        while (found := aside(self._path, number)).exists():
            found.unlink()
            number += 1


def aside(path: Path, number: int) -> Path:
    """Where the file is that was put aside so many times ago."""
    return path.with_name(f"{path.name}.{number}")
