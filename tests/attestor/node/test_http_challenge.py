"""The http_challenge attestor: where a server lets itself be sent, what it takes for proof, and what an agent shows."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import shutil
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address, ip_network
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestor.node import challenge_server, http_challenge
from attestor.node.http_addresses import Address, refusal
from attestor.node.http_challenge import AgentConfig, HttpChallengeProver, HttpChallengeVerifier, ServerConfig, plugin
from ca.errors import BurgeeError, ConfigError, Denied, FailedPrecondition, InvalidArgument, Unavailable
from ca.ports import AttestedNode
from ca.proto.spire import server_agent_pb2, server_agent_pb2_grpc, types_pb2
from ca.runtime.config import from_values
from ca.runtime.config_reference import markdown_table
from ca.runtime.notes import collecting
from ca.runtime.threads import to_thread
from tests.contracts.attestors import NodeSample
from tests.docs.reason_codes import ROOT
from tests.support.mutation import PLACES, flipped
from tests.support.node_host import FakeHost
from tests.support.pair import TRUST_DOMAIN, pair, until

LOOPBACK = ["127.0.0.0/8", "::1/128"]
SERVER = {"allowed_dns_patterns": ["localhost"], "allowed_cidrs": LOOPBACK}
PAGE = ROOT / "docs/plugins/node-attestor-http_challenge.md"


def contract_sample() -> NodeSample:
    return NodeSample(host=FakeHost(), server=SERVER, agent={"hostname": "localhost"})


def prover(**config: Any) -> HttpChallengeProver:
    return HttpChallengeProver(from_values({"hostname": "localhost"} | config, AgentConfig))


def verifier(*addresses: str, **config: Any) -> HttpChallengeVerifier:
    """With addresses: whatever name is asked for resolves to them."""
    model = from_values(SERVER | config, ServerConfig)
    return HttpChallengeVerifier(model, FakeHost(), *([Names(*addresses)] if addresses else []))


class Names:
    """Resolves every name, and counts."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: Sequence[Address] = [ip_address(one) for one in addresses]
        self.asked: list[str] = []

    async def __call__(self, name: str) -> Sequence[Address]:
        self.asked.append(name)
        return self.addresses


def payload(port: int, hostname: Any = "localhost", agentname: Any = "default") -> bytes:
    return json.dumps({"hostname": hostname, "agentname": agentname, "port": port}).encode()


async def attest(verify: HttpChallengeVerifier, node: HttpChallengeProver) -> AttestedNode:
    return await verify.verify(await node.payload(), node.answer)


class Web:
    """A web server that answers each request with bytes that `page` makes of the nonce; knows what it was asked."""

    def __init__(self, page: Callable[[str], bytes]) -> None:
        self.page = page
        self.nonce = ""
        self.heads: list[str] = []
        self.port = 0

    async def answer(self, challenge: bytes) -> bytes:
        self.nonce = json.loads(challenge)["nonce"]
        return b"{}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        try:
            for octet in self.page(self.nonce).split(b"|"):  # a bar is a pause
                writer.write(octet)
                await writer.drain()
                await asyncio.sleep(0.05)
        except OSError:
            pass  # the server hung up on us, as some of these tests want
        writer.close()


@asynccontextmanager
async def web(page: Callable[[str], bytes]) -> AsyncIterator[Web]:
    made = Web(page)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


def ok(body: str, head: str = "HTTP/1.1 200 OK") -> bytes:
    return f"{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


async def test_who_shows_the_nonce_is_named_by_its_name() -> None:
    node = await attest(verifier(), prover())
    assert node.path == "/spire/agent/http_challenge/localhost"
    assert {str(one) for one in node.selectors} == {"http_challenge:hostname:localhost"}
    assert not node.reattestable
    assert not prover().can_reattest
    assert prover().evidence_lasts


