"""Evidence of a TPM with bits turned and ends cut: judged from one recording, so no TPM is asked per example.

Accepted only where it yields the same node as the recording, refused by name otherwise; never a traceback.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attestor.node.tpm.public import parse_public
from attestor.node.tpm.structures import (
    ALG_RSASSA,
    ALG_SHA256,
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SIGN,
    USER_WITH_AUTH,
    sized,
)
from ca.errors import Denied, InvalidArgument
from tests.attestor.node.tpm_lab import Recording, recording, refusal

pytestmark = [pytest.mark.real("swtpm"), pytest.mark.xdist_group("swtpm")]

Change = Callable[[bytes], bytes]
SHOWN = ("devid_public", "ek_certificate", "ek_public", "ak_public", "certified", "certification")
AK_ATTRIBUTES = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | USER_WITH_AUTH | RESTRICTED | SIGN


def _turn(data: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[position % len(changed)] ^= 1 << bit
    return bytes(changed)


TURN: st.SearchStrategy[Change] = st.builds(
    lambda position, bit: lambda data: _turn(data, position, bit), st.integers(0, 1 << 20), st.integers(0, 7)
)
CUT: st.SearchStrategy[Change] = st.integers(0, 1 << 20).map(lambda end: lambda data: data[: end % len(data)])
LENGTHEN: st.SearchStrategy[Change] = st.binary(min_size=1, max_size=8).map(lambda more: lambda data: data + more)
REPLACE: st.SearchStrategy[Change] = st.binary(max_size=64).map(lambda other: lambda _: other)
CHANGES = st.one_of(TURN, TURN, TURN, CUT, LENGTHEN, REPLACE)
each = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
async def recorded() -> Recording:
    return await recording()


async def judge(recorded: Recording, payload: bytes, answers: bytes) -> bool:
    """Whether it was accepted, and then as nobody else."""
    try:
        node = await recorded.judge(payload, answers)
    except (Denied, InvalidArgument):
        return False
    assert node == recorded.node
    return True


async def test_the_recording_itself_is_accepted(recorded: Recording) -> None:
    assert await judge(recorded, recorded.evidence.encode(), recorded.answers.encode())


@pytest.mark.parametrize("field", SHOWN)
@each
@given(change=CHANGES)
async def test_a_changed_field_of_the_payload(recorded: Recording, field: str, change: Change) -> None:
    changed = replace(recorded.evidence, **{field: change(getattr(recorded.evidence, field))})
    accepted = await judge(recorded, changed.encode(), recorded.answers.encode())
    if accepted and field != "ek_public":  # of which only the key is compared: the rest is for the TPM's own use
        assert changed == recorded.evidence


@each
@given(change=CHANGES)
async def test_a_changed_devid_certificate(recorded: Recording, change: Change) -> None:
    changed = replace(recorded.evidence, devid_chain=(change(recorded.evidence.devid_chain[0]),))
    accepted = await judge(recorded, changed.encode(), recorded.answers.encode())
    assert not accepted or changed == recorded.evidence


@pytest.mark.parametrize("field", ["devid_signature", "activated"])
@each
@given(change=CHANGES)
async def test_a_changed_answer(recorded: Recording, field: str, change: Change) -> None:
    changed = replace(recorded.answers, **{field: change(getattr(recorded.answers, field))})
    accepted = await judge(recorded, recorded.evidence.encode(), changed.encode())
    assert not accepted or changed == recorded.answers


@pytest.mark.parametrize("field", ["attest", "signature", "values"])
@each
@given(change=CHANGES, at=st.integers(0, 1))
async def test_a_changed_quote(recorded: Recording, field: str, change: Change, at: int) -> None:
    quoted = recorded.answers.quoted
    assert quoted is not None
    value: Any = getattr(quoted, field)
    values = tuple(change(one) if index == at else one for index, one in enumerate(quoted.values))
    changed = replace(
        recorded.answers, quoted=replace(quoted, **{field: values if field == "values" else change(value)})
    )
    accepted = await judge(recorded, recorded.evidence.encode(), changed.encode())
    assert not accepted or changed == recorded.answers


@settings(each, max_examples=120)
@given(change=CHANGES, which=st.booleans())
async def test_changed_json(recorded: Recording, change: Change, which: bool) -> None:
    payload, answers = recorded.evidence.encode(), recorded.answers.encode()
    await judge(recorded, change(payload) if which else payload, answers if which else change(answers))


async def test_without_a_quote_or_with_one_value_too_few(recorded: Recording) -> None:
    quoted = recorded.answers.quoted
    assert quoted is not None
    payload = recorded.evidence.encode()
    for answers, reason in (
        (replace(recorded.answers, quoted=None), "TPM_QUOTE_MISSING"),
        (replace(recorded.answers, quoted=replace(quoted, values=quoted.values[:1])), "TPM_QUOTE_INVALID"),
        (replace(recorded.answers, quoted=replace(quoted, values=quoted.values[::-1])), ""),  # both are zeros
        (replace(recorded.answers, quoted=replace(quoted, attest=recorded.evidence.certified)), "TPM_QUOTE_INVALID"),
    ):
        if reason:
            assert await refusal(recorded.judge(payload, answers.encode())) == reason
        else:
            assert await judge(recorded, payload, answers.encode())


# An attestation key that is a file


def _in_software(recorded: Recording, attributes: int) -> bytes:
    """The payload of somebody with a key of his own, who signs what a TPM would have said."""
    key = rsa.generate_private_key(65537, 2048)
    modulus = key.public_key().public_numbers().n.to_bytes(256, "big")
    public = struct.pack(">HHI", 0x0001, ALG_SHA256, attributes) + sized(b"")
    public += struct.pack(">HHHHI", 0x0010, ALG_RSASSA, ALG_SHA256, 2048, 0) + sized(modulus)
    assert parse_public(public).attributes == attributes
    signature = key.sign(recorded.evidence.certified, padding.PKCS1v15(), hashes.SHA256())
    certification = struct.pack(">HH", ALG_RSASSA, ALG_SHA256) + sized(signature)
    return replace(recorded.evidence, ak_public=public, certification=certification).encode()


@pytest.mark.parametrize("missing", [FIXED_TPM, FIXED_PARENT, SENSITIVE_DATA_ORIGIN, RESTRICTED, SIGN])
async def test_an_attestation_key_without_one_of_its_attributes(recorded: Recording, missing: int) -> None:
    """Without `restricted` it would sign whatever it is given; without the others it may be a file."""
    payload = _in_software(recorded, AK_ATTRIBUTES & ~missing)
    assert await refusal(recorded.judge(payload, recorded.answers.encode())) == "TPM_KEY_ATTRIBUTES"


async def test_an_attestation_key_that_decrypts_as_well(recorded: Recording) -> None:
    payload = _in_software(recorded, AK_ATTRIBUTES | DECRYPT)
    assert await refusal(recorded.judge(payload, recorded.answers.encode())) == "TPM_KEY_ATTRIBUTES"


async def test_an_attestation_key_that_lies_about_being_in_the_tpm(recorded: Recording) -> None:
    """All signatures are right. Only the credential, which no TPM opens for a key that it does not hold, tells."""
    payload = _in_software(recorded, AK_ATTRIBUTES)
    assert await refusal(recorded.judge(payload, recorded.answers.encode())) == "TPM_ACTIVATION"
