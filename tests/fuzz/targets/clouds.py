"""What machines of the clouds send as their evidence, and the messages that their clouds signed."""

from __future__ import annotations

import json

from attestor.node.cloud import ber, cms
from attestor.node.cloud.aws_document import verified_document
from attestor.node.cloud.azure_document import evidence_of
from attestor.node.cloud.gcp_instance import instance_of
from ca.errors import BurgeeError, Denied, InvalidArgument
from tests.fuzz.harness import Target, check_refusal, outcome


def run_clouds(data: bytes) -> None:
    message = _parsed(data)
    if message is not None:
        _check_message(message, data)
    outcome(evidence_of, data, refusal=InvalidArgument)
    _run_document(data)
    _run_claims(data)


def _parsed(data: bytes) -> cms.SignedMessage | None:
    try:
        return cms.parse(data)
    except ValueError as error:
        if not str(error).isprintable():
            raise AssertionError(f"not one printable line: {error!r}") from error
        return None


def _check_message(message: cms.SignedMessage, data: bytes) -> None:
    """What it holds was in the bytes; a message in another writing is the same message."""
    assert message.signature in data
    assert message.issuer in data
    assert len(message.content or b"") < len(data)
    assert message.attributes is None or message.attributes[1:] in data
    assert ber.parse(data).raw == data


def _run_document(data: bytes) -> None:
    """No key is pinned: whatever it says, it proves nothing."""
    try:
        verified_document(data, {})
    except BurgeeError as error:
        check_refusal(error, Denied if isinstance(error, Denied) else InvalidArgument)
    else:
        raise AssertionError("a document was believed that nobody signed")


def _run_claims(data: bytes) -> None:
    try:
        claims = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(claims, dict):
        instance = outcome(instance_of, claims, refusal=InvalidArgument)
        assert instance is None or instance.instance_id.isdigit()


_WORDS = (
    b"\x30\x80",
    b"\x00\x00",
    b"\x24\x80\x04",
    b"\xa0\x80",
    bytes.fromhex("06092a864886f70d010702"),
    bytes.fromhex("0609608648016503040201"),
    b'"rsa2048":',
    b'"agentDomain":',
    b'"compute_engine":',
)
TARGETS = (Target(name="clouds", run=run_clouds, words=_WORDS),)