async def test_trust_on_first_use_can_be_left_out_where_only_root_can_listen() -> None:
    async with web(ok) as made:
        check = verifier("127.0.0.1", tofu=False, allow_non_root_ports=False)
        with pytest.raises(Denied) as caught:
            await check.verify(payload(made.port), made.answer)
        assert caught.value.reason == "HTTP_CHALLENGE_PORT"
    for values in (
        {"tofu": False},
        {"tofu": False, "required_port": 8080},
        {"required_port": 8080, "allow_non_root_ports": False},
        {"allowed_dns_patterns": []},
        {"allowed_dns_patterns": ["("]},
        {"allowed_cidrs": ["10.0.0.1/8"]},
        {"denied_cidrs": ["here"]},
    ):
        with pytest.raises(ConfigError):
            from_values(SERVER | values, ServerConfig)
    for works in ({"tofu": False, "required_port": 80}, {"tofu": False, "allow_non_root_ports": False}):
        from_values(SERVER | works, ServerConfig)


async def test_the_wire_is_spires() -> None:
    """What is asked for, and what counts as the answer: white space around the nonce does not."""
    for around in ("{}", "{}\n", " {}\r\n"):
        async with web(lambda nonce, around=around: ok(around.format(nonce))) as made:
            await verifier("127.0.0.1").verify(payload(made.port, agentname="a.b_c-9"), made.answer)
            assert len(base64.urlsafe_b64decode(made.nonce)) == 32
            line, *headers = made.heads[0].split("\r\n")
        assert line == "GET /.well-known/spiffe/nodeattestor/http_challenge/a.b_c-9/challenge HTTP/1.1"
        assert f"Host: localhost:{made.port}" in headers
    sent = json.loads(await prover(agentname="x", advertised_port=80).payload())
    assert sent == {"hostname": "localhost", "agentname": "x", "port": 80}


# Where a server lets itself be sent


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.0.9", "::1", "169.254.169.254", "fe80::1", "224.0.0.1", "239.1.2.3", "ff02::1"),
        *("0.0.0.0", "0.1.2.3", "::", "255.255.255.255", "240.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
        *("::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2001::1", "::ffff:0:7f00:1"),
    ],
)
async def test_addresses_that_are_never_asked_by_default(address: str) -> None:
    wide = [[], ["0.0.0.0/0", "::/0"], ["126.0.0.0/7", "168.0.0.0/5", "fe00::/8", "10.0.0.0/8"]]
    for ranges in wide:
        networks = [ip_network(one) for one in ranges]
        assert refusal(ip_address(address), allowed=networks, denied=())
    asked: list[bytes] = []

    async def answer(challenge: bytes) -> bytes:
        asked.append(challenge)
        return b"{}"

    for others in ((), ("192.0.2.1",)):  # one among several is enough
        with collecting() as notes, pytest.raises(Denied) as caught:
            await verifier(*others, address, allowed_cidrs=[]).verify(payload(80), answer)
        assert caught.value.reason == "HTTP_CHALLENGE_UNPROVEN"
        assert address not in caught.value.detail + caught.value.hint
        assert str(ip_address(address)) in dict(notes)["address"]
    assert not asked


@pytest.mark.parametrize(
    ("address", "allowed", "denied", "why"),
    [
        ("192.0.2.1", [], [], ""),
        ("2001:db8::1", [], [], ""),
        ("10.0.0.1", ["10.0.0.0/8"], [], ""),
        ("10.0.0.1", ["10.0.0.0/8"], ["10.0.0.0/24"], "in a denied range"),
        ("11.0.0.1", ["10.0.0.0/8"], [], "in none of the allowed ranges"),
        ("2001:db8::1", ["10.0.0.0/8"], [], "in none of the allowed ranges"),
        ("10.0.0.1", [], ["10.0.0.0/8"], "in a denied range"),
        ("127.0.0.1", ["127.0.0.1/32"], [], ""),
        ("127.0.0.2", ["127.0.0.1/32"], [], "a loopback address"),
        ("::1", ["127.0.0.0/8"], [], "a loopback address"),
        ("127.0.0.1", ["127.0.0.0/8"], ["127.0.0.1/32"], "in a denied range"),
        ("fe80::1", ["fe80::/64"], [], ""),
        ("224.0.0.1", ["224.0.0.0/4"], [], "a multicast address"),
        ("::ffff:10.0.0.1", ["::ffff:0.0.0.0/96"], [], "a IPv4-mapped address"),
    ],
)
def test_ranges(address: str, allowed: list[str], denied: list[str], why: str) -> None:
    networks = [[ip_network(one) for one in ranges] for ranges in (allowed, denied)]
    assert refusal(ip_address(address), allowed=networks[0], denied=networks[1]) == why


