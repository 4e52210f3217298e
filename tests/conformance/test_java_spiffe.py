"""java-spiffe against our agent: fetch, watch, validate."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conformance.programs import java_program
from tests.conformance.workload_lines import Command, follow, ids, next_until, run
from tests.support.pair import TRUST_DOMAIN, Pair, pair, until

pytestmark = pytest.mark.xdist_group("java-spiffe")
ID = f"spiffe://{TRUST_DOMAIN}"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Pair]:
    java_program()
    with pair() as running:
        yield running


@pytest.fixture(scope="module")
def command(nodes: Pair) -> Callable[..., Command]:
    jar = java_program()
    java = shutil.which("java") or "java"
    classes = f"{jar}:{jar.parent}/lib/*"
    return lambda *words: [java, "-Xshare:auto", "-cp", classes, "Conformance", str(nodes.workload_socket), *words]


def test_fetch_watch_and_validate(nodes: Pair, command: Callable[..., Command]) -> None:
    first = nodes.create_entry("/java/1", hint="mine", x509_svid_ttl=10)
    got: Any = until("an SVID", lambda: (got := run(command("fetch"))).get("svids") and got)
    assert [(svid["id"], svid["hint"], svid["chain"]) for svid in got["svids"]] == [(f"{ID}/java/1", "mine", 1)]
    assert got["bundles"] == [TRUST_DOMAIN]

    with follow(command("watch")) as lines:
        shown = next_until(lines, "the first identity", lambda c: ids(c) == [f"{ID}/java/1"])
        next_until(lines, "a rotation", lambda c: c["svids"][0]["not_after"] > shown["svids"][0]["not_after"])
        nodes.create_entry("/java/2")
        next_until(lines, "both identities", lambda c: ids(c) == [f"{ID}/java/1", f"{ID}/java/2"])
        nodes.delete_entry(first)
        next_until(lines, "the second alone", lambda c: ids(c) == [f"{ID}/java/2"])

    (token,) = run(command("jwt", "them"))["svids"]
    assert token["id"] == f"{ID}/java/2"
    assert run(command("validate", "them", token["token"])) == {"id": f"{ID}/java/2"}
    assert "INVALID_ARGUMENT" in run(command("validate", "others", token["token"]))["error"]
