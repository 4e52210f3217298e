"""Requests to one named origin: kept connections, bounds, and what is not followed."""

from __future__ import annotations

import asyncio
import http.server
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ca.errors import ConfigError, Unavailable
from ca.runtime import threads
from ca.runtime.https import HttpClient, context_of
from ca.runtime.https_loop import LoopHttpClient
from tests.support.tls_ca import TlsCa


class Origin:
    """Counts connections and requests; `answer` says what comes."""

    def __init__(self) -> None:
        self.connections = 0
        self.requests: list[str] = []
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body = b"hello"
        self.pause = 0.0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                outer.connections += 1
                super().setup()

            def do_GET(self) -> None:
                outer.requests.append(f"{self.command} {self.path}")
                self.send_response(outer.status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in outer.headers:
                    self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                for byte in outer.body if outer.pause else ():
                    self.wfile.write(bytes([byte]))
                    time.sleep(outer.pause)
                if not outer.pause:
                    self.wfile.write(outer.body)

            do_POST = do_GET

            def log_message(self, *_: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture(params=[HttpClient, LoopHttpClient])
def kind(request: pytest.FixtureRequest) -> type[HttpClient]:
    """In threads and on the loop: who asks need not know."""
    found: type[HttpClient] = request.param
    return found


@pytest.fixture
def origin() -> Iterator[Origin]:
    made = Origin()
    yield made
    made.server.shutdown()
    made.server.server_close()


async def test_a_connection_serves_many_requests(origin: Origin, kind: type[HttpClient]) -> None:
    client = kind(origin.url + "/base/", source="the origin")
    for _ in range(3):
        answer = await client.request("GET", "/x")
        assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"hello", "5")
    assert (origin.connections, origin.requests) == (1, ["GET /base/x"] * 3)
    client.close()


async def test_as_many_connections_are_kept_as_ask_at_once(origin: Origin, kind: type[HttpClient]) -> None:
    client = kind(origin.url, source="the origin", max_idle=8)
    origin.pause = 0.02
    for _ in range(3):
        await asyncio.gather(*(client.request("GET", "/") for _ in range(8)))
    assert origin.connections <= 8
    client.close()


async def test_one_that_was_closed_meanwhile_is_replaced(origin: Origin, kind: type[HttpClient]) -> None:
    client = kind(origin.url, source="the origin")
    await client.request("GET", "/")
    kept = client._free[0]._transport.get_extra_info("socket") if isinstance(client, LoopHttpClient) else None
    (kept or client._idle[0].sock).shutdown(socket.SHUT_RDWR)
    assert (await client.request("POST", "/", body=b"{}")).status == 200
    assert origin.connections == 2
    client.close()


async def test_a_redirect_is_an_answer(origin: Origin, kind: type[HttpClient]) -> None:
    origin.status, origin.headers = 302, {"Location": "http://127.0.0.1:1/"}
    client = kind(origin.url, source="the origin")
    assert (await client.request("GET", "/")).status == 302
    client.close()


async def test_the_environments_proxy_is_not_asked(
    origin: Origin, monkeypatch: pytest.MonkeyPatch, kind: type[HttpClient]
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    client = kind(origin.url, source="the origin")
    assert (await client.request("GET", "/")).status == 200
    client.close()


async def test_too_much_is_refused(origin: Origin, kind: type[HttpClient]) -> None:
    origin.body = b"x" * 1001
    client = kind(origin.url, source="the origin", max_bytes=1000)
    with pytest.raises(Unavailable, match="the origin answered with more than 1000 bytes") as caught:
        await client.request("GET", "/")
    assert caught.value.reason == "HTTP_TOO_LARGE"


async def test_an_answer_that_ends_early_is_none(origin: Origin, kind: type[HttpClient]) -> None:
    origin.headers, origin.body = {"Content-Length": "9", "Connection": "close"}, b"hello"
    with pytest.raises(Unavailable):
        await kind(origin.url, source="the origin").request("GET", "/")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X%d: " % n + b"x" * 60_000 + b"\r\n" for n in range(5)),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: x\r\n" * 50_000,
    ],
)
async def test_an_answer_that_has_no_end_is_not_read_to_it(answer: bytes, kind: type[HttpClient]) -> None:
    """Of a chunk that is said to be less than nothing Python reads all that ever comes, whatever its caller wanted."""
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        try:
            writer.write(answer)
            while sent < 64 << 20:
                await writer.drain()
                writer.write(b"x\r\n" * (1 << 16))
                sent += 3 << 16
        except OSError:
            pass
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = kind(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", source="a peer", max_bytes=64)
    with pytest.raises(Unavailable):
        await client.request("GET", "/")
    server.close()
    assert sent < 32 << 20  # what the sockets' buffers hold, and not all that came


async def test_what_is_no_http_is_not_repeated(kind: type[HttpClient]) -> None:
    """It may be a line of whatever listens there, for a caller whom it does not concern, or for his terminal."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"a secret \x1b[31m" + b"x" * 60_000 + b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    with pytest.raises(Unavailable) as caught:
        await kind(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", source="a peer").request("GET", "/")
    server.close()
    assert caught.value.detail == "cannot ask a peer: it answered with what is no HTTP"


async def test_an_answer_that_drips_is_given_up_and_keeps_no_thread(origin: Origin, kind: type[HttpClient]) -> None:
    origin.body, origin.pause = b"x" * 100, 0.1
    client = kind(origin.url, source="the origin", timeout_seconds=0.4)
    with threads.watch() as unfinished, pytest.raises(Unavailable) as caught:
        await client.request("GET", "/")
    assert caught.value.reason == "HTTP_UNREACHABLE"
    for _ in range(40):  # well before all has dripped
        if not unfinished():
            break
        await asyncio.sleep(0.05)
    assert not unfinished()
    assert not (client._free if isinstance(client, LoopHttpClient) else client._idle)


async def test_a_server_and_a_client_know_each_other(tmp_path: Path, origin: Origin, kind: type[HttpClient]) -> None:
    ca, stranger = TlsCa("ours"), TlsCa("stranger")
    (tmp_path / "ca.pem").write_bytes(ca.pem)
    server, client = ca.server("127.0.0.1"), ca.client("client.example")
    server.write(tmp_path / "server.pem", tmp_path / "server.key")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tmp_path / "ca.pem"))
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED
    origin.server.socket = context.wrap_socket(origin.server.socket, server_side=True)
    url = origin.url.replace("http:", "https:")
    pair = {"client_cert": client.pem.decode(), "client_key": client.key_pem.decode()}
    known = kind(url, source="the origin", context=context_of(ca_file=tmp_path / "ca.pem", **pair))
    assert (await known.request("GET", "/")).status == 200
    known.close()
    believing = context_of(ca_data=stranger.pem.decode(), **pair)
    for wrong in (believing, context_of(ca_file=tmp_path / "ca.pem")):
        with pytest.raises(Unavailable):
            await kind(url, source="the origin", context=wrong, timeout_seconds=2).request("GET", "/")


async def test_nobody_there(kind: type[HttpClient]) -> None:
    client = kind("http://127.0.0.1:1", source="the API of `x`")
    with pytest.raises(Unavailable, match="cannot ask the API of `x`"):
        await client.request("GET", "/")


@pytest.mark.parametrize("url", ["ftp://x", "http://", "https://u:p@h/", "nonsense", "http://h/?q=1"])
def test_what_is_no_origin(url: str, kind: type[HttpClient]) -> None:
    with pytest.raises(ConfigError):
        kind(url, source="x")


def test_a_file_that_is_no_certificate(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        context_of(ca_file=tmp_path / "ca.pem")