@given(
    text=st.one_of(
        st.ip_addresses(network="127.0.0.0/8"), st.ip_addresses(network="::ffff:0.0.0.0/96"), st.ip_addresses(v=4)
    )
)
def test_every_ipv4_address_is_judged_as_python_judges_it(text: Address) -> None:
    bad = text.is_loopback or text.is_link_local or text.is_multicast or text.is_reserved or text.is_unspecified
    if bad or getattr(text, "ipv4_mapped", None):
        assert refusal(text, allowed=(), denied=())
    elif text not in ip_network("0.0.0.0/8"):
        assert not refusal(text, allowed=(), denied=())


async def test_a_name_is_resolved_once_and_that_address_is_asked() -> None:
    """What the name means a moment later (DNS rebinding) is never learnt."""
    async with web(ok) as made:
        names = Names("127.0.0.1")

        async def answer(challenge: bytes) -> bytes:
            names.addresses = [ip_address("192.0.2.1")]
            return await made.answer(challenge)

        model = from_values(SERVER | {"allowed_dns_patterns": [r"web\.example\.org"]}, ServerConfig)
        check = HttpChallengeVerifier(model, FakeHost(), names)
        assert (await check.verify(payload(made.port, "web.example.org"), answer)).path.endswith("/web.example.org")
        assert names.asked == ["web.example.org"]


async def test_a_second_address_is_tried_where_the_first_does_not_answer() -> None:
    async with web(ok) as made:
        await verifier("127.0.0.99", "127.0.0.1").verify(payload(made.port), made.answer)


async def test_how_far_a_page_is_right_takes_no_time_to_find_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Page and nonce are compared in constant time: whoever guesses cannot do it byte by byte."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return False

    monkeypatch.setattr(hmac, "compare_digest", compare)
    async with web(ok) as made:
        with pytest.raises(Denied):
            await verifier("127.0.0.1").verify(payload(made.port), made.answer)
    assert compared == [(made.nonce.encode(), made.nonce.encode())]


async def test_no_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://192.0.2.1:9")
    async with web(ok) as made:
        await verifier("127.0.0.1").verify(payload(made.port), made.answer)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(status: int) -> None:
    async with web(ok) as other, web(lambda nonce: b"") as made:
        target = f"http://127.0.0.1:{other.port}/"
        made.page = lambda nonce: f"HTTP/1.1 {status} x\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()
        with pytest.raises(Denied) as caught:
            await verifier("127.0.0.1").verify(payload(made.port), made.answer)
        assert caught.value.reason == "HTTP_CHALLENGE_UNPROVEN"
        assert made.heads
        assert not other.heads


@pytest.mark.parametrize(
    "page",
    [
        lambda nonce: ok(nonce[:-1]),
        lambda nonce: ok(""),
        lambda nonce: ok(nonce.swapcase()),
        lambda nonce: ok(nonce + "x"),
        lambda nonce: ok(nonce + " " * 64),
        lambda nonce: ok(nonce, "HTTP/1.1 404 Not Found"),
        lambda nonce: ok(nonce, "HTTP/1.1 500 x"),
        lambda nonce: nonce.encode(),
        lambda nonce: b"",
        lambda nonce: b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + nonce.encode(),
        lambda nonce: b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n" + nonce.encode(),
        lambda nonce: b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n" + nonce.encode(),
    ],
)
async def test_pages_that_prove_nothing(page: Callable[[str], bytes]) -> None:
    """The caller is told the same of all of them."""
    async with web(page) as made:
        with collecting() as notes, pytest.raises(Denied) as caught:
            await verifier("127.0.0.1").verify(payload(made.port), made.answer)
    assert (caught.value.reason, caught.value.detail) == (
        "HTTP_CHALLENGE_UNPROVEN",
        "the challenge was not found at the node's name",
    )
    assert "page" in dict(notes)
    assert made.nonce not in str(notes)


