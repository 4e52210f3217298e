"""The OIDC attestor: whose tokens prove what, how often, and what an agent sends."""

from __future__ import annotations

import asyncio
import atexit
import base64
import json
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attestor.node.oidc import OidcProver, OidcVerifier, plugin
from attestor.node.oidc_claims import evidence_of, texts
from attestor.node.oidc_config import AgentConfig, ServerConfig
from ca.errors import BurgeeError, ConfigError, Denied, FailedPrecondition, InvalidArgument, Unavailable
from ca.ports import AttestedNode, Checked, FindingLevel, TokenVerifier
from ca.runtime.config import from_values
from ca.runtime.notes import collecting
from tests.contracts.attestors import NodeSample
from tests.docs.pages import blocks
from tests.support.clock import FakeClock
from tests.support.node_host import FakeHost
from tests.support.oidc_issuer import AUDIENCE, DISCOVERY, OidcIssuer, sign


def contract_sample() -> NodeSample:
    """An issuer of its own, which lives as long as the process: the suite holds no context open for a sample."""
    directory = tempfile.TemporaryDirectory(prefix="oidc-")
    issuer = OidcIssuer().__enter__()
    atexit.register(directory.cleanup)
    home = Path(directory.name)
    (home / "token").write_text(issuer.token())
    return NodeSample(
        host=FakeHost(),
        server=server_values(issuer, home),
        agent={"token_file": str(home / "token")},
    )


def server_values(issuer: OidcIssuer, home: Path, **changes: Any) -> dict[str, Any]:
    """Configuration of a server with this issuer by the name `forge`."""
    forge = {
        "issuer": issuer.url,
        "audience": AUDIENCE,
        "ca_file": str(issuer.ca_file(home)),
        "claims": ["repository", "groups", "protected", "run"],
        **changes,
    }
    return {"issuers": {"forge": forge}}


@pytest.fixture
def issuer() -> Iterator[OidcIssuer]:
    with OidcIssuer() as running:
        yield running


def verifier(issuer: OidcIssuer, home: Path, host: FakeHost | None = None, **changes: Any) -> OidcVerifier:
    values = server_values(issuer, home, **changes)
    return OidcVerifier(from_values(values, ServerConfig), host or FakeHost())


async def no_challenge(_: bytes) -> bytes:
    raise AssertionError("OIDC tokens have no challenge")


async def attest(to: OidcVerifier, token: str) -> AttestedNode:
    return await to.verify(token.encode(), no_challenge)


async def refusal(to: OidcVerifier, token: str) -> str:
    """The fault that administrators see; the caller learns TOKEN_REFUSED alone."""
    with collecting() as notes, pytest.raises(Denied) as caught:
        await attest(to, token)
    assert caught.value.reason == "TOKEN_REFUSED"
    return notes[-1].value.partition(":")[0]


def values_of(node: AttestedNode) -> set[str]:
    return {selector.value for selector in node.selectors}


async def test_a_good_token_makes_a_node_with_the_claims_that_are_allowed(issuer: OidcIssuer, tmp_path: Path) -> None:
    to = verifier(issuer, tmp_path)
    node = await attest(to, issuer.token(groups=["a", "b"], protected=True, run=7, secret="s", email="x@y"))
    assert values_of(node) == {
        "issuer:forge",
        "sub:repo:acme/shop:ref:refs/heads/main",
        "claim:repository:acme/shop",
        "claim:groups:a",
        "claim:groups:b",
        "claim:protected:true",
        "claim:run:7",
    }
    assert node.path.startswith("/spire/agent/oidc/forge/")
    assert not node.reattestable


async def test_a_token_serves_once_whichever_way(issuer: OidcIssuer, tmp_path: Path) -> None:
    host = FakeHost()
    to = verifier(issuer, tmp_path, host)
    assert isinstance(to, TokenVerifier)
    token = issuer.token()
    await to.prove_token(token.encode(), None)  # uses nothing up
    proven = await to.prove_token(token.encode(), "forge")
    await attest(to, token)
    for again in (attest(to, token), to.use_up_token(proven)):
        with pytest.raises(Denied) as caught:
            await again
        assert caught.value.reason == "EVIDENCE_USED"
    assert len(host.used) == 1


