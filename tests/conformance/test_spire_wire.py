"""Every RPC, field and class of error of SPIRE's server API, called through SPIRE's own SDK."""

from __future__ import annotations

import base64
import json
import os
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.ca.identity import forge
from tests.conformance import cases
from tests.conformance.programs import go_program
from tests.contracts.upstreams import write_key, write_pem
from tests.support.pair import Pair

TRUST_DOMAIN = "example.org"
PLUGIN = Path(__file__).parent / "plugin"

NEVER_SENT = {
    "spire.api.server.bundle.v1.AppendBundleRequest.wit_authorities",
    "spire.api.types.Bundle.wit_authorities",
}
"""WIT keys: no answer of SPIRE to them is known, and WIT-SVIDs are not built here."""


UPSTREAM = "@upstream"
"""In a case file's server options: the directory of the authority above, which is `@ca upstream` in its steps."""


@contextmanager
def server(options: cases.Json) -> Iterator[Pair]:
    """A server of its own; stranger's plugins are installed in it, and an authority above it lies ready."""
    home = Path(tempfile.mkdtemp(prefix="bg-"))
    home.chmod(0o755)
    write_authority(home)
    options = json.loads(json.dumps(options).replace(UPSTREAM, str(home)))
    pair = Pair(home, server={"trust_domain": TRUST_DOMAIN, **options})
    path = os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH")]))
    try:
        with mock.patch.dict(os.environ, {"PYTHONPATH": path}):
            pair.start_server()
        yield pair
    except BaseException:
        print(pair.logs())
        raise
    finally:
        pair.close()
        shutil.rmtree(home, ignore_errors=True)


def write_authority(directory: Path) -> None:
    """A root with its key."""
    now = datetime.now(UTC).replace(microsecond=0)
    root = forge.root("upstream", not_before=now - timedelta(hours=1), not_after=now + timedelta(days=30))
    write_pem(directory / "root.pem", root.der)
    write_key(directory / "root.key", root)


def player(verb: str, play: cases.Play | None = None, target: cases.Json | None = None) -> list[Any]:
    """The JSON lines that the player prints."""
    given = None
    if play is not None:
        given = json.dumps({"target": target or {"trust_domain": TRUST_DOMAIN}, "let": play.let, "steps": play.steps})
    done = subprocess.run(
        [go_program("conformance-spire"), verb], input=given, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@cache
def results(name: str) -> list[list[str]] | Exception:
    """The problems of each step of one case file, played once against a fresh server; or why it could not be played."""
    play = cases.load(name)
    try:
        with server(play.server) as pair:
            address = f"127.0.0.1:{pair.port}"
            target = {"trust_domain": TRUST_DOMAIN, "admin": str(pair.admin_socket), "address": address}
            if play.agent is not None:
                pair.agent_options = {"trust_domain": TRUST_DOMAIN, **play.agent}
                pair.start_agent()
                target |= {"agent_admin": str(pair.agent_admin_socket), "workload": str(pair.workload_socket)}
            root = ssl.PEM_cert_to_DER_cert((pair.home / "root.pem").read_text())
            steps = json.dumps(play.steps).replace("@ca upstream", base64.b64encode(root).decode())
            reports = player("play", replace(play, steps=json.loads(steps)), target)
    except Exception as error:  # kept, so that not every case of the file waits for the same failure
        return error
    assert [report["index"] for report in reports] == list(range(len(play.steps)))
    return [report["problems"] for report in reports]


def every_case() -> list[Any]:
    made = []
    for name in cases.names():
        for case in cases.load(name).cases:
            marks = [pytest.mark.xdist_group(f"wire-{name}")]
            if case.xfail:
                marks.append(pytest.mark.xfail(reason=case.xfail, strict=True))
            made.append(pytest.param(name, case, id=f"{name}: {case.name}", marks=marks))
    return made


@pytest.mark.parametrize(("name", "case"), every_case())
def test_case(name: str, case: cases.Case) -> None:
    go_program("conformance-spire")
    steps = cases.load(name).steps
    found = results(name)
    if isinstance(found, Exception):
        raise found
    lines = [f"{steps[index]['name']}: {problem}" for index in case.steps for problem in found[index]]
    assert not lines, "\n".join(["", *lines])


@cache
def usage() -> tuple[set[str], set[str]]:
    """Methods and request fields that the cases use."""
    methods: set[str] = set()
    fields: set[str] = set()
    for name in cases.names():
        (used,) = player("check", cases.load(name))
        methods |= set(used["methods"])
        fields |= set(used["fields"])
    return methods, fields


def test_every_method_of_the_api_is_called() -> None:
    (api,) = player("api")
    assert set(api["methods"]) - usage()[0] == set()


def test_every_field_of_every_request_is_sent() -> None:
    (api,) = player("api")
    assert set(api["fields"]) - usage()[1] == NEVER_SENT


@pytest.mark.xdist_group("wire-judge")
def test_the_player_sees_what_differs() -> None:
    """A judge that lets everything pass would be none: each of these expectations is wrong."""
    wrong = json.loads((Path(__file__).parent / "wrong.json").read_text(encoding="utf-8"))
    said = [step.pop("said") for step in wrong]
    play = cases.Play(name="wrong", about="", server={}, let={}, steps=wrong)
    with server({}) as pair:
        address = f"127.0.0.1:{pair.port}"
        target = {"trust_domain": TRUST_DOMAIN, "admin": str(pair.admin_socket), "address": address}
        reports = player("play", play, target)
    for step, words, report in zip(wrong, said, reports, strict=True):
        assert any(words in problem for problem in report["problems"]), (step, report)
