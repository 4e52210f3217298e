"""Signed messages: those of openssl and cryptography, their mutations, and what is none."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from attestor.node.cloud import ber, cms
from tests.support.cloud_documents import azure_message, openssl_message, self_signed, signed_message

CONTENT = b'{"a": "document"}'
SIGNER = self_signed("signer")


def test_messages_of_cryptography_verify() -> None:
    for attributes, certificates, detached in itertools.product((True, False), repeat=3):
        data = signed_message(CONTENT, SIGNER, attributes=attributes, certificates=certificates, detached=detached)
        message = cms.parse(data)
        message.verify(SIGNER.certificate, CONTENT)
        assert message.content == (None if detached else CONTENT)
        assert (message.attributes is not None) is attributes
        assert message.certificates == ((SIGNER.certificate,) if certificates else ())


@pytest.mark.parametrize(
    "options",
    [
        ("-nodetach",),
        ("-nodetach", "-noattr"),
        ("-nodetach", "-stream"),  # indefinite lengths, the content in parts
        ("-nodetach", "-stream", "-nocerts"),
        ("-nodetach", "-noattr", "-stream", "-md", "sha384"),
        ("-nodetach", "-md", "sha512"),
        (),  # detached
    ],
)
@pytest.mark.parametrize("command", ["cms", "smime"])
def test_messages_of_openssl_verify(command: str, options: tuple[str, ...]) -> None:
    content = CONTENT * 200
    message = cms.parse(openssl_message(content, SIGNER, *options, command=command))
    message.verify(SIGNER.certificate, content)
    assert message.content == (content if "-nodetach" in options else None)
    if "-nocerts" not in options:
        assert message.own_signer() == SIGNER.certificate


def test_a_message_that_names_its_digest_as_azure_does_verifies() -> None:
    message = cms.parse(azure_message(CONTENT, SIGNER))
    message.verify(SIGNER.certificate, CONTENT)
    assert (message.digest.name, message.attributes) == ("sha256", None)


def test_another_content_is_not_signed() -> None:
    for attributes, detached in itertools.product((True, False), repeat=2):
        message = cms.parse(signed_message(CONTENT, SIGNER, attributes=attributes, detached=detached))
        with pytest.raises(ValueError, match=r"content|not the key"):
            message.verify(SIGNER.certificate, CONTENT + b" ")


def test_another_key_did_not_sign() -> None:
    for attributes in (True, False):
        message = cms.parse(signed_message(CONTENT, SIGNER, attributes=attributes))
        with pytest.raises(ValueError, match="not the key's"):
            message.verify(self_signed("other").certificate, CONTENT)


def test_a_short_key_and_a_weak_digest_do_not_count() -> None:
    short = self_signed("short", 1024)
    with pytest.raises(ValueError, match="too short"):
        cms.parse(openssl_message(CONTENT, short, "-nodetach")).verify(short.certificate, CONTENT)
    with pytest.raises(ValueError, match="digest"):
        cms.parse(openssl_message(CONTENT, SIGNER, "-nodetach", "-md", "sha1"))


def test_the_attributes_of_one_message_do_not_serve_as_the_content_of_another() -> None:
    """Without its attributes, a message is over what they were (RFC 5652 §5.4); as a document that is nothing."""
    message = cms.parse(signed_message(CONTENT, SIGNER))
    assert message.attributes is not None
    assert message.attributes[0] == ber.SET


def test_of_two_signers_none_is_the_signer() -> None:
    one, two = self_signed("signer"), self_signed("other")
    data = ber.parse(signed_message(CONTENT, one))
    again = ber.parse(signed_message(CONTENT, two))
    signers = [element.children[1].children[0].children[-1].children[0].raw for element in (data, again)]
    assert signers[0] != signers[1]
    both = _with_signers(data.raw, signers)
    with pytest.raises(ValueError, match="unpack"):
        cms.parse(both)


def _with_signers(message: bytes, signers: list[bytes]) -> bytes:
    """The message with these signers, in indefinite lengths: they need no arithmetic."""
    info = ber.parse(message)
    parts = b"".join(child.raw for child in info.children[1].children[0].children[:-1])
    data = b"\x30\x80" + parts + b"\x31\x80" + b"".join(signers) + b"\0\0\0\0"
    return b"\x30\x80" + info.children[0].raw + b"\xa0\x80" + data + b"\0\0\0\0"


def test_the_way_of_writing_does_not_matter() -> None:
    data = signed_message(CONTENT, SIGNER)
    signer = ber.parse(data).children[1].children[0].children[-1].children[0].raw
    cms.parse(_with_signers(data, [signer])).verify(SIGNER.certificate, CONTENT)


@pytest.mark.parametrize("form", ["attributes", "plain", "streamed", "azure"])
def test_a_flipped_bit_changes_nothing_that_is_believed(form: str) -> None:
    """Either it is refused, or what is verified is what it was: never another content, never another error."""
    data = {
        "attributes": signed_message(CONTENT, SIGNER),
        "plain": signed_message(CONTENT, SIGNER, attributes=False, certificates=False),
        "azure": azure_message(CONTENT, SIGNER),
        "streamed": openssl_message(CONTENT, SIGNER, "-nodetach", "-stream", "-nocerts"),
    }[form]
    refused = 0
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        try:
            message = cms.parse(bytes(flipped))
            message.verify(SIGNER.certificate, CONTENT)
        except ValueError:
            refused += 1
            continue
        assert message.content in (CONTENT, None)
    assert refused > len(data) // 4


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
@example(b"")
@example(b"\x30\x80" * 200)
@example(b"\x30\x84\xff\xff\xff\xff")
@example(b"\x30\x80\x00")
@example(b"\x24\x80\x04\x01a\x00\x00")
@example(b"\x30\x06\x06\x00\xa0\x02\x30\x00")
def test_junk_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        cms.parse(data)


def test_what_is_too_large_is_not_looked_at() -> None:
    with pytest.raises(ValueError, match="longer"):
        cms.parse(bytes(cms.MAX_BYTES + 1))
    with pytest.raises(ValueError, match="too many"):
        ber.parse(b"\x30\x80" + b"\x05\x00" * ber.MAX_ELEMENTS + b"\0\0")
    with pytest.raises(ValueError, match="too deeply"):
        ber.parse(b"\x30\x80" * 100 + b"\0\0" * 100)


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02", "1.2.840.113549.1.7.2"), (b"\x55\x04\x03", "2.5.4.3"), (b"\x28", "1.0")],
)
def test_object_identifiers(content: bytes, text: str) -> None:
    assert ber.parse(bytes([6, len(content)]) + content).oid() == text


@pytest.mark.parametrize("content", [b"", b"\x80\x01", b"\x2a\x86", b"\x2a\x80\x01"])
def test_malformed_object_identifiers(content: bytes) -> None:
    with pytest.raises(ValueError, match="object identifier"):
        ber.parse(bytes([6, len(content)]) + content).oid()
