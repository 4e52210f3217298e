"""Health that tells the truth over HTTP, supervised tasks, logs, plugins."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import EntryPoint

import httpx
import pytest

from ca.errors import ConfigError, FailedPrecondition
from ca.ports import KeyManagerPlugin
from ca.runtime import log, metrics, plugins
from ca.runtime.clock import SystemClock
from ca.runtime.health import Health, Problem
from ca.runtime.status_server import StatusServer, serve_metrics_and_health
from ca.runtime.tasks import Tasks
from tests.ca.runtime.rig import until
from tests.support.clock import FakeClock

DOWN = Problem(reason="STORE_DOWN", detail="the store does not answer", hint="start it")


@asynccontextmanager
async def status(health: Health) -> AsyncIterator[tuple[httpx.AsyncClient, StatusServer]]:
    server = await serve_metrics_and_health("127.0.0.1:0", health)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
            yield client, server
    finally:
        await server.close()


async def test_ready_says_why_not_and_live_stays_alive() -> None:
    health = Health()
    state: dict[str, Problem | None] = {"store": None, "loop": None}
    health.add("store", lambda: state["store"])
    health.add("loop", lambda: state["loop"], live=True)
    async with status(health) as (client, _):
        assert (await client.get("/ready")).json() == {"status": "ok", "problems": []}
        state["store"] = DOWN
        answer = await client.get("/ready")
        assert answer.status_code == 503
        assert answer.json()["problems"] == [
            {"check": "store", "reason": "STORE_DOWN", "detail": DOWN.detail, "hint": "start it"}
        ]
        assert (await client.get("/live")).status_code == 200
        state["loop"] = DOWN
        assert (await client.get("/live")).status_code == 503
        state.update(store=None, loop=None)
        assert (await client.get("/ready")).status_code == 200


async def test_what_may_not_work_for_long_is_shown_and_changes_nothing() -> None:
    health = Health()
    soon: list[Problem] = [DOWN]
    health.warn("upstream", lambda: soon[0] if soon else None)
    async with status(health) as (client, _):
        answer = await client.get("/ready")
        assert answer.status_code == 200
        (warning,) = answer.json()["warnings"]
        assert (warning["check"], warning["reason"]) == ("upstream", "STORE_DOWN")
        assert "warnings" not in (await client.get("/live")).json()
        soon.clear()
        assert (await client.get("/ready")).json() == {"status": "ok", "problems": []}
    health.warn("broken", lambda: Problem(no="such"))
    assert health.warnings()["broken"].reason == "CHECK_FAILED"
    assert health.ready
    health.remove("broken")
    assert health.warnings() == {}


def test_a_broken_check_is_a_problem_and_a_removed_one_is_none() -> None:
    health = Health()
    health.add("broken", lambda: Problem(no="such"))
    assert health.problems()["broken"].reason == "CHECK_FAILED"
    assert not health.ready
    health.remove("broken")
    assert health.ready


async def test_metrics_are_prometheus_text() -> None:
    probe = metrics.counter("test_probe", "For this test.", ["kind"])
    probe.labels("x").inc()
    async with status(Health()) as (client, _):
        answer = await client.get("/metrics?name=x")
        assert answer.headers["content-type"].startswith("text/plain")
        assert 'burgee_test_probe_total{kind="x"} 1.0' in answer.text
        assert "process_resident_memory_bytes" in answer.text


async def test_bad_requests_are_refused_and_oversized_ones_unread() -> None:
    async with status(Health()) as (client, server):
        assert (await client.get("/other")).status_code == 404
        assert (await client.post("/ready", content=b"x")).status_code == 405
        assert (await client.head("/ready")).content == b""
        assert (await client.get("/ready", headers={"x": "y" * 9000})).status_code == 431
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /ready HTTP/9\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()


async def test_idle_callers_cannot_crowd_out_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ca.runtime.status_server.REQUEST_TIMEOUT_SECONDS", 0.1)
    async with status(Health()) as (client, server):
        idle = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(70)]
        assert await asyncio.wait_for(idle[-1][0].read(), 5) == b"", "above 64 they are closed at once"
        assert await asyncio.wait_for(idle[0][0].read(), 5) == b"", "the others after the timeout"
        assert (await client.get("/live")).status_code == 200
        for _, writer in idle:
            writer.close()


async def test_an_address_in_use_or_malformed_is_a_clear_error() -> None:
    async with status(Health()) as (_, server):
        with pytest.raises(FailedPrecondition) as used:
            await serve_metrics_and_health(f"127.0.0.1:{server.port}", Health())
        assert used.value.reason == "ADDRESS_IN_USE"
    with pytest.raises(ConfigError):
        await serve_metrics_and_health("9988", Health())


async def test_a_task_that_fails_is_restarted_ever_later_and_seen_in_the_health_report() -> None:
    clock, health = FakeClock(), Health()
    starts: list[float] = []

    async def run() -> None:
        starts.append(round(clock.monotonic(), 3))
        if len(starts) < 5:
            raise RuntimeError("no")

    async with Tasks(clock=clock, health=health) as tasks:
        task = tasks.spawn("sync", run)
        await until(lambda: starts)
        await until(lambda: not health.ready)
        assert health.problems()["task:sync"].reason == "TASK_FAILED"
        for _ in range(40):
            await clock.advance(0.05)
        await until(task.done)
    assert starts == [0.0, 0.1, 0.3, 0.7, 1.5]
    assert health.ready, "it ended well"


async def test_a_task_that_ran_long_starts_its_backoff_anew() -> None:
    clock, starts = FakeClock(), []

    async def run() -> None:
        starts.append(clock.monotonic())
        if len(starts) % 4:
            raise RuntimeError("no")
        await clock.sleep(100)
        raise RuntimeError("after long")

    async with Tasks(clock=clock) as tasks:
        tasks.spawn("steady", run)
        for _ in range(1100):
            await clock.advance(0.1)
    assert len(starts) >= 5
    assert starts[4] - (starts[3] + 100) < 0.25


async def test_a_task_without_restart_fails_once_and_close_cancels_the_rest() -> None:
    health, cancelled = Health(), []

    async def fails() -> None:
        raise RuntimeError("no")

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    tasks = Tasks(health=health)
    failed = tasks.spawn("once", fails, restart=False)
    tasks.spawn("forever", waits)
    with pytest.raises(ValueError, match="running"):
        tasks.spawn("forever", waits)
    await failed
    await until(lambda: tasks.names == ("forever",))
    assert "task:once" in health.problems()
    await tasks.close()
    assert cancelled == [True]
    assert tasks.names == ()


def test_logs_are_json_with_request_id_and_libraries_come_out_the_same_way() -> None:
    out = io.StringIO()
    log.configure("json", "info", out)
    try:
        identifier = log.new_request_id()
        log.get("room").info("hello", reason="WHY")
        log.get("room").debug("not this")
        logging.getLogger("library").warning("from %s", "outside")
        logging.getLogger("library").info("not this either")
        first, second = [json.loads(line) for line in out.getvalue().splitlines()]
        assert (first["event"], first["component"], first["reason"], first["level"]) == ("hello", "room", "WHY", "info")
        assert first["request_id"] == second["request_id"] == identifier
        assert second["event"] == "from outside"
        assert log.new_request_id() != identifier
    finally:
        log.request_id.set("")
        log.configure()


def test_console_logs_have_no_colours_off_a_terminal() -> None:
    out = io.StringIO()
    log.configure("console", "debug", out)
    try:
        try:
            raise RuntimeError("boom")
        except RuntimeError as error:
            log.get("room").debug("hello", exc_info=error)
        assert "hello" in out.getvalue()
        assert "RuntimeError: boom" in out.getvalue()
        assert "\x1b[" not in out.getvalue()
    finally:
        log.configure()


async def test_a_log_that_nobody_can_take_stops_nobody() -> None:
    closed = io.StringIO()
    closed.close()

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    for stream in (closed, Full()):
        log.configure("json", "info", stream)
        log.get("room").info("hello")
        logging.getLogger("library").warning("hello")
    log.configure()


def offered(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    def find(*, group: str, name: str | None = None) -> list[EntryPoint]:
        return [point for point in points if point.group == group and name in (None, point.name)]

    monkeypatch.setattr(plugins, "entry_points", find)


def test_plugins_are_found_by_name_and_mistakes_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    group = plugins.KEY_MANAGERS
    here = "tests.ca.runtime.test_health_and_tasks"
    offered(
        monkeypatch,
        EntryPoint("good", f"{here}:GOOD", group),
        EntryPoint("broken", "no_such_module:x", group),
        EntryPoint("wrong", f"{here}:DOWN", group),
        EntryPoint("twice", "a:x", group),
        EntryPoint("twice", "b:x", group),
    )
    assert plugins.load(group, "good", KeyManagerPlugin).name == "good"
    assert plugins.names(group) == ("broken", "good", "twice", "wrong")
    for name, reason, hint in (
        ("goood", "PLUGIN_UNKNOWN", "did you mean `good`?"),
        ("zzz", "PLUGIN_UNKNOWN", "installed are: broken, good, twice, wrong"),
        ("broken", "PLUGIN_BROKEN", ""),
        ("wrong", "PLUGIN_BROKEN", f"`{here}:DOWN` must name a KeyManagerPlugin"),
        ("twice", "PLUGIN_AMBIGUOUS", ""),
    ):
        with pytest.raises(ConfigError) as refused:
            plugins.load(group, name, KeyManagerPlugin)
        assert (refused.value.reason, refused.value.hint) == (reason, hint)


GOOD = KeyManagerPlugin(name="good", config=object, manager=lambda config, directory: None)  # type: ignore[arg-type,return-value]


async def test_the_system_clock_is_aware_and_moves() -> None:
    clock = SystemClock()
    before, mono = clock.now(), clock.monotonic()
    await clock.sleep(0.001)
    assert clock.now() > before
    assert clock.monotonic() > mono
    assert str(before.tzinfo) == "UTC"
