"""Notes of an attestation: who collects gets them, whoever else hears nothing."""

from __future__ import annotations

import asyncio

from ca.runtime.notes import MAX_CHARACTERS, MAX_NOTES, Note, collecting, note
from ca.runtime.threads import to_thread


async def test_tasks_and_threads_of_the_block_count() -> None:
    async def task() -> None:
        note("task", 1)

    with collecting() as notes:
        note("here", "x")
        await asyncio.gather(task(), to_thread(note, "thread", 2))
    note("after", "lost")
    assert sorted(notes) == [Note("here", "x"), Note("task", "1"), Note("thread", "2")]


def test_a_block_within_a_block_keeps_its_own() -> None:
    with collecting() as outer:
        with collecting() as inner:
            note("inner", 1)
        note("outer", 2)
    assert (inner, outer) == ([Note("inner", "1")], [Note("outer", "2")])


def test_they_are_bounded_and_printable() -> None:
    with collecting() as notes:
        note("label", "a\x1b[2Jb")
        for _ in range(2 * MAX_NOTES):
            note("w" * 2000, "v" * 2000)
    assert notes[0].value == "'a\\x1b[2Jb'"
    assert len(notes) == MAX_NOTES
    assert {len(taken.value) for taken in notes[1:]} == {MAX_CHARACTERS}
    assert {len(taken.what) for taken in notes[1:]} == {MAX_CHARACTERS}
