"""Whoever may ask may ask much: what is expensive takes turns, and is not done again for who asks the same."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from ca.api import access
from ca.api.policy import desk as desks
from ca.api.policy.desk import AT_ONCE, PAST_COST, Desk
from ca.errors import Exhausted
from ca.runtime import decision_reader
from ca.runtime.policy_config import PolicyLimitsConfig
from ca.service.policy.grants import Rights
from policy.book_values import Change, Key, Outcome


class Book:
    """Of which the revision 9 is in force."""

    def __init__(self) -> None:
        self.state: Any = SimpleNamespace(revision=9)
        self.held = SimpleNamespace(settings=SimpleNamespace(limits=PolicyLimitsConfig()))
        self.made: list[int] = []
        self.now = self.most = 0

    def rights_of(self, caller: object) -> Rights:
        return Rights(is_admin=False, root_namespace="root", reads=frozenset({"shop"}))

    async def state_at(self, revision: int) -> Any:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.01)
        self.now -= 1
        self.made.append(revision)
        return SimpleNamespace(revision=revision)


@contextmanager
def a_desk(monkeypatch: pytest.MonkeyPatch, **parts: Any) -> Iterator[tuple[Desk, Book]]:
    book = Book()
    peer = SimpleNamespace(transport="tls", svid=SimpleNamespace(id="spiffe://td/x"), remote_address="")
    monkeypatch.setattr(desks, "current_caller", lambda: access.Caller.__new__(access.Caller))
    made = SimpleNamespace(book=book, clock=SimpleNamespace(monotonic=lambda: 0.0), decisions=None, **parts)
    monkeypatch.setattr(Desk, "author", lambda _: {"actor": str(peer.svid.id), "origin": ""})
    yield Desk(made), book  # type: ignore[arg-type]


async def test_a_past_revision_is_made_once_for_all_who_ask_about_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with a_desk(monkeypatch) as (desk, book):
        await asyncio.gather(*(desk.state(3) for _ in range(20)))
        assert await desk.state(9) is book.state
        assert await desk.state(None) is book.state
        assert book.made == [3]
        book.state = SimpleNamespace(revision=9)  # other targets
        await desk.state(3)
        assert book.made == [3, 3]


async def test_past_revisions_take_turns_and_count_against_the_callers_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    with a_desk(monkeypatch) as (desk, book):
        most = int(desk._rates.capacity) // PAST_COST
        assert most < 150
        found = await asyncio.gather(*(desk.state(n % 8) for n in range(150)), return_exceptions=True)
        assert book.most == 1
        assert sum(isinstance(one, Exhausted) for one in found) == 150 - most


async def test_a_write_is_made_by_the_rights_of_when_its_body_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever begins a write and ends it after the grant was taken back has no right to it."""
    used: list[Rights] = []

    async def written(*_: object, rights: Rights, **__: object) -> Outcome:
        used.append(rights)
        return Outcome(revision=None)

    with a_desk(monkeypatch) as (desk, book):
        key = Key(kind="AuthorizationPolicy", namespace="shop", name="p")
        granted = Rights(is_admin=False, root_namespace="root", writes=frozenset({"shop"}))
        monkeypatch.setattr(book, "rights_of", lambda _: granted)
        assert (await desk.writer(key)) is granted
        taken_back = Rights(is_admin=False, root_namespace="root")
        monkeypatch.setattr(book, "rights_of", lambda _: taken_back)
        for name in ("write", "change", "rollback"):
            monkeypatch.setattr(book, name, written, raising=False)
        request: Any = SimpleNamespace(headers={})
        await desk.write(request, [Change(key=key, body=None)])
        await desk.change(request, key, lambda _: Change(key=key, body=None), digest=b"", note="", dry_run=False)
        await desk.roll_back(request, 1, note="", dry_run=False, expected_revision=None)
        assert used == [taken_back] * 3


async def test_searches_of_the_log_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def find(*_: object) -> decision_reader.Page:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return decision_reader.Page((), True, 0, 0)

    monkeypatch.setattr(decision_reader, "find", find)
    with a_desk(monkeypatch) as (desk, _):
        desk.parts.decisions = SimpleNamespace(flush=lambda: None, directory=None)  # type: ignore[misc,assignment]
        await asyncio.gather(*(desk.found(decision_reader.Query()) for _ in range(10)))
    assert most <= AT_ONCE
