"""What a TPM says, and what both halves of its attestation say to each other, as anybody could send it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attestor.node.tpm.messages import Answers, Evidence, Questions
from attestor.node.tpm.prove import first_der
from attestor.node.tpm.public import PublicArea, parse_public
from attestor.node.tpm.structures import (
    ATTEST_CERTIFY,
    ATTEST_QUOTE,
    GENERATED,
    Malformed,
    parse_attest,
    parse_signature,
)
from tests.fuzz.harness import Target

MESSAGES = (Evidence, Questions, Answers)
STRUCTURES: tuple[Callable[[bytes], Any], ...] = (parse_attest, parse_signature, first_der)


def run_tpm(data: bytes) -> None:
    area = _parsed(parse_public, data)
    if area is not None:
        _check_area(area, data)
    for parse in STRUCTURES:
        _parsed(parse, data)
    for message in MESSAGES:
        found = _parsed(message.decode, data)
        assert found is None or message.decode(found.encode()) == found


def _parsed(parse: Callable[[bytes], Any], data: bytes) -> Any:
    """What it makes of it, or None when it refused in words fit for a log line."""
    try:
        return parse(data)
    except Malformed as error:
        if not str(error).isprintable():
            raise AssertionError(f"not one printable line: {error!r}") from error
        return None


def _check_area(area: PublicArea, data: bytes) -> None:
    """Its name is over all that was read; its key is one to compute with."""
    assert area.encoded == data
    assert len(area.name) in (34, 50, 66)
    assert 256 <= area.key.key_size <= 4096


_WORDS = tuple(number.to_bytes(2, "big") for number in (0x1, 0xB, 0x10, 0x14, 0x18, 0x23, ATTEST_CERTIFY, ATTEST_QUOTE))
TARGETS = (
    Target(name="tpm", run=run_tpm, words=(*_WORDS, GENERATED.to_bytes(4, "big"), b'"Quote":', b'"DevIDCert":')),
)
