"""`caadmin explain` against a real agent and server: each fault has its reason, its next step, and is found by id."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import grpc
import pytest

from ca.cli.explain_pages import agent_page
from ca.cli.explain_values import agent_value
from ca.proto.burgee import admin_pb2, agent_pb2, agent_pb2_grpc
from tests.ca.cli.conftest import Caadmin
from tests.support.pair import Pair, pair, until

pytestmark = pytest.mark.xdist_group("explain")
ME = f"unix:uid:{os.getuid()}"
ID = re.compile(r"caadmin explain workload --id ([0-9a-f]{8}-[0-9a-f]+)")
REQUEST_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]+")


@pytest.fixture(scope="module")
def running() -> Iterator[Pair]:
    """An agent, one of whose attestors cannot do its work."""
    attestors = {"unix": {}, "systemd": {"bus_socket_path": "/nonexistent/bus"}}
    with pair(agent={"workload_attestors": attestors}) as made:
        yield made


@pytest.fixture(autouse=True)
def clean(running: Pair) -> Iterator[None]:
    """Entries that a test made are gone after it."""
    yield
    for entry_id in entries(running):
        running.delete_entry(entry_id)
    until("the agent has no entry", lambda: running.status().entries == 0)


def entries(running: Pair) -> list[str]:
    from ca.proto.spire import server_entry_pb2, server_entry_pb2_grpc

    with running._channel(running.admin_socket) as channel:
        stub = server_entry_pb2_grpc.EntryStub(channel)
        return [entry.id for entry in stub.ListEntries(server_entry_pb2.ListEntriesRequest(), timeout=5).entries]


def create(live: Caadmin, running: Pair, name: str, *selectors: str, expires_at: int = 0) -> str:
    """An entry, and the agent has it."""
    count = running.status().entries
    options = [word for selector in selectors for word in ("--selector", selector)]
    more = ["--expires-at", str(expires_at)] if expires_at else []
    parent, spiffe_id = running.status().spiffe_id, f"spiffe://pair.test/{name}"
    made = live("entry", "create", "--parent-id", parent, "--spiffe-id", spiffe_id, *options, *more, "-o", "json")
    assert made.code == 0, made.err
    until("the agent has the entry", lambda: running.status().entries == count + 1)
    found: str = made.json["results"][0]["entry"]["id"]
    return found


def explained(live: Caadmin, *, expect: int = 3) -> dict[str, object]:
    """What is said of this process, and that its own refusal, by the id that it was told, leads to the same."""
    said = live("explain", "workload", "--pid", str(os.getpid()), "-o", "json")
    assert said.code == expect, said.out + said.err
    verdict = said.json["verdict"]
    fetched = live("svid", "fetch")
    if expect == 0:
        assert fetched.code == 0
        return said.json
    assert f"({verdict['told']})" in fetched.err
    assert verdict["reason"] not in fetched.err.replace(verdict["told"], ""), "the cause is for administrators"
    told = ID.search(fetched.err)
    assert told is not None, fetched.err
    past = live("explain", "workload", "--id", told[1], "-o", "json")
    assert past.code == 3
    assert past.json["verdict"]["reason"] == verdict["reason"]
    assert past.json["process"]["pid"] == os.getpid()
    assert past.json["selectors"] == said.json["selectors"]
    return said.json


def reason(data: dict[str, object]) -> str:
    verdict = data["verdict"]
    assert isinstance(verdict, dict)
    return str(verdict["reason"])


def test_nothing_is_for_it(live: Caadmin) -> None:
    data = explained(live)
    assert reason(data) == "NO_ENTRY"
    assert f"--selector {ME}" in str(data["verdict"])


def test_the_next_step_mends_it(live: Caadmin, running: Pair) -> None:
    """What is to be typed can be typed."""
    command = live("explain", "workload", "--pid", str(os.getpid()), "-o", "json").json["verdict"]["command"]
    assert live(*command.replace("NAME", "mended").split()[1:]).code == 0
    until("it has an identity", lambda: live("svid", "fetch").code == 0)
    data = explained(live, expect=0)
    assert reason(data) == "OK"
    assert [one["spiffe_id"] for one in data["identities"]] == ["spiffe://pair.test/mended"]  # type: ignore[attr-defined,index]


def test_an_entry_asks_for_more_than_it_is(live: Caadmin, running: Pair) -> None:
    create(live, running, "far", ME, "unix:user:nobody-here", "unix:gid:4711")
    near = create(live, running, "near", ME, "unix:user:nobody-here")
    data = explained(live)
    assert reason(data) == "SELECTORS_MISSING"
    closest = [one for one in data["nearest"] if not one["reason"]]  # type: ignore[attr-defined]
    assert closest[0]["entry_id"] == near
    assert closest[0]["matches"] == [ME]
    assert closest[0]["misses"] == [{"selector": "unix:user:nobody-here", "reason": ""}]
    assert len(closest) == 2


def test_an_attestor_failed(live: Caadmin, running: Pair) -> None:
    create(live, running, "unit", ME, "systemd:id:web.service")
    data = explained(live)
    assert reason(data) == "ATTESTOR_FAILED"
    outcomes = {one["attestor"]: one for one in data["attestors"]}  # type: ignore[attr-defined]
    assert outcomes["unix"]["ok"]
    assert outcomes["unix"]["milliseconds"] > 0
    assert outcomes["systemd"]["reason"] == "SYSTEMD_UNREACHABLE"
    assert outcomes["systemd"]["hint"]


def test_no_attestor_finds_such_selectors(live: Caadmin, running: Pair) -> None:
    create(live, running, "pod", ME, "k8s:ns:default")
    assert reason(explained(live)) == "ATTESTOR_NOT_CONFIGURED"


def test_the_entry_was_deleted(live: Caadmin, running: Pair) -> None:
    gone = create(live, running, "gone", ME)
    running.delete_entry(gone)
    until("the agent has lost it", lambda: running.status().entries == 0)
    data = explained(live)
    assert reason(data) == "ENTRY_REMOVED"
    nearest = {one["entry_id"]: one["reason"] for one in data["nearest"]}  # type: ignore[attr-defined]
    assert nearest[gone] == "ENTRY_REMOVED"


def test_the_entry_expired(live: Caadmin, running: Pair) -> None:
    create(live, running, "short", ME, expires_at=int(time.time()) + 2)
    until("the agent has lost it", lambda: running.status().entries == 0)
    assert reason(explained(live)) == "ENTRY_EXPIRED"


def test_a_process_that_is_not_there(live: Caadmin) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    said = live("explain", "workload", "--pid", str(ended.pid))
    assert said.code == 3
    assert "PROCESS_NOT_FOUND" in said.err


def test_an_id_that_was_told_to_nobody(live: Caadmin) -> None:
    said = live("explain", "workload", "--id", "00000000-1")
    assert said.code == 3
    assert "REFUSAL_UNKNOWN" in said.err


@pytest.mark.parametrize("options", [[], ["--pid", "1", "--id", "00000000-1"]])
def test_one_of_both_is_to_be_given(live: Caadmin, options: list[str]) -> None:
    assert live("explain", "workload", *options).code == 2


def test_people_can_read_it(live: Caadmin, running: Pair) -> None:
    create(live, running, "unit", ME, "systemd:id:web.service")
    out = live("explain", "workload", "--pid", str(os.getpid())).out
    for line in (
        r"^process +pid \d+, uid \d+, gid \d+",
        r"^attestors +systemd  FAILED: .*\(SYSTEMD_UNREACHABLE\)",
        r"^ +unix +ok, \d+ selectors, [\d.]+ ms$",
        r"^closest +entry \S+ spiffe://pair.test/unit: 1 of 2 selectors match$",
        rf"^ +{ME} +matches$",
        r"^ +systemd:id:web.service +MISSING \(ATTESTOR_FAILED\)$",
        r"^verdict +NO_IDENTITY reason=ATTESTOR_FAILED$",
        r"^ +\$ caadmin doctor agent$",
    ):
        assert re.search(line, out, re.M), (line, out)


def test_the_workloads_socket_tells_nobody_why(live: Caadmin, running: Pair) -> None:
    """Neither by ExplainWorkload nor in any part of a refusal."""
    create(live, running, "secret-name", ME, "unix:user:nobody-here")
    with grpc.insecure_channel(f"unix:{running.workload_socket}") as channel:
        with pytest.raises(grpc.RpcError) as refused:
            agent_pb2_grpc.AgentStub(channel).ExplainWorkload(
                agent_pb2.ExplainWorkloadRequest(pid=os.getpid()), timeout=5
            )
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
        calls = {
            "/SpiffeWorkloadAPI/FetchX509SVID": b"",
            "/SpiffeWorkloadAPI/FetchX509Bundles": b"",
            "/SpiffeWorkloadAPI/FetchJWTBundles": b"",
            "/SpiffeWorkloadAPI/FetchJWTSVID": b"\n\x01a",
            "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets": b"\x1a\x07default",
        }
        for method, request in calls.items():
            call = channel.unary_stream(method)(request, metadata=[("workload.spiffe.io", "true")], timeout=5)
            with pytest.raises(grpc.RpcError):
                next(call)
            said = f"{call.code()} {call.details()} {call.initial_metadata()} {call.trailing_metadata()}"
            assert "request_id" in said, method
            said, ids = REQUEST_ID.subn("", said)  # it ends in any digit, as a user's number does
            assert ids == 1, method
            for secret in ("unix:", "uid", "nobody-here", "secret-name", "systemd", str(os.getuid()) + "'", "entry"):
                assert secret not in said.replace("caadmin", ""), (method, said)


class TestAgents:
    """The server's side."""

    def test_one_that_is_well(self, live: Caadmin, running: Pair) -> None:
        create(live, running, "some", ME)
        name = running.agent_path().rpartition("/")[2]
        for given in (name, running.status().spiffe_id):
            said = live("explain", "agent", given, "-o", "json")
            assert said.code == 0, said.err
            assert said.json["spiffe_id"] == running.status().spiffe_id
            assert said.json["connected"]
            assert said.json["entry_count"] == 1
            (attempt,) = (one for one in said.json["attempts"] if one["reason"] == "OK")
            assert attempt["attestor"] == "join_token"
            assert attempt["peer"].startswith("127.0.0.1:")

    def test_the_address_names_the_attempts_from_it(self, live: Caadmin) -> None:
        said = live("explain", "agent", "127.0.0.1", "-o", "json")
        assert said.json["attempts"]

    def test_nodes_that_share_an_address_are_all_shown_the_troubled_first(self) -> None:
        one = agent_value(
            admin_pb2.AgentExplanation(
                verdict=admin_pb2.AgentVerdict(reason="AGENT_BANNED", detail="it is banned"),
                spiffe_id="spiffe://pair.test/spire/agent/x/bad",
                others=[
                    admin_pb2.AgentExplanation(
                        verdict=admin_pb2.AgentVerdict(reason="OK", detail="it is well"),
                        spiffe_id="spiffe://pair.test/spire/agent/x/good",
                    )
                ],
                more_others=3,
            )
        )
        page = agent_page(one)
        assert page.startswith("5 nodes came from there, those in trouble first\n\n")
        assert page.index("x/bad") < page.index("AGENT_BANNED") < page.index("x/good") < page.index("it is well")
        assert page.endswith("and 3 more: caadmin agent list")

    def test_one_that_nobody_knows(self, live: Caadmin) -> None:
        said = live("explain", "agent", "nobody-here")
        assert said.code == 3
        assert "AGENT_NOT_FOUND" in said.err

    def test_people_can_read_it(self, live: Caadmin, running: Pair) -> None:
        out = live("explain", "agent", running.agent_path().rpartition("/")[2]).out
        assert re.search(r"^agent +spiffe://pair.test/spire/agent/join_token/", out, re.M)
        assert re.search(r"^attempts +\S+ join_token from 127.0.0.1:\d+, id \S+: OK$", out, re.M)
        assert re.search(r"^verdict +OK$", out, re.M)
