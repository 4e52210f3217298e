"""/live of the agent: it fails where only a restart helps, and where the agent cannot even answer."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from ca.runtime.config import from_values
from sds.agent import Agent
from sds.config import AgentConfig
from tests.sds.lab import eventually
from tests.sds.test_agent import http, started
from tests.support.pair import free_port, pair


@pytest.fixture
def home() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="bg-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def agent(home: Path) -> AsyncIterator[Agent]:
    """One whose server is away: that is no reason to restart it."""
    (home / "token").write_text("t")
    config = {
        "trust_domain": "example.org",
        "data_dir": str(home / "agent"),
        "servers": [f"127.0.0.1:{free_port()}"],
        "workload_socket": str(home / "w" / "w.sock"),
        "admin_socket": {"path": str(home / "a" / "a.sock")},
        "trust": {"insecure_bootstrap": True},
        "node_attestor": {"join_token": {"token_file": str(home / "token")}},
        "cache": {"persist": "none"},
        "metrics_address": "127.0.0.1:0",
    }
    async with started(from_values(config, AgentConfig)) as running:
        yield running


async def live(agent: Agent) -> tuple[int, list[str]]:
    status, body = await http(agent, "/live")
    return status, [problem["reason"] for problem in body["problems"]]


@pytest.mark.parametrize("task", ["identity", "sync", "rotation", "attestation", "expiry", "keeper", "policies"])
async def test_a_task_that_it_cannot_do_without_is_over(agent: Agent, task: str) -> None:
    assert await live(agent) == (200, [])
    (found,) = (running for running in asyncio.all_tasks() if running.get_name() == task)
    found.cancel()
    await eventually(found.done)
    assert await live(agent) == (503, ["TASK_OVER"])


async def test_its_worker_threads_are_stuck(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ca.runtime.heartbeat.STUCK_SECONDS", 2.0)
    door = threading.Event()
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as pool:
        loop.set_default_executor(pool)
        loop.run_in_executor(None, door.wait)
        try:
            deadline = loop.time() + 15
            while await live(agent) != (503, ["STUCK"]):
                assert loop.time() < deadline, "nobody noticed"
                await asyncio.sleep(0.1)
        finally:
            door.set()
        deadline = loop.time() + 15
        while await live(agent) != (200, []):
            assert loop.time() < deadline, "it did not recover"
            await asyncio.sleep(0.1)
        await agent.close()


async def test_its_loop_hangs(agent: Agent) -> None:
    """Whoever asks gets no answer while it lasts: a probe with a timeout fails."""
    assert agent._status is not None
    url = f"http://{agent._status.host}:{agent._status.port}/live"
    answers: list[object] = []

    def ask() -> None:
        try:
            answers.append(httpx.get(url, timeout=1).status_code)
        except httpx.TimeoutException:
            answers.append("no answer")

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(2)  # noqa: ASYNC251 - that is what is tested
    asking.join()
    assert answers == ["no answer"]
    assert await live(agent) == (200, [])


def test_it_is_stopped() -> None:
    with pair(agent={"metrics_address": f"127.0.0.1:{free_port()}"}) as nodes:
        url = f"http://{nodes.agent_options['metrics_address']}/live"
        assert httpx.get(url, timeout=10).status_code == 200
        os.kill(nodes.pid("agent"), signal.SIGSTOP)
        try:
            with pytest.raises(httpx.TimeoutException):
                httpx.get(url, timeout=1)
        finally:
            os.kill(nodes.pid("agent"), signal.SIGCONT)
        assert httpx.get(url, timeout=10).status_code == 200