async def test_a_closed_port_looks_the_same() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    async def answer(_: bytes) -> bytes:
        return b"{}"

    with pytest.raises(Denied, match="was not found at the node's name"):
        await verifier("127.0.0.1").verify(payload(port), answer)


async def test_who_drips_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_challenge, "FETCH_SECONDS", 0.3)
    async with web(lambda nonce: b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n|" * 90 + b"\r\n" + nonce.encode()) as made:
        began = time.monotonic()
        with pytest.raises(Denied):
            await verifier("127.0.0.1").verify(payload(made.port), made.answer)
        assert time.monotonic() - began < 1.5


async def test_a_resolver_that_hangs_or_knows_nothing_is_waited_for_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_challenge, "RESOLVE_SECONDS", 0.2)

    async def hang(_: str) -> Sequence[Address]:
        await asyncio.sleep(60)
        return []

    async def unknown(_: str) -> Sequence[Address]:
        raise socket.gaierror(-2, "Name or service not known")

    for resolve in (hang, unknown, Names()):
        check = HttpChallengeVerifier(from_values(SERVER, ServerConfig), FakeHost(), resolve)
        with pytest.raises(Denied) as caught:
            await check.verify(payload(80), prover().answer)
        assert caught.value.reason == "HTTP_CHALLENGE_UNPROVEN"


async def test_strangers_cannot_have_many_names_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that do not answer their challenge take no place."""
    monkeypatch.setattr(http_challenge, "MAX_ASKING", 2)
    gate = asyncio.Event()

    async def slow(_: str) -> Sequence[Address]:
        await gate.wait()
        return [ip_address("127.0.0.1")]

    check = HttpChallengeVerifier(from_values(SERVER, ServerConfig), FakeHost(), slow)
    async with web(ok) as made:
        first = [asyncio.create_task(check.verify(payload(made.port), made.answer)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable) as caught:
            await check.verify(payload(made.port), made.answer)
        assert caught.value.reason == "HTTP_CHALLENGE_BUSY"
        first.pop().cancel()
        gate.set()
        await first[0]
        await check.verify(payload(made.port), made.answer)


async def test_a_name_service_that_hangs_keeps_its_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can end its threads: there are no more of them than may be asking."""
    monkeypatch.setattr(http_challenge, "MAX_ASKING", 1)
    monkeypatch.setattr(http_challenge, "RESOLVE_SECONDS", 0.2)
    gate = threading.Event()

    async def hangs(_: str) -> Sequence[Address]:
        await to_thread(gate.wait)
        return [ip_address("127.0.0.1")]

    check = HttpChallengeVerifier(from_values(SERVER, ServerConfig), FakeHost(), hangs)
    async with web(ok) as made:
        with pytest.raises(Denied):
            await check.verify(payload(made.port), made.answer)
        for _ in range(2):
            with pytest.raises(Unavailable) as caught:
                await check.verify(payload(made.port), made.answer)
            assert caught.value.reason == "HTTP_CHALLENGE_BUSY"
        gate.set()
        async with asyncio.timeout(10):
            while True:
                with suppress(Unavailable):
                    await check.verify(payload(made.port), made.answer)
                    break
                await asyncio.sleep(0.01)


# Names


@pytest.mark.parametrize(
    ("hostname", "reason"),
    [
        ("web.example.org", "HTTP_CHALLENGE_NAME"),
        ("localhost.evil.org", "HTTP_CHALLENGE_NAME"),
        ("my-localhost", "HTTP_CHALLENGE_NAME"),
        ("Localhost", "ATTESTATION_PAYLOAD"),
        ("localhost.", "ATTESTATION_PAYLOAD"),
        ("localhost\n", "ATTESTATION_PAYLOAD"),
        ("127.0.0.1", "ATTESTATION_PAYLOAD"),
        ("127.1", "ATTESTATION_PAYLOAD"),
        ("2130706433", "ATTESTATION_PAYLOAD"),
        ("0x7f000001", "ATTESTATION_PAYLOAD"),
        ("[::1]", "ATTESTATION_PAYLOAD"),
        ("::1", "ATTESTATION_PAYLOAD"),
        ("a/b", "ATTESTATION_PAYLOAD"),
        ("user@localhost", "ATTESTATION_PAYLOAD"),
        ("localhost:80", "ATTESTATION_PAYLOAD"),
        ("localhost#", "ATTESTATION_PAYLOAD"),
        ("*.localhost", "ATTESTATION_PAYLOAD"),
        ("lokälhost", "ATTESTATION_PAYLOAD"),
        ("a..b", "ATTESTATION_PAYLOAD"),
        ("x" * 300, "ATTESTATION_PAYLOAD"),
        ("", "ATTESTATION_PAYLOAD"),
        (None, "ATTESTATION_PAYLOAD"),
        (5, "ATTESTATION_PAYLOAD"),
    ],
)
async def test_names_that_may_not_attest(hostname: Any, reason: str) -> None:
    names = Names("127.0.0.1")
    check = HttpChallengeVerifier(from_values(SERVER, ServerConfig), FakeHost(), names)
    with pytest.raises((Denied, InvalidArgument)) as caught:
        await check.verify(payload(80, hostname), prover().answer)
    assert caught.value.reason == reason
    assert not names.asked


