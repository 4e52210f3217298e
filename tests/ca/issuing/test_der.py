"""The DER reader takes the one right encoding and the writer makes it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.errors import InvalidArgument
from ca.issuing import der


@given(st.binary(max_size=300), st.sampled_from([der.OCTET_STRING, der.SEQUENCE, 0xA3]))
def test_what_is_written_is_read(content: bytes, tag: int) -> None:
    whole = der.tlv(tag, content)
    start, stop = der.read(whole, 0, len(whole), tag)
    assert whole[start:stop] == content
    assert stop == len(whole)


@pytest.mark.parametrize(
    ("size", "head"),
    [
        (0, "0400"),
        (127, "047f"),
        (128, "048180"),
        (255, "0481ff"),
        (256, "04820100"),
        (4096, "04821000"),
        (70000, "0483011170"),
    ],
)
def test_lengths_are_minimal(size: int, head: str) -> None:
    assert der.tlv(0x04, bytes(size)) == bytes.fromhex(head) + bytes(size)


@pytest.mark.parametrize(
    "data",
    [
        "",
        "04",
        "0401",
        "0480",
        "04810100",
        "04817f" + "00" * 127,
        "0482007f" + "00" * 127,
        "04820080" + "00" * 128,
        "0485000000000100",
        "0481",
        "0500",
    ],
)
def test_other_encodings_are_refused(data: str) -> None:
    raw = bytes.fromhex(data)
    with pytest.raises(InvalidArgument) as caught:
        der.read(raw, 0, len(raw), 0x04)
    assert caught.value.reason == "DER"


def test_a_value_must_end_where_its_parent_ends() -> None:
    """The bytes are there, but they are somebody else's."""
    raw = b"\x04\x02ab"
    with pytest.raises(InvalidArgument):
        der.read(raw, 0, 3, 0x04)


@given(st.integers(0, 2**160))
def test_integers_go_there_and_back(value: int) -> None:
    encoded = der.integer(value)
    assert der.Reader(encoded).take_integer() == value
    assert value == 0 or len(encoded) == 2 + value.bit_length() // 8 + 1


@pytest.mark.parametrize("content", [b"", b"\x80", b"\xff\xff", b"\x00\x7f", b"\x00\x00"])
def test_negative_and_padded_integers_are_refused(content: bytes) -> None:
    with pytest.raises(InvalidArgument):
        der.unsigned(content)


@pytest.mark.parametrize(
    ("dotted", "encoded"), [("2.5.29.17", "0603551d11"), ("1.2.840.113549.1.1.11", "06092a864886f70d01010b")]
)
def test_object_identifiers(dotted: str, encoded: str) -> None:
    assert der.object_identifier(dotted).hex() == encoded


def test_a_reader_walks_and_must_be_finished() -> None:
    reader = der.Reader(bytes.fromhex("30060201050401aa0500"))
    inner = reader.enter(der.SEQUENCE)
    assert inner.take_integer() == 5
    assert inner.peek() == der.OCTET_STRING
    with pytest.raises(InvalidArgument, match="too many"):
        inner.close()
    assert inner.take(der.OCTET_STRING) == b"\xaa"
    inner.close()
    assert (inner.peek(), inner.more, reader.more) == (-1, False, True)
    assert reader.take_whole(der.NULL) == b"\x05\x00"
