"""Envoy's stream (SDS): sequences of requests among changes of what the caller may have."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import DecodeError

from ca.errors import BurgeeError, InvalidArgument
from ca.identity.bundle import TrustBundle, X509Authority
from ca.identity.entry import RegistrationEntry
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from sds.envoy_answers import Missing
from sds.envoy_delta import DeltaStream
from sds.envoy_status import SdsClients
from sds.envoy_stream import SdsStream
from sds.envoy_subscriber import MAX_NAMES, Subscriber
from sds.feed import BUNDLE, ENTRY
from sds.secrets import Form, Secrets, resolve
from sds.views import BundleForms, Content, WorkloadSvid, asked_for, build
from tests.fuzz import records, wire_mutator
from tests.fuzz.harness import Target, check_refusal
from tests.fuzz.targets.requests import root

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TD, FED = TrustDomain("example.org"), TrustDomain("fed.org")
PARENT = SpiffeId(TD, "/spire/agent/join_token/t")
LAST_NONCE = "$"
"""Stands for the nonce of the last answer, which nobody can guess."""

WORLDS: tuple[tuple[str, ...], ...] = ((), ("a",), ("a", "b"), ("a", "b", "pending"))
"""What the caller has, from nothing to an entry whose SVID is still being issued."""


@cache
def world(number: int) -> Content:
    bundles = {
        name: BundleForms(TrustBundle(trust_domain=name, x509_authorities=(X509Authority(certificate=root()),)))
        for name in (TD, FED)
    }
    entries = tuple(_entry(name) for name in WORLDS[number % len(WORLDS)])
    svids = {entry.id: _svid(entry, number) for entry in entries if entry.id != "pending"}
    return build(entries, svids, bundles[TD], {FED.name: bundles[FED]}, NOW)


def _entry(name: str) -> RegistrationEntry:
    return RegistrationEntry(
        id=name,
        spiffe_id=SpiffeId(TD, f"/{name}"),
        parent_id=PARENT,
        selectors=frozenset({Selector("unix", "uid:1")}),
        federates_with=(FED,),
    )


def _svid(entry: RegistrationEntry, number: int) -> WorkloadSvid:
    return WorkloadSvid(
        entry_id=entry.id,
        spiffe_id=entry.spiffe_id,
        chain=(f"leaf {entry.id} {number}".encode(),),
        key=b"key of " + entry.id.encode(),
        issued_at=NOW,
        not_after=NOW.replace(year=2027),
        rotate_at=NOW.replace(month=6),
        issuer_ids=(),
        asked=asked_for(entry),
    )


@dataclass
class Talk:
    """One stream, and what must be true of its answers."""

    stream: Subscriber
    kind: type[Any]
    settled: bool = True
    world: int = 2
    nonces: set[str] = field(default_factory=set)
    sent: set[str] = field(default_factory=set)
    """Every name that the client was sent, or says that it holds."""
    last: str = ""

    def request(self, raw: bytes) -> None:
        try:
            request = self.kind.FromString(raw)
        except DecodeError:
            self.stream.take_in(raw, NOW)
            raise AssertionError("took in what is no message") from None
        if request.response_nonce == LAST_NONCE:
            request.response_nonce = self.last
        self.sent.update(getattr(request, "initial_resource_versions", ()))
        self.stream.take_in(request.SerializeToString(), NOW)
        assert len(self.stream.subscribed) <= MAX_NAMES
        self.answer()

    def answer(self) -> None:
        content = world(self.world)
        answers = Secrets(content=content, settled=self.settled, names=self.stream.names, form=self.stream.form)
        raw = self.stream.respond(answers, NOW)
        again = self.stream.respond(answers, NOW)
        assert again is None, "the same is answered twice"
        if raw is not None:
            self._check_nonce(raw)
            if self.kind is discovery_pb2.DiscoveryRequest:
                self._check_all(discovery_pb2.DiscoveryResponse.FromString(raw), content)
            else:
                self._check_delta(discovery_pb2.DeltaDiscoveryResponse.FromString(raw), content)
        asked = self.stream.subscribed
        for name in asked if self.nonces else ():
            got = resolve(name, content, settled=self.settled, names=self.stream.names, form=self.stream.form)
            assert isinstance(got, Missing) or name in self.sent, f"{name!r} was never sent"

    def _check_nonce(self, raw: bytes) -> None:
        all_at_once = self.kind is discovery_pb2.DiscoveryRequest
        answer = discovery_pb2.DiscoveryResponse if all_at_once else discovery_pb2.DeltaDiscoveryResponse
        self.last = answer.FromString(raw).nonce
        assert self.last
        assert self.last not in self.nonces, "a nonce comes twice"
        self.nonces.add(self.last)

    def _check_all(self, response: discovery_pb2.DiscoveryResponse, content: Content) -> None:
        assert response.version_info == content.version
        assert response.resources, "an empty answer"
        self._check_secrets([resource.value for resource in response.resources])

    def _check_delta(self, response: discovery_pb2.DeltaDiscoveryResponse, content: Content) -> None:
        assert response.system_version_info in ("", content.version)
        names = {resource.name for resource in response.resources}
        assert names or response.removed_resources, "an empty answer"
        assert not names & set(response.removed_resources)
        assert names == set(self._check_secrets([resource.resource.value for resource in response.resources]))

    def _check_secrets(self, serialized: list[bytes]) -> list[str]:
        secrets = [secret_pb2.Secret.FromString(raw) for raw in serialized]
        names = [secret.name for secret in secrets]
        assert len(set(names)) == len(names)
        assert self.stream.everything or set(names) <= self.stream.subscribed
        kinds = [secret.HasField("tls_certificate") for secret in secrets]
        assert kinds == sorted(kinds), "a leaf comes before a root"
        assert len(self.stream.statuses) <= MAX_NAMES + len(names)
        self.sent.update(names)
        return names


def run_sds(data: bytes) -> None:
    _run(data, SdsStream, discovery_pb2.DiscoveryRequest)


def run_delta(data: bytes) -> None:
    _run(data, DeltaStream, discovery_pb2.DeltaDiscoveryRequest)


def _run(data: bytes, stream: type[Subscriber], kind: type[Any]) -> None:
    clients = SdsClients()
    talk = Talk(stream(validator=Form.TRUSTED_CA if data[:1] == b"t" else Form.SPIFFE), kind)
    client = clients.add(talk.stream, pid=1, uid=1, now=NOW)
    try:
        for letter, content in records.split(data):
            _step(talk, letter, content)
            for resources in (BUNDLE, ENTRY):
                consumers = clients.consumers(resources)
                assert 0 <= consumers.acked <= consumers.total <= 1
    except BurgeeError as error:
        check_refusal(error, InvalidArgument)
    finally:
        clients.remove(client)


def _step(talk: Talk, letter: bytes, content: bytes) -> None:
    if letter == b"w":
        talk.world = (content or b"\0")[0] % len(WORLDS)
        talk.answer()
    elif letter == b"s":
        talk.settled = not talk.settled
        talk.answer()
    elif letter != b"t":
        talk.request(content)


_NAMES = (b"default", b"ROOTCA", b"ALL", b"file-root:x", b"spiffe://example.org/a", b"spiffe://fed.org", b"$")

TARGETS = (
    Target(name="sds", run=run_sds, mutate=records.mutating(wire_mutator.mutate), words=_NAMES, max_bytes=8192),
    Target(
        name="sds_delta",
        run=run_delta,
        mutate=records.mutating(wire_mutator.mutate),
        words=(*_NAMES, b"*"),
        max_bytes=8192,
    ),
)