@pytest.mark.parametrize(
    "agentname", ["", ".", "..", "a/b", "a b", "A", "x" * 65, "a\n", "%2e%2e", "a?b", "ä", None, 5]
)
async def test_names_that_are_no_agents(agentname: Any) -> None:
    with pytest.raises(InvalidArgument, match="agentname"):
        await verifier("127.0.0.1").verify(payload(80, agentname=agentname), prover().answer)
    if isinstance(agentname, str):
        with pytest.raises(ConfigError):
            prover(agentname=agentname)


@pytest.mark.parametrize("port", [0, -1, 65536, True, "80", 80.0, None])
async def test_ports_that_are_none(port: Any) -> None:
    with pytest.raises(InvalidArgument, match="port"):
        await verifier("127.0.0.1").verify(payload(port), prover().answer)


async def test_one_port_can_be_demanded() -> None:
    async with web(ok) as made:
        await verifier("127.0.0.1", required_port=made.port).verify(payload(made.port), made.answer)
        with pytest.raises(Denied) as caught:
            await verifier("127.0.0.1", required_port=80).verify(payload(made.port), made.answer)
    assert caught.value.reason == "HTTP_CHALLENGE_PORT"


# The agent's half


async def ask(port: int, request: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.encode())
    answer = await reader.read()
    writer.close()
    return answer.decode()


PATH = "/.well-known/spiffe/nodeattestor/http_challenge/default/challenge"


async def test_the_agent_shows_one_page_and_only_once_it_was_challenged() -> None:
    node, get = prover(), f"GET {PATH} HTTP/1.1\r\n\r\n"
    port = json.loads(await node.payload())["port"]
    assert " 404 " in await ask(port, get)
    nonce = "n" * 43 + "="
    assert await node.answer(json.dumps({"nonce": nonce}).encode()) == b"{}"
    assert (await ask(port, get)).endswith(f"\r\n\r\n{nonce}\n")
    for other in (
        get.replace("challenge HTTP", "challenge/x HTTP"),
        get.replace("GET", "POST"),
        "GET / HTTP/1.1\r\n\r\n",
    ):
        assert nonce not in await ask(port, other)
    assert await ask(port, "x" * 9000 + "\r\n\r\n") == ""


async def test_the_agent_listens_only_while_it_attests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(challenge_server, "AFTER_ANSWER_SECONDS", 0.1)
    node = prover()
    sent = await node.payload()
    await verifier().verify(sent, node.answer)
    await gone(json.loads(sent)["port"])
    monkeypatch.setattr(challenge_server, "LIFETIME_SECONDS", 0.1)
    await gone(json.loads(await node.payload())["port"])
    with pytest.raises(FailedPrecondition):
        await node.answer(json.dumps({"nonce": "n" * 44}).encode())