async def test_of_many_uses_one_wins(issuer: OidcIssuer, tmp_path: Path) -> None:
    to, token = verifier(issuer, tmp_path), issuer.token()
    outcomes = await asyncio.gather(*(attest(to, token) for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(outcome, AttestedNode) for outcome in outcomes) == 1
    assert {o.reason for o in outcomes if isinstance(o, BurgeeError)} == {"EVIDENCE_USED"}


async def test_it_is_remembered_until_the_last_moment_at_which_it_would_be_accepted(
    issuer: OidcIssuer, tmp_path: Path
) -> None:
    to, token = verifier(issuer, tmp_path), issuer.token()
    proven = await to.prove_token(token.encode(), None)
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert proven.valid_until.timestamp() == claims["exp"] + 60
    assert proven.subject == claims["sub"]


def test_evidence_is_the_token_and_not_its_spelling() -> None:
    named = evidence_of("https://a", {"jti": "1"}, b"x")
    assert named == evidence_of("https://a", {"jti": "1"}, b"y")
    assert named != evidence_of("https://b", {"jti": "1"}, b"x")
    nameless = evidence_of("https://a", {}, b"x")
    assert nameless == evidence_of("https://a", {"jti": ""}, b"x") == evidence_of("https://a", {"jti": 1}, b"x")
    assert nameless != evidence_of("https://a", {}, b"y")


async def test_tokens_without_a_name_of_their_own_serve_once_too(issuer: OidcIssuer, tmp_path: Path) -> None:
    """An ECDSA signature has a twin: r, and the order less s."""
    to, token = verifier(issuer, tmp_path), issuer.token(jti=None)
    head, body, text = token.split(".")
    signature = base64.urlsafe_b64decode(text + "==")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    twin = signature[:32] + (order - int.from_bytes(signature[32:], "big")).to_bytes(32, "big")
    await attest(to, token)
    with pytest.raises(Denied) as caught:
        await attest(to, f"{head}.{body}.{base64.urlsafe_b64encode(twin).decode().rstrip('=')}")
    assert caught.value.reason == "EVIDENCE_USED"


async def test_five_faults_five_reasons_for_administrators_and_one_for_the_caller(
    issuer: OidcIssuer, tmp_path: Path
) -> None:
    to = verifier(issuer, tmp_path, required_claims={"repository": ["acme/shop", "acme/till"]})
    faults = [
        await refusal(to, issuer.token(header={"kid": "unknown"})),
        await refusal(to, issuer.token(iss="https://evil.example")),
        await refusal(to, issuer.token(aud="other")),
        await refusal(to, issuer.token(iat=1, nbf=1, exp=2)),
        await refusal(to, issuer.token(header={"alg": "HS256"})),
        await refusal(to, issuer.token(repository="evil/shop")),
    ]
    wanted = "TOKEN_KEY_UNKNOWN TOKEN_ISSUER TOKEN_AUDIENCE TOKEN_EXPIRED TOKEN_ALGORITHM TOKEN_CLAIM"
    assert faults == wanted.split()
    assert "claim:repository:acme/till" in values_of(await attest(to, issuer.token(repository="acme/till")))


@pytest.mark.parametrize("sub", [None, "", 7, "a\nb", "x" * 513, ["a"]])
async def test_a_subject_is_needed_and_must_be_plain(issuer: OidcIssuer, tmp_path: Path, sub: object) -> None:
    assert await refusal(verifier(issuer, tmp_path), issuer.token(sub=sub)) == "TOKEN_CLAIM"


async def test_values_that_no_selector_should_have_are_left_out(issuer: OidcIssuer, tmp_path: Path) -> None:
    to = verifier(issuer, tmp_path)
    node = await attest(to, issuer.token(repository={"a": 1}, groups=["x\n", "ok", ["deep"], 1.5, None], run="y" * 600))
    assert {v for v in values_of(node) if v.startswith("claim:")} == {"claim:groups:ok"}
    assert await refusal(to, issuer.token(groups=[str(n) for n in range(100)])) == "TOKEN_CLAIM"
    assert texts([True, False, 3, "a", [1], {}]) == ["true", "false", "3", "a"]


async def test_agents_and_exchange_can_be_left_out(issuer: OidcIssuer, tmp_path: Path) -> None:
    assert await refusal(verifier(issuer, tmp_path, agents=False), issuer.token()) == "TOKEN_ISSUER"
    no_exchange = verifier(issuer, tmp_path, exchange=False)
    with pytest.raises(Denied):
        await no_exchange.prove_token(issuer.token().encode(), None)
    await attest(no_exchange, issuer.token())


async def test_the_issuer_that_was_asked_for_is_the_only_one(issuer: OidcIssuer, tmp_path: Path) -> None:
    to = verifier(issuer, tmp_path)
    with pytest.raises(Denied) as caught:
        await to.prove_token(issuer.token().encode(), "other")
    assert caught.value.reason == "TOKEN_REFUSED"


async def test_a_path_can_tell_the_subject(issuer: OidcIssuer, tmp_path: Path) -> None:
    to = verifier(issuer, tmp_path, agent_path_template="/{{ .PluginName }}/{{ .IssuerName }}/{{ .Claims.run }}")
    assert (await attest(to, issuer.token(run="r-7"))).path == "/spire/agent/oidc/forge/r-7"
    token = issuer.token(run="a/b")
    with pytest.raises(Denied):
        await attest(to, token)
    with pytest.raises(Denied) as caught:  # and it was not used up
        await attest(to, token)
    assert caught.value.reason != "EVIDENCE_USED"


async def test_who_attests_again_has_the_same_name_by_another_token(issuer: OidcIssuer, tmp_path: Path) -> None:
    to = verifier(issuer, tmp_path, reattest=True)
    first, second = await attest(to, issuer.token()), await attest(to, issuer.token())
    assert first.path == second.path
    assert first.reattestable
    assert (await attest(to, issuer.token(sub="other"))).path != first.path
    by_token = verifier(issuer, tmp_path)
    assert (await attest(by_token, issuer.token())).path != (await attest(by_token, issuer.token())).path


async def test_an_issuer_that_is_away(issuer: OidcIssuer, tmp_path: Path) -> None:
    to = verifier(issuer, tmp_path)
    issuer.down = True
    with pytest.raises(Unavailable) as caught:
        await attest(to, issuer.token())
    assert caught.value.reason == "TOKEN_ISSUER_UNAVAILABLE"
    known = verifier(issuer, tmp_path)
    issuer.down = False
    await attest(known, issuer.token())
    issuer.down = True
    await attest(known, issuer.token())


async def test_junk_makes_nobody_ask_the_issuer(issuer: OidcIssuer, tmp_path: Path) -> None:
    to = verifier(issuer, tmp_path)
    for token in (issuer.token(aud="other"), issuer.token(exp=1), "a.b.c", issuer.token(header={"alg": "none"})):
        with pytest.raises((Denied, InvalidArgument)):
            await attest(to, token)
    assert not issuer.asked
    for number in range(50):
        with pytest.raises((Denied, Unavailable)):
            await attest(to, issuer.token(header={"kid": f"k{number}"}))
    assert issuer.asked == {DISCOVERY: 1, "/jwks": 1}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.sets(st.integers(0, 1 << 30), min_size=1, max_size=3))
