"""go-spiffe, as the workloads of most people use it, against our agent."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.programs import go_program
from tests.conformance.workload_lines import Command, Lines, follow, ids, next_until, run
from tests.support.pair import TRUST_DOMAIN, Pair, pair, until

pytestmark = pytest.mark.xdist_group("go-spiffe")
ID = f"spiffe://{TRUST_DOMAIN}"


class Workloads:
    """Programs that are known by their path: copies of the Go client, one for each identity."""

    def __init__(self, nodes: Pair, program: Path) -> None:
        self.nodes = nodes
        self._program = program

    def add(self, name: str) -> Path:
        path = self.nodes.home / "bin" / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            shutil.copy2(self._program, path)
        return path

    def entry(self, name: str, path: str, **fields: Any) -> str:
        return self.nodes.create_entry(path, f"unix:path:{self.add(name)}", **fields)

    def command(self, name: str, *words: str) -> Command:
        return [self.add(name), "-socket", str(self.nodes.workload_socket), *words]

    def run(self, name: str, *words: str) -> Any:
        return run(self.command(name, *words))

    def start(self, name: str, *words: str) -> AbstractContextManager[Lines]:
        return follow(self.command(name, *words))


@pytest.fixture(scope="module")
def workloads() -> Iterator[Workloads]:
    program = go_program("conformance-gospiffe")
    with pair() as nodes:
        yield Workloads(nodes, program)


def test_fetch_and_verify(workloads: Workloads) -> None:
    workloads.entry("fetcher", "/fetcher", hint="mine", dns_names=["fetcher.example"])
    got = until("an SVID", lambda: (got := workloads.run("fetcher", "fetch")).get("svids") and got)
    assert got["bundles"] == {TRUST_DOMAIN: 1}
    (svid,) = got["svids"]
    assert (svid["id"], svid["hint"], svid["dns"]) == (f"{ID}/fetcher", "mine", ["fetcher.example"])


def test_no_identity(workloads: Workloads) -> None:
    assert "PermissionDenied" in workloads.run("nobody", "fetch")["error"]
    assert "PermissionDenied" in workloads.run("nobody", "jwt", "a")["error"]
    assert "PermissionDenied" in workloads.run("nobody", "bundles")["error"]


def test_watch(workloads: Workloads) -> None:
    first = workloads.entry("watcher", "/watcher/1", x509_svid_ttl=10)
    with workloads.start("watcher", "watch") as lines:
        shown = next_until(lines, "the first identity", lambda c: ids(c) == [f"{ID}/watcher/1"])
        rotated = next_until(lines, "a rotation", lambda c: c["svids"][0]["not_after"] > shown["svids"][0]["not_after"])
        assert ids(rotated) == [f"{ID}/watcher/1"]
        second = workloads.entry("watcher", "/watcher/2")
        next_until(lines, "both identities", lambda c: ids(c) == [f"{ID}/watcher/1", f"{ID}/watcher/2"])
        workloads.nodes.delete_entry(first)
        next_until(lines, "the second alone", lambda c: ids(c) == [f"{ID}/watcher/2"])
        workloads.nodes.delete_entry(second)
        next_until(lines, "the end", lambda c: "PermissionDenied" in c.get("watch_error", ""))


def test_watch_jwt_bundles(workloads: Workloads) -> None:
    workloads.entry("keywatcher", "/keywatcher")
    with workloads.start("keywatcher", "watchjwt") as lines:
        bundles = next_until(lines, "the bundles", lambda c: "bundles" in c)["bundles"]
        assert [len(kids) for kids in bundles.values()] == [1]
    assert until("the bundles", lambda: workloads.run("keywatcher", "bundles").get("bundles")) == bundles


def test_tokens(workloads: Workloads) -> None:
    """Each token is validated by the agent and by go-spiffe, inside the program."""
    workloads.entry("tokens", "/tokens/1", hint="one")
    workloads.entry("tokens", "/tokens/2")
    got = until("two tokens", lambda: len((g := workloads.run("tokens", "jwt", "them")).get("svids") or []) == 2 and g)
    assert ids(got) == [f"{ID}/tokens/1", f"{ID}/tokens/2"]
    assert {svid["hint"] for svid in got["svids"]} == {"one", ""}
    (one,) = workloads.run("tokens", "jwt", "them", f"{ID}/tokens/2")["svids"]
    assert one["id"] == f"{ID}/tokens/2"
    assert "PermissionDenied" in workloads.run("tokens", "jwt", "them", f"{ID}/somebody")["error"]
    assert workloads.run("tokens", "validate", "them", one["token"]) == {"id": f"{ID}/tokens/2"}
    assert "InvalidArgument" in workloads.run("tokens", "validate", "others", one["token"])["error"]
    assert "InvalidArgument" in workloads.run("tokens", "validate", "them", one["token"][:-6] + "AAAAAA")["error"]


def test_mutual_tls(workloads: Workloads) -> None:
    workloads.entry("server", "/server")
    workloads.entry("client", "/client")
    workloads.entry("other", "/other")
    with workloads.start("server", "serve", f"{ID}/client") as lines:
        address = lines.get(timeout=20)["address"]
        answer = workloads.run("client", "call", address, f"{ID}/server")
        assert answer == {"server": f"{ID}/server", "words": f"hello {ID}/client"}
        assert lines.get(timeout=20) == {"caller": f"{ID}/client"}
        assert "error" in workloads.run("other", "call", address, f"{ID}/server"), "the server takes its peer alone"
        wrong = workloads.run("client", "call", address, f"{ID}/other")
        assert "unexpected" in wrong["error"], "the client takes its server alone"
