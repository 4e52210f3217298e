"""An answer is the same however its bytes arrive, and what is no answer is none."""

from __future__ import annotations

import http.client
import io
from collections.abc import Iterable

import pytest

from ca.runtime.http_answer import MAX_HEAD_BYTES, Answer, Incoming, NoHttp, TooLarge, read_answer

LIMIT = 64
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

ANSWERS = [
    OK + b"Content-Length: 5\r\n\r\nhello",
    OK + b"content-length:0\r\nX-A:  b \r\n\r\n",
    b"HTTP/1.1 204 \r\nContent-Length: 9\r\n\r\n",
    b"HTTP/1.1 404\r\nContent-Length: 1\r\n\r\nx",
    b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nok",
    CHUNKED + b"3\r\nabc\r\n0002;x=y\r\nde\r\n0\r\nT: 1\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    OK + b"Connection: keep-alive, Close\r\n\r\nuntil the end",
]

WRONG = [
    b"SSH-2.0-x\r\n\r\n",
    b"HTTP/2 200\r\n\r\n",
    b"HTTP/1.1 2000 OK\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\n\r\n",
    OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    OK + b"Content-Length: +5\r\n\r\nhello",
    OK + b"Content-Length: -1\r\n\r\n",
    OK + b"Content-Length: \xb25\r\n\r\n",
    OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    OK + b"X: a\r\n folded\r\n\r\n",
    OK + b"X : a\r\n\r\n",
    OK + b"X: a\nContent-Length: 5\r\n\r\n",
    CHUNKED + b"-1\r\n",
    CHUNKED + b"0x2\r\nab\r\n0\r\n\r\n",
    CHUNKED + b" 2\r\nab\r\n0\r\n\r\n",
    CHUNKED + b"2\r\nabc\r\n0\r\n\r\n",
    CHUNKED + b"2;" + b"x" * 2000,
    CHUNKED + b"0\r\n" + b"X: x\r\n" * 50_000,
    OK + b"X: " + b"x" * MAX_HEAD_BYTES,
]


def read(pieces: Iterable[bytes], method: str = "GET") -> tuple[Answer, bool, bytes]:
    """What they are, whether the connection lasts, and what came beyond."""
    incoming = Incoming()
    reading = read_answer(incoming, method, LIMIT)
    try:
        for piece in pieces:
            incoming.data += piece
            next(reading)
        incoming.ended = True
        while True:
            next(reading)
    except StopIteration as done:
        answer, lasting = done.value
        return answer, lasting, bytes(incoming.data)


@pytest.mark.parametrize("sent", ANSWERS)
def test_as_pythons_own_client_reads_it_and_in_whatever_pieces_it_comes(sent: bytes) -> None:
    class Source:
        def makefile(self, _: str) -> io.BytesIO:
            return io.BytesIO(sent)

    theirs = http.client.HTTPResponse(Source())  # type: ignore[arg-type]  # all that it uses of a socket
    theirs.begin()
    will_close, body = theirs.will_close, theirs.read()
    answer, lasting, beyond = read([sent])
    assert (answer.status, answer.body, lasting, beyond) == (theirs.status, body, not will_close, b"")
    assert answer.headers == {name.lower(): value.strip() for name, value in theirs.getheaders()}
    for at in range(len(sent)):
        assert read([sent[:at], sent[at:]]) == (answer, lasting, b"")
    assert read(sent[at : at + 1] for at in range(len(sent))) == (answer, lasting, b"")


@pytest.mark.parametrize("sent", WRONG)
def test_what_is_no_answer(sent: bytes) -> None:
    with pytest.raises(NoHttp):
        read([sent])


@pytest.mark.parametrize("sent", [sent for sent in ANSWERS if b"until the end" not in sent])
def test_one_that_ends_early_is_none(sent: bytes) -> None:
    for at in range(len(sent)):
        with pytest.raises(EOFError):
            read([sent[:at]])


@pytest.mark.parametrize(
    "sent",
    [
        OK + b"Content-Length: 65\r\n\r\n",
        CHUNKED + b"40\r\n" + b"x" * 64 + b"\r\n1\r\n",
        CHUNKED + b"fffffffffffffff\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 65,
    ],
)
def test_too_large_is_known_before_it_was_read(sent: bytes) -> None:
    with pytest.raises(TooLarge):
        read([sent])


def test_a_head_that_was_asked_for_has_no_body() -> None:
    answer, lasting, _ = read([OK + b"Content-Length: 5\r\n\r\n"], method="HEAD")
    assert (answer.body, lasting) == (b"", True)


def test_what_comes_beyond_an_answer_is_left() -> None:
    assert read([ANSWERS[0] + b"HTTP/1.1"])[2] == b"HTTP/1.1"
