"""The decision log: bounded, rotated, private, masked; refusals are never sampled, and loss is counted, not hidden."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ca.errors import FailedPrecondition
from ca.runtime import decision_log
from ca.runtime.config import from_values
from ca.runtime.decision_log import ASKED_FILE, CLAIMS_IN, FILE, LOST, SAMPLED, SHADOW, DecisionLog, line_of
from ca.runtime.decision_log_config import DecisionLogConfig
from ca.runtime.decision_reader import Page, Query, find
from policy.decision_record import MASK, MAX_LINE_BYTES, DecisionRecord, Source
from policy.envoy_predicates import JWT_FILTER

AT = datetime(2026, 11, 26, 10, 0, tzinfo=UTC)


def record(number: int = 0, **more: object) -> DecisionRecord:
    found = DecisionRecord(
        id=f"p-{number}",
        at=AT + timedelta(seconds=number),
        source=Source.EXT_AUTHZ,
        target="spiffe://td/t",
        allowed=False,
        reason="NOTHING_ALLOWS",
        principal="td/web",
    )
    return replace(found, **more)  # type: ignore[arg-type]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "decisions"


def opened(directory: Path, **config: object) -> DecisionLog:
    found = DecisionLog(from_values(config, DecisionLogConfig), directory, agent=lambda: "spiffe://td/agent")
    found.start()
    return found


@pytest.fixture
def written(directory: Path) -> Iterator[DecisionLog]:
    found = opened(directory)
    try:
        yield found
    finally:
        found.close()


def test_what_is_added_is_found_newest_first(written: DecisionLog, directory: Path) -> None:
    for number in range(5):
        written.add(record(number, allowed=number % 2 == 0))
    written.flush()
    page = find(directory, Query())
    assert [r.id for r in page.records] == ["p-4", "p-3", "p-2", "p-1", "p-0"]
    assert page.complete
    assert {r.agent for r in page.records} == {"spiffe://td/agent"}
    assert [r.id for r in find(directory, Query(id="p-3")).records] == ["p-3"]
    assert [r.id for r in find(directory, Query(allowed=False)).records] == ["p-3", "p-1"]
    assert [r.id for r in find(directory, Query(since=AT + timedelta(seconds=3))).records] == ["p-4", "p-3"]
    assert [r.id for r in find(directory, Query(until=AT + timedelta(seconds=1))).records] == ["p-0"]
    assert [r.id for r in find(directory, Query(principal="td/w*", limit=2)).records] == ["p-4", "p-3"]
    assert not find(directory, Query(principal="td/w*", limit=2)).complete
    assert find(directory, Query(target="spiffe://td/other")).records == ()


def test_files_are_private_whatever_the_umask(directory: Path) -> None:
    before = os.umask(0)
    try:
        log = opened(directory, max_file_bytes=1 << 16, max_files=3)
        for number in range(1000):
            log.add(record(number, path="/" + "x" * 500))
        log.close()
    finally:
        os.umask(before)
    files = sorted(directory.iterdir())
    assert [f.name for f in files] == [FILE, f"{FILE}.1", f"{FILE}.2"]
    assert {stat.S_IMODE(f.stat().st_mode) for f in files} == {0o600}
    assert all(f.stat().st_size <= 1 << 16 for f in files)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    page = find(directory, Query(limit=1000))
    numbers = [int(r.id[2:]) for r in page.records]
    assert numbers == list(range(999, 999 - len(numbers), -1))
    assert len(numbers) > 150
    assert page.unread == 0


def test_a_directory_of_others_is_not_written_to(directory: Path) -> None:
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    with pytest.raises(FailedPrecondition):
        opened(directory)


def test_loss_is_counted_in_the_metric_and_in_the_log(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    write = decision_log._Rotating.write

    def slow(self: object, lines: list[str]) -> None:
        go_on.wait(20)
        write(self, lines)  # type: ignore[arg-type]

    monkeypatch.setattr(decision_log._Rotating, "write", slow)
    before = LOST._value.get()
    log = opened(directory, max_waiting=600)
    for number in range(5000):
        log.add(record(number))  # returns at once, although nothing is written
    go_on.set()
    log.close()
    lost = LOST._value.get() - before
    page = find(directory, Query(limit=1000))
    lines = (directory / FILE).read_bytes().splitlines()
    kept = [line for line in lines if b'"lost"' not in line]
    assert lost >= 5000 - 600 - decision_log.BATCH
    assert len(kept) + lost == 5000
    assert sum(json.loads(line)["lost"] for line in lines if b'"lost"' in line) == lost
    assert page.lost <= lost


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_more_files_are_kept_than_now_may_be(directory: Path, most: int) -> None:
    """Those of a time when more were kept go with the first that is put aside."""
    directory.mkdir(mode=0o700)
    for number in range(1, 7):
        (directory / f"{FILE}.{number}").write_text("{}\n")
    log = opened(directory, max_file_bytes=1 << 16, max_files=most, max_waiting=100_000)
    for number in range(1000):
        log.add(record(number))
    log.flush(20)
    log.close()
    names = {FILE, *(f"{FILE}.{number}" for number in range(1, most))}
    kept = {path.name: path for path in directory.iterdir() if path.name.startswith(FILE)}
    assert set(kept) == names
    assert all(path.stat().st_size <= 1 << 16 for path in kept.values())


@pytest.mark.parametrize("source", [Source.AUTHZEN, Source.EVALUATE])
def test_questions_never_push_out_what_was_enforced(directory: Path, source: Source) -> None:
    """Whoever may read policies may ask without end; refusals that proxies enforced are there all the same."""
    log = opened(directory, max_file_bytes=1 << 16, max_files=2, max_waiting=100_000)
    log.add(record(0))
    log.add(record(1, source=Source.PUSHED))
    for number in range(2, 3000):
        log.add(record(number, source=source, path="/" + "x" * 500, allowed=number % 2 == 0))
    log.close()
    files = {f.name: f.stat().st_size for f in directory.iterdir()}
    assert files.keys() == {FILE, ASKED_FILE, f"{ASKED_FILE}.1"}
    assert max(files.values()) <= 1 << 16
    enforced = [find(directory, Query(source=one)).records for one in (Source.EXT_AUTHZ, Source.PUSHED)]
    assert [[r.id for r in records] for records in enforced] == [["p-0"], ["p-1"]]
    everything = find(directory, Query(limit=1000))
    assert [r.id for r in everything.records[-2:]] == ["p-1", "p-0"]
    assert everything.complete
    assert find(directory, Query(source=source, limit=1)).records[0].id == "p-2999"


def test_questions_take_no_room_where_decisions_wait(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    write = decision_log._Rotating.write

    def slow(self: object, lines: list[str]) -> None:
        go_on.wait(20)
        write(self, lines)  # type: ignore[arg-type]

    monkeypatch.setattr(decision_log._Rotating, "write", slow)
    log = opened(directory, max_waiting=10)
    for number in range(600):
        log.add(record(number, source=Source.AUTHZEN))
    log.add(record(1000))
    go_on.set()
    log.close()
    assert [r.id for r in find(directory, Query(source=Source.EXT_AUTHZ)).records] == ["p-1000"]
    assert b'"lost"' not in (directory / FILE).read_bytes()
    assert b'"lost"' in (directory / ASKED_FILE).read_bytes()


def test_both_are_read_as_one_log_whatever_stands_between(directory: Path) -> None:
    log = opened(directory)
    for number in range(6):
        log.add(record(number, source=Source.AUTHZEN if number % 2 else Source.EXT_AUTHZ))
    log.close()
    with (directory / FILE).open("ab") as file:
        file.write(b"junk\n" + record(9).json_line().encode() + b"\n" + b'{"id":"p-2","at\n')
    page = find(directory, Query())
    assert [r.id for r in page.records] == ["p-9", "p-5", "p-4", "p-3", "p-2", "p-1", "p-0"]
    assert (page.unread, page.complete) == (2, True)
    (found,) = find(directory, Query(id="p-3")).records
    assert found.source is Source.AUTHZEN


def test_a_disk_that_takes_nothing_costs_decisions_and_no_request(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(directory)
    fails = True
    write = os.write

    def broken(fd: int, data: bytes) -> int:
        if fails and fd == log._enforced.file._fd:
            raise OSError(28, "no space left")
        return write(fd, data)

    monkeypatch.setattr(os, "write", broken)
    log.add(record(1))
    log.flush()
    assert log.lost == 1
    fails = False
    log.add(record(2))
    log.close()
    page = find(directory, Query())
    assert [r.id for r in page.records] == ["p-2"]
    assert page.lost == 1


def test_refusals_and_what_a_shadow_would_refuse_are_never_sampled(directory: Path) -> None:
    log = opened(directory, sample_allowed=0.0)
    before = SAMPLED._value.get()
    log.add(record(1, allowed=True))
    log.add(record(2))
    log.add(record(3, allowed=True, shadow=False))
    log.add(record(4, allowed=True, shadow=True))
    log.close()
    assert [r.id for r in find(directory, Query()).records] == ["p-3", "p-2"]
    assert SAMPLED._value.get() - before == 2


def test_what_shadow_policies_would_decide_otherwise_is_counted(directory: Path) -> None:
    def counted() -> list[float]:
        return [SHADOW.labels(verdict)._value.get() for verdict in ("allowed", "denied")]

    log, before = opened(directory), counted()
    for number, (allowed, shadow) in enumerate(
        [(True, False), (True, True), (False, True), (False, None), (True, False)]
    ):
        log.add(record(number, allowed=allowed, shadow=shadow))
    log.close()
    assert [after - was for after, was in zip(counted(), before, strict=True)] == [1, 2]


def test_secrets_are_masked_before_they_are_written_or_shown(directory: Path) -> None:
    log = opened(directory, mask_claims=["email"])
    shown: list[DecisionRecord] = []
    log.watchers.append(shown.append)
    log.add(
        record(1, headers={"authorization": "Bearer secret", "x-a": "b"}, claims={"email": "secret@x", "sub": "alice"})
    )
    log.close()
    assert b"secret" not in (directory / FILE).read_bytes()
    found = find(directory, Query()).records[0]
    assert found.headers == {"authorization": MASK, "x-a": "b"}
    assert found.claims == {"email": MASK, "sub": "alice"}
    assert found.masked == ("headers.authorization", "claims.email")
    assert [r.headers for r in shown] == [found.headers]


def test_claims_are_masked_also_where_a_proxys_filter_left_them(directory: Path) -> None:
    log = opened(directory, mask_claims=["email"])
    left = {"payload": {"email": "secret@x", "sub": "alice"}, "other": "text"}
    log.add(record(1, metadata={CLAIMS_IN: left, "mine": {"email": "kept"}}))
    log.close()
    assert b"secret" not in (directory / FILE).read_bytes()
    found = find(directory, Query()).records[0]
    assert found.metadata[CLAIMS_IN] == {"payload": {"email": MASK, "sub": "alice"}, "other": "text"}
    assert found.metadata["mine"] == {"email": "kept"}
    assert found.masked == (f"metadata.{CLAIMS_IN}.payload.email",)


def test_the_filter_that_leaves_claims_is_envoys() -> None:
    assert CLAIMS_IN == JWT_FILTER


def test_a_log_that_is_not_kept_writes_nothing_and_still_counts(directory: Path) -> None:
    log = opened(directory, enabled=False)
    before = decision_log.DECISIONS.labels("ext_authz", "denied")._value.get()
    log.add(record(1))
    log.close()
    assert not directory.exists()
    assert decision_log.DECISIONS.labels("ext_authz", "denied")._value.get() - before == 1


def test_what_an_earlier_run_left_unfinished_is_passed_over(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    (directory / FILE).write_bytes(record(1).json_line().encode() + b"\n" + b'{"id":"p-2","at')
    log = opened(directory)
    log.add(record(3))
    log.close()
    page = find(directory, Query())
    assert [r.id for r in page.records] == ["p-3", "p-1"]
    assert page.unread == 1


def test_a_link_in_place_of_the_file_is_not_followed(directory: Path, tmp_path: Path) -> None:
    directory.mkdir(mode=0o700)
    (directory / FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="levels of symbolic links"):
        opened(directory)


def test_a_huge_record_is_cut_down_to_who_and_what() -> None:
    found = record(1, headers={"x-a": "y" * MAX_LINE_BYTES})
    line = line_of(found)
    assert len(line) < 2000
    cut = DecisionRecord.from_json(line)
    assert (cut.id, cut.principal, cut.headers) == ("p-1", "td/web", {})
    assert "headers" in cut.masked


@pytest.mark.parametrize("junk", [b"\x00" * 3_000_000, b"[" * 400_000 + b"\n", b"\xff\n" * 100, b""])
def test_junk_in_the_file_is_bounded_and_passed_over(directory: Path, junk: bytes) -> None:
    directory.mkdir(mode=0o700)
    (directory / FILE).write_bytes(record(1).json_line().encode() + b"\n" + junk + b"\n")
    page: Page = find(directory, Query())
    assert [r.id for r in page.records] == ["p-1"]


def test_a_search_ends_in_time(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    (directory / FILE).write_bytes((record(1).json_line().encode() + b"\n") * 1000)
    assert not find(directory, Query(id="nobody"), seconds=-1).complete


def test_names_of_headers_are_checked() -> None:
    with pytest.raises(Exception, match="lower case"):
        from_values({"mask_headers": ["Authorization"]}, DecisionLogConfig)


def test_of_an_id_it_is_the_target_of_the_first_record_that_counts(directory: Path) -> None:
    """A workload that saw somebody's ID in a refusal may have its own proxy log it."""
    log = opened(directory)
    log.add(record(3))
    log.add(record(3, target="spiffe://td/forger", allowed=True))
    log.add(record(3, reason="ASK_FAILED"))
    log.add(record(3, target="spiffe://td/forger", allowed=True))
    log.close()
    (found,) = find(directory, Query(id="p-3")).records
    assert (found.target, found.reason) == ("spiffe://td/t", "ASK_FAILED")