async def gone(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return
            writer.close()
            await asyncio.sleep(0.02)


async def test_a_slow_visitor_is_hung_up_on_and_many_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(challenge_server, "REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(challenge_server, "MAX_CONNECTIONS", 2)
    port = json.loads(await prover().payload())["port"]
    visitors = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
    async with asyncio.timeout(10):
        assert [await reader.read() for reader, _ in visitors] == [b""] * 5
    for _, writer in visitors:
        writer.close()


@pytest.mark.parametrize("nonce", [None, 5, "", "short", "n" * 65, "<script>alert(1)</script>", "n" * 40 + "\n"])
async def test_a_server_cannot_have_an_agent_show_what_it_likes(nonce: Any) -> None:
    node = prover()
    await node.payload()
    with pytest.raises(BurgeeError) as caught:
        await node.answer(json.dumps({"nonce": nonce}).encode())
    assert caught.value.reason == "CHALLENGE_MALFORMED"


async def test_a_port_that_is_taken_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        node = prover(port=taken.getsockname()[1], bind_address="127.0.0.1")
        with pytest.raises(FailedPrecondition) as caught:
            await node.payload()
        assert caught.value.reason == "HTTP_CHALLENGE_LISTEN"
    await node.payload()
    for wrong in ({"hostname": "10.0.0.1"}, {"hostname": "Web"}, {"bind_address": "here"}, {"port": 70000}):
        with pytest.raises(ConfigError):
            prover(**wrong)


async def test_without_a_name_the_machines_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Web-7.Example.org")
    node = HttpChallengeProver(AgentConfig())
    assert json.loads(await node.payload())["hostname"] == "web-7.example.org"
    monkeypatch.setattr(socket, "gethostname", lambda: "no name")
    with pytest.raises(FailedPrecondition):
        await node.payload()


# The same again, and evidence that was changed


async def test_a_nonce_that_was_shown_before_is_of_no_use() -> None:
    first: list[str] = []

    def page(nonce: str) -> bytes:
        first.append(nonce)
        return ok(first[0])

    async with web(page) as made:
        await verifier("127.0.0.1").verify(payload(made.port), made.answer)
        with pytest.raises(Denied):
            await verifier("127.0.0.1").verify(payload(made.port), made.answer)


@settings(max_examples=150, deadline=None)
@given(place=st.sampled_from(["payload", "answer", "page"]), bit=PLACES)
def test_flipped_bits_are_refused_or_change_nothing(place: str, bit: int) -> None:
    asyncio.run(flip(place, bit))


async def flip(place: str, bit: int) -> None:
    async with web(ok) as made:
        if place == "page":
            made.page = lambda nonce: ok(flipped(nonce.encode() + b"\n", bit).decode("latin-1"))

        async def answer(challenge: bytes) -> bytes:
            good = await made.answer(challenge)
            return flipped(good, bit) if place == "answer" else good

        sent = payload(made.port)
        try:
            node = await verifier("127.0.0.1").verify(flipped(sent, bit) if place == "payload" else sent, answer)
        except (Denied, InvalidArgument):
            return
        assert (node.path, len(node.selectors)) == ("/spire/agent/http_challenge/localhost", 1)


def test_the_page_has_the_tables_of_the_models() -> None:
    page = PAGE.read_text()
    for model in (ServerConfig, AgentConfig):
        assert markdown_table(model) in page
    assert plugin.name == "http_challenge"


# The whole of it


def test_a_real_agent_is_trusted_on_first_use_and_again_once_it_was_evicted() -> None:
    server = {"node_attestors": {"http_challenge": SERVER, "join_token": {}}}
    agent = {"node_attestor": {"http_challenge": {"hostname": "localhost"}}}
    with pair(server=server, agent=agent) as both:
        path = until("the agent has its ID", both.agent_path)
        assert path == "/spire/agent/http_challenge/localhost"
        both.stop("agent")
        for state in (both.home / "agent", both.home / "cache"):
            shutil.rmtree(state, ignore_errors=True)
        both.launch("agent")
        until("it is refused", lambda: "AGENT_ALREADY_ATTESTED" in both.logs())
        with grpc.insecure_channel(f"unix:{both.admin_socket}") as channel:
            spiffe_id = types_pb2.SPIFFEID(trust_domain=TRUST_DOMAIN, path=path)
            request = server_agent_pb2.DeleteAgentRequest(id=spiffe_id)
            server_agent_pb2_grpc.AgentStub(channel).DeleteAgent(request, timeout=10)
        until("it is back", lambda: both.status().state == "OK", seconds=40)
        assert both.agent_path() == path
