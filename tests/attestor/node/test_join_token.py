"""The join token attestor: where the token comes from, what is sent, and what the server makes of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from attestor.node.join_token import AgentConfig, JoinTokenProver, JoinTokenVerifier, ServerConfig, plugin
from ca.errors import BurgeeError, ConfigError, FailedPrecondition, InvalidArgument
from ca.runtime.config import from_values
from tests.contracts.attestors import NodeSample
from tests.support.node_host import FakeHost


def contract_sample() -> NodeSample:
    return NodeSample(host=FakeHost("a-token-long-enough"), agent={"token": "a-token-long-enough"})


async def no_challenge(_: bytes) -> bytes:
    raise AssertionError("join tokens have no challenge")


def prover(**source: Any) -> JoinTokenProver:
    return JoinTokenProver(from_values(source, AgentConfig))


@pytest.mark.parametrize(
    "source", [{}, {"token": "a", "token_env": "B"}, {"token": "a", "token_file": "/x"}, {"token": ""}]
)
def test_exactly_one_source(source: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        from_values(source, AgentConfig)


def test_a_refused_configuration_does_not_print_the_token() -> None:
    with pytest.raises(ConfigError) as caught:
        from_values({"token": "s3cret", "token_env": "B"}, AgentConfig)
    assert "s3cret" not in caught.value.detail + caught.value.hint + str(caught.value.__cause__)
    assert "s3cret" not in repr(from_values({"token": "s3cret"}, AgentConfig))


async def test_the_payload_is_the_tokens_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("from-file\n")
    monkeypatch.setenv("BURGEE_TOKEN", "from-env")
    assert await prover(token="raw").payload() == b"raw"
    assert await prover(token_file=str(tmp_path / "token")).payload() == b"from-file"
    assert await prover(token_env="BURGEE_TOKEN").payload() == b"from-env"


async def test_a_missing_token_says_what_to_do(tmp_path: Path) -> None:
    for nothing in (prover(token_file=str(tmp_path / "none")), prover(token_env="BURGEE_NO_SUCH")):
        assert not nothing.can_reattest
        with pytest.raises(FailedPrecondition) as caught:
            await nothing.payload()
        assert caught.value.reason == "JOIN_TOKEN_MISSING"
        assert "caadmin token create" in caught.value.hint


async def test_a_token_works_once_and_a_new_one_in_the_file_works_again(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("one")
    node = prover(token_file=str(path))
    assert node.can_reattest
    await node.payload()
    assert not node.can_reattest
    path.write_text("two")
    assert node.can_reattest
    assert await node.payload() == b"two"
    assert not node.can_reattest


async def test_no_challenge_is_answered() -> None:
    with pytest.raises(FailedPrecondition):
        await prover(token="a").answer(b"?")


async def test_a_good_token_names_the_node() -> None:
    node = await JoinTokenVerifier(ServerConfig(), FakeHost("t-1")).verify(b"t-1", no_challenge)
    assert (node.path, node.selectors, node.reattestable) == ("/spire/agent/join_token/t-1", frozenset(), False)


async def test_of_fifty_uses_one_wins() -> None:
    verifier = JoinTokenVerifier(ServerConfig(), FakeHost("t-1"))
    results = await asyncio.gather(*(verifier.verify(b"t-1", no_challenge) for _ in range(50)), return_exceptions=True)
    assert sum(not isinstance(r, BaseException) for r in results) == 1
    assert {r.reason for r in results if isinstance(r, BurgeeError)} == {"JOIN_TOKEN_UNKNOWN"}


@pytest.mark.parametrize("payload", [b"", b"x" * 1025, b"\xff", b"a b", b"../server", b"a/b", b".."])
async def test_what_cannot_be_a_token_is_refused_before_the_store_is_asked(payload: bytes) -> None:
    host = FakeHost(payload.decode("latin-1"))
    with pytest.raises(InvalidArgument):
        await JoinTokenVerifier(ServerConfig(), host).verify(payload, no_challenge)
    assert not host.asked


def test_the_plugin_is_found_by_its_name() -> None:
    assert plugin.name == "join_token"