async def test_mutated_evidence_proves_nothing(issuer: OidcIssuer, tmp_path: Path, places: set[int]) -> None:
    good = bytearray(issuer.token().encode())
    for position in {place % (len(good) * 8) for place in places}:
        good[position // 8] ^= 1 << position % 8
    to = verifier(issuer, tmp_path)
    with pytest.raises((Denied, InvalidArgument, Unavailable)):
        await to.verify(bytes(good), no_challenge)


async def test_a_member_that_is_there_twice(issuer: OidcIssuer, tmp_path: Path) -> None:
    claims = json.dumps(issuer.claims())
    token = sign(json.dumps({"alg": "ES256", "kid": "key-1"}), claims[:-1] + ', "sub": "admin"}', issuer.key)
    with pytest.raises(InvalidArgument) as caught:
        await attest(verifier(issuer, tmp_path), token)
    assert caught.value.reason == "TOKEN_MALFORMED"


GOOD = {"issuer": "https://forge.example", "audience": "a"}


@pytest.mark.parametrize(
    "changes",
    [
        {"issuer": "http://forge.example"},
        {"issuer": "https://u:p@forge.example"},
        {"issuer": "https://forge.example?x=1"},
        {"issuer": "forge"},
        {"audience": ""},
        {"jwks_uri": "http://forge.example/keys"},
        {"algorithms": []},
        {"algorithms": ["HS256"]},
        {"algorithms": ["none"]},
        {"claims": ["a:b"]},
        {"required_claims": {"a": ""}},
        {"agents": False, "exchange": False},
        {"max_token_lifetime_seconds": 0},
        {"agent_path_template": "/{{ .PluginName }}/{{ .TokenHash }}"},
        {"agent_path_template": "/{{ .PluginName }}/{{ .IssuerName }}/{{ .Nothing }}"},
        {"agent_path_template": "/{{ .PluginName }}/{{ .IssuerName }}/same"},
    ],
)
def test_a_configuration_that_would_be_loose_is_refused(changes: dict[str, Any]) -> None:
    from_values({"issuers": {"forge": GOOD}}, ServerConfig)
    with pytest.raises(ConfigError):
        from_values({"issuers": {"forge": {**GOOD, **changes}}}, ServerConfig)


@pytest.mark.parametrize("name", ["", "A", "a/b", "..", "-a", "a" * 64])
def test_an_issuers_name_is_a_path_segment(name: str) -> None:
    with pytest.raises(ConfigError):
        from_values({"issuers": {name: GOOD}}, ServerConfig)


def test_an_issuer_has_one_name() -> None:
    for issuers in ({}, {"a": GOOD, "b": GOOD}):
        with pytest.raises(ConfigError):
            from_values({"issuers": issuers}, ServerConfig)


def prover(**source: Any) -> OidcProver:
    return OidcProver(from_values(source, AgentConfig))


@pytest.mark.parametrize("source", [{}, {"token_file": "/x", "token_env": "B"}, {"token_env": ""}])
def test_exactly_one_source(source: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        from_values(source, AgentConfig)


async def test_a_token_comes_from_a_file_or_a_variable_and_is_given_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("from-file\n")
    monkeypatch.setenv("CI_TOKEN", "from-env")
    assert await prover(token_env="CI_TOKEN").payload() == b"from-env"
    node = prover(token_file=str(tmp_path / "token"))
    assert node.can_reattest
    assert await node.payload() == b"from-file"
    assert not node.can_reattest
    (tmp_path / "token").write_text("another")
    assert node.can_reattest


async def test_a_missing_token_says_so(tmp_path: Path) -> None:
    request = {"token_request": {"audience": "a", "url_env": "NO_SUCH", "bearer_env": "NO_SUCH"}}
    for source in ({"token_file": str(tmp_path / "none")}, {"token_env": "NO_SUCH_VARIABLE"}, request):
        with pytest.raises(FailedPrecondition) as caught:
            await prover(**source).payload()
        assert caught.value.reason == "OIDC_TOKEN_MISSING"
    assert not prover(token_env="NO_SUCH_VARIABLE").can_reattest


async def test_a_forge_is_asked_for_a_token(
    issuer: OidcIssuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", f"{issuer.url}/token?api-version=2")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "bearer")
    path = "/token?api-version=2&audience=https%3A%2F%2Fburgee"
    issuer.answers[path] = (200, json.dumps({"value": "tok", "count": 3}).encode())
    request = {"audience": "https://burgee", "ca_file": str(issuer.ca_file(tmp_path))}
    node = prover(token_request=request)
    assert await node.payload() == b"tok"
    assert node.can_reattest
    assert issuer.headers[path]["authorization"] == "Bearer bearer"
    for answer in ((403, b'{"value": "tok"}'), (200, b"x"), (200, b'{"value": ""}'), (200, b"[]")):
        issuer.answers[path] = answer
        with pytest.raises(FailedPrecondition):
            await node.payload()


async def test_doctor_is_told_how_it_stands(issuer: OidcIssuer, tmp_path: Path) -> None:
    to = verifier(issuer, tmp_path)
    assert isinstance(to, Checked)
    (well,) = await to.check()
    assert (well.level, well.detail) == (FindingLevel.OK, "1 known")
    issuer.down = True
    (ill,) = await verifier(issuer, tmp_path).check()
    assert (ill.level, "answered 503" in ill.detail) == (FindingLevel.FAILED, True)
    (tmp_path / "token").write_text(issuer.token())
    node = prover(token_file=str(tmp_path / "token"))
    assert isinstance(node, Checked)
    (token,) = await node.check()
    assert f"`aud` `{AUDIENCE}`" in token.detail
    for nothing in ("", "junk"):
        (tmp_path / "token").write_text(nothing)
        assert [found.level for found in await node.check()] == [FindingLevel.FAILED]


async def test_no_challenge_is_answered() -> None:
    with pytest.raises(FailedPrecondition):
        await prover(token_env="A").answer(b"?")


def test_the_plugin_is_found_by_its_name() -> None:
    assert plugin.name == "oidc"


async def test_the_clock_is_the_servers(issuer: OidcIssuer, tmp_path: Path) -> None:
    clock = FakeClock()
    to = verifier(issuer, tmp_path, FakeHost(clock=clock))
    assert await refusal(to, issuer.token()) == "TOKEN_NOT_YET_VALID"
    at = int((clock.now() + timedelta(seconds=1)).timestamp())
    await attest(to, issuer.token(iat=at, nbf=at, exp=at + 60))


def test_the_pages_examples_are_valid() -> None:
    page = Path(__file__).parents[3] / "docs/plugins/node-attestor-oidc.md"
    documents = [yaml.safe_load(text) for text in blocks(page, "yaml")]
    (server,) = (d["node_attestors"]["oidc"] for d in documents if "node_attestors" in d)
    (agent,) = (d["node_attestor"]["oidc"] for d in documents if "node_attestor" in d)
    assert from_values(server, ServerConfig).issuers["forge"].required_claims == {"repository_owner": "acme"}
    assert from_values(agent, AgentConfig).token_file is not None
