"""Node attestation over HTTP: who can show a nonce at a DNS name is that name's machine, until somebody is on the path.

The server resolves the name once, judges every address, and asks the one it judged. Payload, challenge and page are
SPIRE's.
"""

from __future__ import annotations

import hmac
import re
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from pydantic import Field, field_validator, model_validator

from attestor.node.challenge_server import ChallengeServer
from attestor.node.http_addresses import Address, Network, Resolve, dial, refusal, resolve_once, system_resolve
from attestor.node.possession import (
    answer_members,
    challenge_members,
    payload_members,
    refuse_challenge,
    refuse_payload,
    wire,
)
from ca.errors import Denied, FailedPrecondition, InvalidArgument, Unavailable
from ca.identity.dns_name import check_dns_name
from ca.identity.selector import Selector
from ca.identity.text import quote
from ca.ports import AttestedNode, Challenge, NodeAttestorPlugin, NodeHost
from ca.runtime import threads
from ca.runtime.config import StrictModel
from ca.runtime.elsewhere import elsewhere
from ca.runtime.https import HttpClient
from ca.runtime.notes import note

NAME = "http_challenge"
PATH = "/.well-known/spiffe/nodeattestor/http_challenge/{}/challenge"
NONCE_BYTES = 32
MAX_PAGE_BYTES = 64
RESOLVE_SECONDS = 5.0
FETCH_SECONDS = 10.0
MAX_ASKING = 32
"""At once; whoever comes then is told to come again."""

_AGENT_NAME = re.compile(r"(?!\.{1,2}\Z)[a-z0-9._-]{1,64}")
_NONCE = re.compile(r"[A-Za-z0-9_=-]{16,64}")
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)")
ROOT_PORTS = range(1, 1024)


class ServerConfig(StrictModel):
    """Which names may attest, from which ports, and at which addresses they are asked."""

    allowed_dns_patterns: tuple[str, ...] = Field(
        min_length=1,
        description="Regular expressions; one must match the whole name. Such as `web-[0-9]+\\.example\\.org`.",
    )
    required_port: int | None = Field(
        default=None, ge=1, le=65535, description="The only port that is asked. Any, by default."
    )
    allow_non_root_ports: bool = Field(
        default=True, description="Whether ports from 1024 on are asked, which any user of the node can open."
    )
    tofu: bool = Field(
        default=True,
        description="Trust on first use: a name attests once, until an administrator evicts its agent. Off only where "
        "ports below 1024 alone are asked.",
    )
    allowed_cidrs: tuple[str, ...] = Field(
        default=(),
        description="The ranges in which nodes may be. Any, by default. A range inside of the loopback or a link-local "
        "network admits those addresses, which are refused otherwise.",
    )
    denied_cidrs: tuple[str, ...] = Field(
        default=(), description="Ranges that are never asked, such as that of the administrators' network."
    )

    @field_validator("allowed_dns_patterns")
    @classmethod
    def _are_patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{quote(pattern)} is no regular expression: {error}") from error
        return value

    @field_validator("allowed_cidrs", "denied_cidrs")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        _networks(value)
        return value

    @model_validator(mode="after")
    def _root_without_tofu(self) -> ServerConfig:
        root_only = not self.allow_non_root_ports or self.required_port in ROOT_PORTS
        if not self.tofu and not root_only:
            raise ValueError("`tofu: false` needs `allow_non_root_ports: false` or a `required_port` below 1024")
        if self.required_port is not None and self.required_port not in ROOT_PORTS and not self.allow_non_root_ports:
            raise ValueError("`allow_non_root_ports: false` forbids this `required_port`")
        return self


