"""Provers and verifiers of `tpm_devid` for its tests, and evidence that was recorded once, to be judged many times."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest

from attestor.node.tpm.messages import Answers, Evidence, Questions
from attestor.node.tpm_devid import AgentConfig, ServerConfig, TpmDevIdProver, TpmDevIdVerifier
from ca.errors import BurgeeError
from ca.ports import AttestedNode
from ca.runtime.config import from_values
from tests.support.node_host import FakeHost
from tests.support.swtpm import SoftTpm, factory, need_swtpm, usual_tpm

Answer = Callable[[bytes], Awaitable[bytes]]

WATCHED = "8"
UNTOUCHED = bytes(32)
"""What a PCR of a software TPM has as long as nobody extends it."""


def policy(**allowed: list[str]) -> dict[str, Any]:
    """Of PCR 8, and 7 beside it, in bank sha256; as they are in a TPM that measured nothing."""
    values = {WATCHED: [UNTOUCHED.hex()], "7": [UNTOUCHED.hex()]} | {key.lstrip("p"): v for key, v in allowed.items()}
    return {"pcr_policy": {"pcrs": values}}


def verifier(changes: Mapping[str, Any] | None = None, **more: Any) -> TpmDevIdVerifier:
    values = {**factory().server, **(changes or {})}
    return TpmDevIdVerifier(from_values(values, ServerConfig), FakeHost(), **more)


def prover(tpm: SoftTpm, name: str = "devid", **more: Any) -> TpmDevIdProver:
    return TpmDevIdProver(from_values(tpm.agent(name, **more), AgentConfig))


@cache
def other_tpm() -> SoftTpm:
    """Another machine's, with a DevID of the same CA."""
    need_swtpm()
    return factory().tpm(devid="ecc")


async def refusal(attestation: Awaitable[AttestedNode]) -> str:
    with pytest.raises(BurgeeError) as caught:
        await attestation
    return caught.value.reason


def always(answer: bytes) -> Answer:
    async def give(_: bytes) -> bytes:
        return answer

    return give


class SameNonces:
    """Randomness that is the same each time, so that a recorded answer is an answer again."""

    def __init__(self) -> None:
        self.drawn = 0

    def __call__(self, size: int) -> bytes:
        self.drawn += 1
        return hashlib.sha512(str(self.drawn).encode()).digest()[:size]


@dataclass(frozen=True, kw_only=True, repr=False)
class Recording:
    """One attestation with a quote, from first to last byte."""

    evidence: Evidence
    questions: Questions
    answers: Answers
    node: AttestedNode

    async def judge(self, payload: bytes, answers: bytes) -> AttestedNode:
        """What the same server would have said to other bytes. Raises what it raises.

        The TPM opens no other credential than the one that was made for its keys, and nobody else opens any.
        """

        async def answer(challenge: bytes) -> bytes:
            opened = Questions.decode(challenge).credential == self.questions.credential
            return answers if opened else replace(self.answers, activated=bytes(32)).encode()

        return await verifier(policy(), random=SameNonces()).verify(payload, answer)


_recorded: list[Recording] = []


async def recording() -> Recording:
    """Made at the first call, by a TPM; needs none afterwards."""
    if not _recorded:
        machine, heard = prover(usual_tpm()), []

        async def answer(challenge: bytes) -> bytes:
            heard.extend((challenge, await machine.answer(challenge)))
            return heard[1]

        payload = await machine.payload()
        node = await verifier(policy(), random=SameNonces()).verify(payload, answer)
        evidence, questions, answers = Evidence.decode(payload), Questions.decode(heard[0]), Answers.decode(heard[1])
        _recorded.append(Recording(evidence=evidence, questions=questions, answers=answers, node=node))
    return _recorded[0]
