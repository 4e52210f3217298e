"""An executable whose file system does not answer: a FIFO without a writer blocks whoever opens it as well."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestor.workload.run import attest_all
from attestor.workload.unix import Config, UnixAttestor
from ca.errors import Unavailable
from ca.runtime.threads import watch, when_over
from tests.attestor.processes import Pinned


class OnAHungMount(Pinned):
    """This process, as if its program lay on a mount that does not answer."""

    def __init__(self, directory: Path) -> None:
        super().__init__(os.getpid())
        self.fifo = directory / "program"
        os.mkfifo(self.fifo)
        (directory / "exe").symlink_to(self.fifo)
        (directory / "status").write_bytes(Path("/proc/self/status").read_bytes())
        os.close(self.proc)
        self.proc = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)

    def answer(self) -> None:
        os.close(os.open(self.fifo, os.O_WRONLY | os.O_NONBLOCK))


@pytest.fixture
def process(tmp_path: Path) -> Iterator[OnAHungMount]:
    made = OnAHungMount(tmp_path)
    yield made
    made.close()


async def test_the_thread_that_hangs_is_known_until_it_ends(process: OnAHungMount) -> None:
    attestors, over = {"unix": UnixAttestor(Config())}, asyncio.Event()
    with watch() as unfinished:
        with pytest.raises(Unavailable) as caught:
            await attest_all(attestors, process, timeout_seconds=0.2)
        assert caught.value.reason == "WORKLOAD_ATTESTATION_FAILED"
        stuck = unfinished()
    assert len(stuck) == 1
    when_over(stuck, over.set)
    process.answer()
    await asyncio.wait_for(over.wait(), 2)
    assert f"uid:{process.uid}" in stuck[0].result()
