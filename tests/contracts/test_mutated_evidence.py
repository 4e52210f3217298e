"""Evidence with something changed: accepted only where it yields the very same node, and never anything but a refusal.

Whatever the agent sends is changed: its payload, and its answers to challenges. Plugins are found by entry point, a
stranger's like our own; each example is an attestation of its own, from the start.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ca.errors import BurgeeError, Denied, InvalidArgument, Unavailable
from ca.ports import AttestedNode, NodeAttestorPlugin
from ca.runtime import plugins
from ca.runtime.config import from_values
from tests.contracts.attestors import NodeSample, sample

NAMES = plugins.names(plugins.NODE_ATTESTORS)
MAX_MESSAGES = 4
EXAMPLES, FEW_EXAMPLES = 60, 16
SLOW_SECONDS = 0.25
"""An attestor whose agent takes so long, as one with a TPM does, is tried with few examples. The first attestation does
not count: it imports libraries and makes certificates."""


@dataclass(frozen=True)
class Change:
    """`kind` of change at a part `at` of the message; `size` and `what` as it needs them."""

    kind: str
    at: float
    size: int
    what: bytes

    def __call__(self, message: bytes) -> bytes:
        place = min(int(self.at * len(message)), max(len(message) - 1, 0))
        before, after = message[:place], message[place:]
        if self.kind == "bit":
            return before + bytes(byte ^ (1 << self.size % 8) for byte in after[:1]) + after[1:]
        if self.kind == "cut":
            return before
        if self.kind == "without":
            return before + after[self.size :]
        if self.kind == "twice":
            return before + after[: self.size] + after
        return before + self.what + after if self.kind == "put" else message + self.what


CHANGES = st.builds(
    Change,
    kind=st.sampled_from(["bit", "bit", "bit", "cut", "without", "twice", "put", "append"]),
    at=st.floats(0, 1, exclude_max=True),
    size=st.integers(1, 8),
    what=st.sampled_from([b"\x00", b" ", b"\xff", b'"', b"{", b"]", b"A", b"=", b".", b",null", b"\\u0000"]),
)


class Once:
    """One attestation from a fresh sample, with the message of that number changed: 0 is the payload."""

    def __init__(self, name: str, number: int, change: Change | None) -> None:
        sampled: NodeSample = sample("node", name)
        plugin = plugins.load(plugins.NODE_ATTESTORS, name, NodeAttestorPlugin)
        self._verifier = plugin.verifier(from_values(sampled.server, plugin.server_config), sampled.host)
        self._prover = plugin.prover(from_values(sampled.agent, plugin.agent_config))
        self._number, self._change = number, change
        self.sent = 0
        self.changed = False

    async def run(self) -> AttestedNode:
        async with asyncio.timeout(60):
            return await self._verifier.verify(self._send(await self._prover.payload()), self._answer)

    async def _answer(self, challenge: bytes) -> bytes:
        try:
            answer = await self._prover.answer(challenge)
        except BurgeeError as error:
            # Our own agent will not answer what was asked about the changed payload: nor does it get anything.
            raise Denied("no answer", reason="NO_ANSWER") from error
        return self._send(answer)

    def _send(self, message: bytes) -> bytes:
        number, self.sent = self.sent, self.sent + 1
        if self._change is None or number != self._number:
            return message
        changed = self._change(message)
        self.changed = changed != message
        return changed


def test_what_changes_is_changed() -> None:
    message = b'{"a":1}'
    for kind in ("bit", "cut", "without", "twice", "put", "append"):
        change = Change(kind, 0.5, 1, b"x")
        assert change(message) != message
        assert isinstance(change(b""), bytes)


@pytest.mark.parametrize("name", NAMES)
def test_changed_evidence_is_refused_or_says_the_same(name: str) -> None:
    asyncio.run(Once(name, 0, None).run())
    honest = Once(name, 0, None)
    begun = time.monotonic()
    node = asyncio.run(honest.run())
    slow = time.monotonic() - begun > SLOW_SECONDS
    assert 1 <= honest.sent <= MAX_MESSAGES
    refused = 0

    @settings(
        max_examples=FEW_EXAMPLES if slow else EXAMPLES,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(number=st.integers(0, honest.sent - 1), change=CHANGES)
    def check(number: int, change: Change) -> None:
        nonlocal refused
        once = Once(name, number, change)
        try:
            found = asyncio.run(once.run())
        except (Denied, InvalidArgument, Unavailable):
            refused += 1
            assert once.changed, "what is right is refused"
        else:
            assert found == node, "changed evidence is another node's"

    check()
    assert refused > 0, "whatever is changed is believed"
