"""`caadmin exchange` as a CI job calls it: against a real server over TLS, with tokens of an issuer of ours."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from ca.identity.bundle_format import format_spiffe_bundle
from ca.identity.bundle_pem import format_pem, parse_certificates
from tests.ca.cli.conftest import Caadmin, Ran
from tests.support.oidc_issuer import AUDIENCE, OidcIssuer
from tests.support.pair import free_port
from tests.support.server import RunningServer, entry, running_server

PARENT, SUB = "/burgee/oidc/forge", "oidc:sub:repo:acme/shop:ref:refs/heads/main"

Call = Callable[..., Awaitable[Ran]]


@pytest.fixture
def issuer() -> Any:
    with OidcIssuer() as running:
        yield running


@pytest.fixture
async def server(issuer: OidcIssuer, tmp_path: Path) -> AsyncIterator[RunningServer]:
    forge = {"issuer": issuer.url, "audience": AUDIENCE, "ca_file": str(issuer.ca_file(tmp_path)), "agents": False}
    async with running_server(node_attestors={"join_token": {}, "oidc": {"issuers": {"forge": forge}}}) as running:
        await running.create(entry("/ci/shop", PARENT, SUB, "oidc:issuer:forge"))
        yield running


@pytest.fixture
def call(caadmin: Caadmin, server: RunningServer, issuer: OidcIssuer) -> Call:
    """The command with everything that it needs, in a directory of its own; `token=` instead of a good one."""
    Path("bundle.pem").write_text(format_pem(server.server.trust.own))

    async def run(*arguments: str, token: str | None = None, **options: str) -> Ran:
        Path("token").write_text((token or issuer.token()) + "\n")
        host, port = server.server.address
        given = {"oidc-token-file": "token", "server": f"{host}:{port}", "bundle": "bundle.pem", **options}
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        return await asyncio.to_thread(caadmin, "exchange", *words, *arguments)

    return run


async def test_an_x509_svid_in_files(call: Call, server: RunningServer) -> None:
    ran = await call("--x509", "--write", "d", "--issuer", "forge", "-o", "json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["spiffe_id"] == "spiffe://example.org/ci/shop"
    assert ran.json["files"] == ["d/svid.key", "d/svid.pem", "d/bundle.pem"]
    assert [stat.S_IMODE(Path(file).stat().st_mode) for file in ran.json["files"]] == [0o600] * 3
    leaf = x509.load_pem_x509_certificate(Path("d/svid.pem").read_bytes())
    key = load_pem_private_key(Path("d/svid.key").read_bytes(), None)
    assert leaf.public_key() == key.public_key()
    assert list(parse_certificates(Path("d/bundle.pem").read_bytes())) == server.roots


async def test_an_x509_svid_on_stdout(call: Call) -> None:
    ran = await call("--x509", "--key-type", "ec-p384", "--ttl", "2m")
    assert ran.code == 0, ran.err
    assert ran.out.index("BEGIN PRIVATE KEY") < ran.out.index("BEGIN CERTIFICATE")
    as_json = await call("--x509", "-o", "json")
    assert set(as_json.json) == {"spiffe_id", "expires_at", "key", "svid", "bundle"}


async def test_a_jwt_svid(call: Call) -> None:
    ran = await call("--audience", "db", "--audience", "web")
    assert (ran.code, ran.out.count(".")) == (0, 2), ran.err
    as_json = await call("--audience", "db", "-o", "json")
    assert set(as_json.json) == {"spiffe_id", "issued_at", "expires_at", "token"}
    written = await call("--audience", "db", "--write", "j", "-o", "json")
    assert written.json["files"] == ["j/jwt_svid.token"]
    assert "token" not in written.json
    assert Path("j/jwt_svid.token").read_text().count(".") == 2


async def test_it_is_on_record_whose_token_it_was(
    call: Call, caadmin: Caadmin, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await call("--audience", "db")).code == 0
    monkeypatch.setenv("BURGEE_ADMIN_SOCKET", str(server.config.admin_socket_path))
    issued = await asyncio.to_thread(caadmin, "issued", "--spiffe-id", "spiffe://example.org/ci/shop", "-o", "json")
    (record,) = issued.json["records"]
    assert record["agent_id"] == ""
    assert record["requester"] == "oidc:forge:repo:acme/shop:ref:refs/heads/main"
    table = await asyncio.to_thread(caadmin, "issued", "--agent", record["requester"])
    assert record["requester"] in table.out
    audited = await asyncio.to_thread(caadmin, "audit", "--call", "ExchangeJWTSVID", "-o", "json")
    (line,) = audited.json["records"]
    assert (line["actor"], line["code"]) == (record["requester"], "OK")


async def test_refusals_have_a_reason_an_id_and_an_exit_code(call: Call, issuer: OidcIssuer) -> None:
    used = issuer.token()
    assert (await call("--audience", "db", token=used)).code == 0
    for token, reason in (
        (used, "EVIDENCE_USED"),
        (issuer.token(aud="other"), "TOKEN_REFUSED"),
        (issuer.token(sub="other"), "EXCHANGE_NO_ENTRY"),
    ):
        ran = await call("--audience", "db", token=token)
        assert (ran.code, ran.out) == (3, ""), ran.err
        assert f"({reason})" in ran.err
        assert "the server's log has more under request `" in ran.err
        assert "aud" not in ran.err.replace("audience", "")
    malformed = await call("--audience", "db", token="nonsense")
    assert (malformed.code, "(TOKEN_MALFORMED)" in malformed.err) == (2, True)
    issuer.rotate("key-2")
    new = await call("--audience", "db")
    assert (new.code, "(TOKEN_ISSUER_UNAVAILABLE)" in new.err) == (1, True), new.err


async def test_an_administrator_finds_out_by_the_id(
    call: Call, caadmin: Caadmin, server: RunningServer, issuer: OidcIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = await call("--audience", "db", token=issuer.token(aud="other"))
    request_id = ran.err.rpartition("under request `")[2].partition("`")[0]
    monkeypatch.setenv("BURGEE_ADMIN_SOCKET", str(server.config.admin_socket_path))
    explained = await asyncio.to_thread(caadmin, "explain", "agent", request_id)
    assert "TOKEN_AUDIENCE" in explained.out, explained.out + explained.err


async def test_one_of_several_is_named(call: Call, server: RunningServer, issuer: OidcIssuer) -> None:
    await server.create(entry("/ci/other", PARENT, SUB))
    token = issuer.token()
    ran = await call("--x509", token=token)
    assert (ran.code, "(EXCHANGE_AMBIGUOUS)" in ran.err) == (3, True)
    named = await call("--x509", "--spiffe-id", "spiffe://example.org/ci/other", "-o", "json", token=token)
    assert named.json["spiffe_id"] == "spiffe://example.org/ci/other", named.err


async def test_a_server_that_the_bundle_does_not_vouch_for_gets_no_token(
    call: Call, server: RunningServer, issuer: OidcIssuer
) -> None:
    token = issuer.token()
    async with running_server() as other:
        host, port = other.server.address
        ran = await call("--audience", "db", token=token, server=f"{host}:{port}")
        assert (ran.code, "SVID_UNTRUSTED" in ran.err) == (3, True), ran.err
    ran = await call("--audience", "db", "--trust-domain", "other.example", token=token)
    assert ran.code == 3, ran.err
    nobody = await call("--audience", "db", token=token, server=f"127.0.0.1:{free_port()}")
    assert (nobody.code, "SERVER_UNREACHABLE" in nobody.err) == (1, True), nobody.err
    assert (await call("--audience", "db", token=token)).code == 0


async def test_a_spiffe_bundle_will_do(call: Call, server: RunningServer) -> None:
    Path("bundle.json").write_text(format_spiffe_bundle(server.server.trust.own))
    ran = await call("--audience", "db", "--trust-domain", "example.org", bundle="bundle.json")
    assert ran.code == 0, ran.err


async def test_wrong_arguments(call: Call) -> None:
    assert (await call()).code == 2
    assert (await call("--x509", "--audience", "a")).code == 2
    assert (await call("--x509", server="nowhere")).code == 2
    assert (await call("--x509", bundle="no-such-file")).code == 2
    assert (await call("--x509", **{"oidc-token-file": "no-such-file"})).code == 2
    Path("empty").write_text("\n")
    empty = await call("--x509", **{"oidc-token-file": "empty"})
    assert (empty.code, "(OIDC_TOKEN_MISSING)" in empty.err) == (2, True)


async def test_entries_for_everybody_are_warned_of(
    caadmin: Caadmin, server: RunningServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BURGEE_ADMIN_SOCKET", str(server.config.admin_socket_path))
    base = ("entry", "create", "--parent-id", f"spiffe://example.org{PARENT}", "--spiffe-id")

    async def create(name: str, *selectors: str) -> Ran:
        words = [word for selector in selectors for word in ("--selector", selector)]
        ran = await asyncio.to_thread(caadmin, *base, f"spiffe://example.org/{name}", *words, "-o", "json")
        assert ran.code == 0
        return ran

    for number, wide in enumerate((["oidc:issuer:forge"], ["oidc:issuer:forge", "oidc:claim:ref:refs/heads/main"])):
        ran = await create(f"wide/{number}", *wide)
        assert "(SELECTORS_ISSUER_WIDE)" in ran.err
        assert f"`spiffe://example.org/wide/{number}`" in ran.err
    narrow = await create("narrow", "oidc:issuer:forge", "oidc:claim:repository:acme/shop")
    assert "warning" not in narrow.err
    entry_id = json.loads(narrow.out)["results"][0]["entry"]["id"]
    ran = await asyncio.to_thread(caadmin, "entry", "update", entry_id, "--selector", "oidc:issuer:forge")
    assert "(SELECTORS_ISSUER_WIDE)" in ran.err