class AgentConfig(StrictModel):
    """Where the server finds this node while it attests."""

    hostname: str | None = Field(
        default=None, description="The DNS name that the server asks. By default the machine's host name."
    )
    agentname: str = Field(
        default="default",
        description="A part of the page's path, for several agents behind one web server: `a-z`, `0-9`, `.`, `_`, `-`.",
    )
    port: int = Field(default=0, ge=0, le=65535, description="The port to listen on. 0 takes any that is free.")
    advertised_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="The port that the server asks, where a proxy stands in between. By default `port`.",
    )
    bind_address: str | None = Field(default=None, description="The IP address to listen on. All, by default.")

    @field_validator("hostname")
    @classmethod
    def _is_host(cls, value: str | None) -> str | None:
        return value if value is None else _host_name(value)

    @field_validator("bind_address")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        return value if value is None else str(ip_address(value))

    @field_validator("agentname")
    @classmethod
    def _is_agent(cls, value: str) -> str:
        return _agent_name(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the agent says that it shows the nonce."""

    hostname: str
    agentname: str
    port: int


class HttpChallengeVerifier:
    """Server half. `resolve` is how names become addresses."""

    def __init__(self, config: ServerConfig, _host: NodeHost, resolve: Resolve = system_resolve) -> None:
        self._config = config
        self._resolve = resolve
        self._patterns = [re.compile(pattern) for pattern in config.allowed_dns_patterns]
        self._allowed, self._denied = _networks(config.allowed_cidrs), _networks(config.denied_cidrs)
        self._asking = 0

    async def verify(self, payload: bytes, challenge: Challenge) -> AttestedNode:
        place = _place(payload)
        self._check_allowed(place)
        async with self._one_of_few():
            addresses = await self._addresses(place.hostname)
        nonce = secrets.token_urlsafe(NONCE_BYTES) + "="  # padded, as SPIRE's
        answer_members(await challenge(wire({"nonce": nonce})))
        async with self._one_of_few():
            await _fetch(place, addresses, nonce)
        return AttestedNode(
            path=f"/spire/agent/{NAME}/{place.hostname}",
            selectors=frozenset({Selector(NAME, f"hostname:{place.hostname}")}),
            reattestable=not self._config.tofu,
        )

    @asynccontextmanager
    async def _one_of_few(self) -> AsyncIterator[None]:
        """Bounds what strangers can have this server ask for at once, a name service that hangs included."""
        if self._asking >= MAX_ASKING:
            raise Unavailable(
                "too many nodes are being asked just now", reason="HTTP_CHALLENGE_BUSY", retry_after_seconds=1
            )
        self._asking += 1
        with threads.watch() as unfinished:
            try:
                async with elsewhere():
                    yield
            finally:
                if left := unfinished():
                    threads.when_over(left, self._one_less)
                else:
                    self._one_less()

    def _one_less(self) -> None:
        self._asking -= 1

    def _check_allowed(self, place: Place) -> None:
        note("name and port", f"{quote(place.hostname)} {place.port}")
        if not any(pattern.fullmatch(place.hostname) for pattern in self._patterns):
            note("name", "no pattern of `allowed_dns_patterns` matches the whole of it")
            raise Denied(
                "this name may not attest here",
                reason="HTTP_CHALLENGE_NAME",
                hint="the server's `allowed_dns_patterns` says which may; a pattern must match the whole name",
            )
        wanted = self._config.required_port
        if place.port != (wanted or place.port) or (
            place.port not in ROOT_PORTS and not self._config.allow_non_root_ports
        ):
            raise Denied(
                f"nodes are not asked at port {place.port} here",
                reason="HTTP_CHALLENGE_PORT",
                hint=f"use port {wanted}" if wanted else "use a port below 1024",
            )

    async def _addresses(self, hostname: str) -> list[Address]:
        """All of them, each admitted. Raises Denied, which does not tell the caller what our resolver said."""
        try:
            found = await resolve_once(hostname, self._resolve, seconds=RESOLVE_SECONDS)
        except (OSError, UnicodeError) as error:
            note("addresses", f"{quote(hostname)} cannot be resolved: {error or 'no answer in time'}")
            raise _unproven() from error
        note("addresses", ", ".join(str(one) for one in found))
        for address in found:
            if why := refusal(address, allowed=self._allowed, denied=self._denied):
                note("address", f"{address} is not asked: {why}")
                raise _unproven()
        return found


class HttpChallengeProver:
    """Agent half. It listens from the payload on, and shows the nonce until the server has had time to see it."""

    can_reattest = False
    evidence_lasts = True

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._server = ChallengeServer(config.bind_address, config.port, PATH.format(config.agentname))

    async def payload(self) -> bytes:
        try:
            hostname = self._config.hostname or _host_name(socket.gethostname().lower())
            port = await self._server.open()
        except (OSError, ValueError) as error:
            raise FailedPrecondition(
                f"cannot show a challenge to the server: {error}",
                reason="HTTP_CHALLENGE_LISTEN",
                hint="correct `hostname`, `bind_address` or `port` of the node attestor; ports below 1024 need root or "
                "CAP_NET_BIND_SERVICE",
            ) from error
        advertised = self._config.advertised_port or port
        return wire({"hostname": hostname, "agentname": self._config.agentname, "port": advertised})

    async def answer(self, challenge: bytes) -> bytes:
        if not self._server.listens:
            raise FailedPrecondition("a challenge came before the payload, or too late", reason="UNEXPECTED_CHALLENGE")
        nonce = challenge_members(challenge).get("nonce")
        if not isinstance(nonce, str) or _NONCE.fullmatch(nonce) is None:  # a server cannot have us show what it likes
            refuse_challenge("`nonce` is missing or is none")
        self._server.show(nonce.encode() + b"\n")
        return b"{}"


async def _fetch(place: Place, addresses: list[Address], nonce: str) -> None:
    """Raises Denied with one text for whatever failed: the caller must not learn what else listens in our network."""
    client = HttpClient(
        f"http://{place.hostname}:{place.port}",
        source="the node",
        timeout_seconds=FETCH_SECONDS,
        max_bytes=MAX_PAGE_BYTES,
        connect=lambda seconds: dial(addresses, place.port, seconds),
    )
    try:
        page = await client.request("GET", PATH.format(place.agentname), headers={"Connection": "close"})
    except Unavailable as error:
        cause = error.__cause__  # a status line that is none would be repeated, and may be the nonce
        note("page", cause if isinstance(cause, OSError) else type(cause or error).__name__ + ": not the nonce's page")
        raise _unproven() from error
    finally:
        client.close()
    if page.status != 200 or not hmac.compare_digest(page.body.strip(), nonce.encode()):
        note("page", f"status {page.status}, {len(page.body)} bytes, which are not the nonce of this challenge")
        raise _unproven()


def _unproven() -> Denied:
    return Denied(
        "the challenge was not found at the node's name",
        reason="HTTP_CHALLENGE_UNPROVEN",
        hint="can the server reach that name and port? `caadmin explain agent` says what it met",
    )


def _place(payload: bytes) -> Place:
    members = payload_members(payload)
    hostname, agentname, port = (members.get(name) for name in ("hostname", "agentname", "port"))
    if type(port) is not int or not 0 < port < 65536:
        refuse_payload("`port` is no port")
    try:
        return Place(hostname=_host_name(hostname), agentname=_agent_name(agentname), port=port)
    except ValueError as error:
        refuse_payload(str(error), error)


def _host_name(value: Any) -> str:
    """A DNS name in its only spelling, and no address: one machine must not have several names by case or a final dot.
    Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError("`hostname` is no text")
    try:
        check_dns_name(value)
    except InvalidArgument as error:
        raise ValueError(f"`hostname`: {error.detail}") from error
    if value != value.lower() or "*" in value or _NUMBER.fullmatch(value.rpartition(".")[2]):
        raise ValueError(f"`hostname` is a DNS name in lower case, not {quote(value)}")
    return value


def _agent_name(value: Any) -> str:
    """Raises ValueError."""
    if not isinstance(value, str) or _AGENT_NAME.fullmatch(value) is None:
        raise ValueError("`agentname` has 1 to 64 characters of `a-z`, `0-9`, `.`, `_` and `-`, and is no `.` or `..`")
    return value


def _networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    """Raises ValueError."""
    return tuple(ip_network(text) for text in texts)


plugin = NodeAttestorPlugin(
    name=NAME,
    server_config=ServerConfig,
    agent_config=AgentConfig,
    verifier=HttpChallengeVerifier,
    prover=HttpChallengeProver,
)
