"""The rules of an SDS stream, one by one, without a network."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from envoy.config.core.v3 import base_pb2
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2, tls_spiffe_validator_config_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.rpc import status_pb2

from ca.errors import InvalidArgument
from ca.identity.spiffe_id import SpiffeId
from sds.envoy_stream import SdsStream
from sds.envoy_subscriber import ResourceState, Subscriber
from sds.secrets import PLAIN, Form, SecretNames, Secrets, is_root_name
from sds.views import MADE_BYTES_AT_MOST, BundleForms, Content, WorkloadSvid, asked_for, build
from tests.sds.lab import FED, TD, Authority, entry

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OWN, FOREIGN = BundleForms(Authority(now=NOW).bundle()), BundleForms(Authority(FED, now=NOW).bundle())
A, B = "spiffe://example.org/a", "spiffe://example.org/b"


def svid(entry_id: str, serial: bytes = b"1") -> WorkloadSvid:
    return WorkloadSvid(
        entry_id=entry_id,
        spiffe_id=SpiffeId(TD, f"/{entry_id}"),
        chain=(b"leaf " + entry_id.encode() + serial, b"intermediate"),
        key=b"key " + serial,
        issued_at=NOW,
        not_after=NOW.replace(year=2027),
        rotate_at=NOW.replace(month=6),
        issuer_ids=(),
        asked=asked_for(entry(entry_id)),
    )


def content(*ids: str, federated: bool = False, own: BundleForms = OWN, serial: bytes = b"1") -> Content:
    entries = tuple(entry(i, federates_with=(FED,) if federated else ()) for i in sorted(ids))
    return build(entries, {i: svid(i, serial) for i in ids}, own, {"fed.org": FOREIGN}, NOW)


def secrets_of(stream: Subscriber, now: Content, *, settled: bool = True) -> Secrets:
    """What names stand for to a stream."""
    return Secrets(content=now, settled=settled, names=stream.names, form=stream.form)


class Peer:
    """An Envoy's half of a stream."""

    def __init__(self, **fields: Any) -> None:
        self.stream = SdsStream(**fields)
        self.now = content("a", "b")
        self.settled = True
        self.last = discovery_pb2.DiscoveryResponse()

    def ask(self, *names: str, **fields: Any) -> list[secret_pb2.Secret] | None:
        self.stream.request(discovery_pb2.DiscoveryRequest(resource_names=names, **fields), NOW)
        return self.see()

    def ack(self, *names: str) -> list[secret_pb2.Secret] | None:
        return self.ask(*names, response_nonce=self.last.nonce, version_info=self.last.version_info)

    def see(self, changed: Content | None = None) -> list[secret_pb2.Secret] | None:
        self.now = changed or self.now
        raw = self.stream.respond(secrets_of(self.stream, self.now, settled=self.settled), NOW)
        if raw is None:
            return None
        self.last = discovery_pb2.DiscoveryResponse.FromString(raw)
        return [secret_pb2.Secret.FromString(resource.value) for resource in self.last.resources]

    def states(self) -> dict[str, str]:
        return {name: status.state.value for name, status in self.stream.statuses.items()}


def names(secrets: list[secret_pb2.Secret] | None) -> list[str]:
    assert secrets is not None
    return [secret.name for secret in secrets]


def test_default_and_rootca_in_the_shapes_of_spires_agent():
    secrets = Peer().ask("default", "ROOTCA")
    assert names(secrets) == ["ROOTCA", "default"]  # roots before leaves
    assert secrets is not None
    validator = secrets[0].validation_context.custom_validator_config
    assert validator.name == "envoy.tls.cert_validator.spiffe"
    config = tls_spiffe_validator_config_pb2.SPIFFECertValidatorConfig.FromString(validator.typed_config.value)
    assert [(d.name, d.trust_bundle.inline_bytes) for d in config.trust_domains] == [("example.org", OWN.pem)]
    certificate = secrets[1].tls_certificate
    assert certificate.certificate_chain.inline_bytes.count(b"BEGIN CERTIFICATE") == 2
    assert certificate.private_key.inline_bytes.startswith(b"-----BEGIN PRIVATE KEY-----\n")


def test_every_name_in_one_request_is_answered():  # SPIRE answers one of the last three at most
    peer = Peer()
    peer.now = content("a", "b", federated=True)
    asked = ("default", A, "ROOTCA", "ALL", "spiffe://example.org", "spiffe://fed.org")
    secrets = peer.ask(*asked)
    assert sorted(names(secrets)) == sorted(asked)
    assert secrets is not None
    everyone = next(secret for secret in secrets if secret.name == "ALL")
    typed = everyone.validation_context.custom_validator_config.typed_config
    config = tls_spiffe_validator_config_pb2.SPIFFECertValidatorConfig.FromString(typed.value)
    assert [d.name for d in config.trust_domains] == ["example.org", "fed.org"]


@pytest.mark.parametrize("asked", [(), ("",)])
def test_no_names_mean_everything(asked: tuple[str, ...]):
    peer = Peer()
    peer.now = content("b", "a", federated=True)
    assert names(peer.ask(*asked)) == ["spiffe://example.org", "spiffe://fed.org", A, B]
    assert names(peer.see(content("a"))) == ["spiffe://example.org", A]
    assert names(peer.see(content())) == ["spiffe://example.org"]
    assert set(peer.states()) == {"spiffe://example.org"}


def test_the_default_is_the_smallest_entry_id():
    peer = Peer()
    peer.now = content("b", "a")
    secrets = peer.ask("default", A)
    assert secrets is not None
    assert secrets[0].tls_certificate == secrets[1].tls_certificate


def test_an_ack_is_not_answered():
    peer = Peer()
    peer.ask("default")
    assert peer.ack("default") is None
    assert peer.states() == {"default": "ACKED"}


def test_a_stale_nonce_is_ignored():
    peer = Peer()
    peer.ask("default")
    assert peer.ask("ROOTCA", response_nonce="stale") is None
    assert peer.stream.subscribed == {"default"}


def test_other_names_are_answered_at_the_same_version_with_a_new_nonce():
    peer = Peer()
    peer.ask("default")
    version, nonce = peer.last.version_info, peer.last.nonce
    assert names(peer.ack("default", "ROOTCA")) == ["ROOTCA", "default"]
    assert peer.last.version_info == version
    assert peer.last.nonce != nonce


def test_a_new_subscription_is_answered_at_an_unchanged_version():
    first = Peer()
    first.ask("default")
    again = Peer()
    nonce, version = first.last.nonce, first.last.version_info
    assert names(again.ask("default", version_info=version)) == ["default"]
    # Some clients carry the nonce of their last stream over.
    carried = Peer()
    assert names(carried.ask("default", version_info=version, response_nonce=nonce)) == ["default"]
    # And on the same stream without a nonce: a subscription made before the first answer had arrived.
    assert names(again.ask("default")) == ["default"]


def test_a_nack_is_kept_with_its_words_and_not_answered_until_something_differs():
    peer = Peer()
    peer.ask("default")
    error = status_pb2.Status(code=13, message="Failed to load certificate chain")
    assert peer.ask("default", response_nonce=peer.last.nonce, error_detail=error) is None
    status = peer.stream.statuses["default"]
    assert (status.state, status.detail) == (ResourceState.NACKED, "Failed to load certificate chain")
    assert peer.see() is None
    assert names(peer.see(content("a", "b", serial=b"2"))) == ["default"]
    assert peer.states() == {"default": "SENT"}


def test_a_nack_with_other_names_is_answered():
    peer = Peer()
    peer.ask("default")
    error = status_pb2.Status(code=13, message="no good")
    secrets = peer.ask("default", "ROOTCA", response_nonce=peer.last.nonce, error_detail=error)
    assert names(secrets) == ["ROOTCA", "default"]


def test_unknown_names_are_passed_over_in_silence_and_shown():
    peer = Peer()
    assert names(peer.ask("default", "nope", "file-root:system", "spiffe://example.org/z", "fed.org")) == ["default"]
    assert peer.states()["nope"] == "UNKNOWN"
    assert "Istio" in peer.stream.statuses["file-root:system"].detail
    assert "no registration entry" in peer.stream.statuses["spiffe://example.org/z"].detail
    alone = Peer()
    assert alone.ask("nope") is None
    assert names(alone.ask("default")) == ["default"]


def test_a_name_gets_its_secret_when_there_is_one():
    peer = Peer()
    peer.now = content()
    assert peer.ask("default", B, "spiffe://fed.org") is None
    assert "no identity issued" in peer.stream.statuses["default"].detail
    assert names(peer.see(content("b", federated=True))) == ["spiffe://fed.org", "default", B]
    assert set(peer.states().values()) == {"SENT"}


def test_without_an_identity_the_own_bundle_is_given():
    peer = Peer()
    peer.now = content()
    assert names(peer.ask("ROOTCA")) == ["ROOTCA"]


def test_only_what_differs_for_this_stream_is_sent():  # the application does not spin
    peer = Peer()
    peer.ask("ROOTCA")
    assert peer.see(content("a", serial=b"2")) is None
    root = BundleForms(Authority(now=NOW).bundle())
    assert names(peer.see(content("a", own=root))) == ["ROOTCA"]
    leaf = Peer()
    leaf.ask("default")
    assert leaf.see(content("a", "b", own=root)) is None


def test_a_secret_that_goes_is_not_sent_as_nothing():
    peer = Peer()
    peer.ask("default", "ROOTCA")
    peer.ack("default", "ROOTCA")
    assert peer.see(content()) is None  # Envoy keeps the identity until it expires
    assert "no longer given" in peer.stream.statuses["default"].detail
    assert names(peer.see(content("a", serial=b"2"))) == ["ROOTCA", "default"]


def test_the_default_waits_until_it_is_known_which_it_is():
    peer = Peer()
    peer.settled = False
    assert names(peer.ask("default", "ROOTCA", B)) == ["ROOTCA", B]
    assert "not been issued yet" in peer.stream.statuses["default"].detail
    peer.settled = True
    assert names(peer.see()) == ["ROOTCA", "default", B]


def node(major: int = 1, minor: int = 40, **metadata: Any) -> base_pb2.Node:
    made = base_pb2.Node(id="n", user_agent_name="envoy")
    made.user_agent_build_version.version.major_number = major
    made.user_agent_build_version.version.minor_number = minor
    made.metadata.update(metadata)
    return made


@pytest.mark.parametrize(
    ("given", "form"),
    [
        (node(), Form.SPIFFE),
        (base_pb2.Node(id="n"), Form.SPIFFE),
        (None, Form.SPIFFE),
        (node(1, 18), Form.SPIFFE),
        (node(2, 0), Form.SPIFFE),
        (node(1, 17), Form.TRUSTED_CA),
        (node(disable_spiffe_cert_validation=True), Form.TRUSTED_CA),
        (node(disable_spiffe_cert_validation="true"), Form.TRUSTED_CA),
        (node(disable_spiffe_cert_validation=False), Form.SPIFFE),
        (node(disable_spiffe_cert_validation="no"), Form.SPIFFE),
    ],
)
def test_the_node_decides_on_the_form_of_the_bundle(given: base_pb2.Node | None, form: Form):
    peer = Peer()
    secrets = peer.ask("ROOTCA", node=given)
    assert secrets is not None
    plain = secrets[0].validation_context.trusted_ca.inline_bytes == OWN.pem
    assert plain == (form is Form.TRUSTED_CA)
    peer.ack("ROOTCA")  # the node comes with the first request alone
    assert peer.stream.form is form


def test_plain_certificates_never_mix_trust_domains():
    peer = Peer(validator=Form.TRUSTED_CA)
    peer.now = content("a")
    assert names(peer.ask("ALL")) == ["ALL"]
    federated = Peer(validator=Form.TRUSTED_CA)
    federated.now = content("a", federated=True)
    assert federated.ask("ALL") is None
    assert "only Envoy's SPIFFE validator" in federated.stream.statuses["ALL"].detail


def test_one_bundle_alone_comes_as_plain_certificates():
    peer = Peer()
    peer.now = content("a", federated=True)
    found = {
        s.name: s for s in peer.ask("ROOTCA", f"{PLAIN}ROOTCA", f"{PLAIN}{OWN.id}", f"{PLAIN}spiffe://fed.org") or ()
    }
    assert found["ROOTCA"].validation_context.HasField("custom_validator_config")
    for name in (f"{PLAIN}ROOTCA", f"{PLAIN}{OWN.id}"):
        assert found[name].validation_context.trusted_ca.inline_bytes == OWN.pem
    other = found[f"{PLAIN}spiffe://fed.org"].validation_context.trusted_ca.inline_bytes
    assert other.startswith(b"-----BEGIN CERTIFICATE-----")
    assert other != OWN.pem
    assert peer.stream.roots_only


@pytest.mark.parametrize("rest", ["default", A, "", "nope", f"{PLAIN}ROOTCA", "ALL"])
def test_what_is_no_single_bundle_does_not_come_so(rest: str):
    peer = Peer()
    peer.now = content("a", federated=True)
    assert peer.ask(PLAIN + rest) is None
    assert peer.stream.statuses[PLAIN + rest].state.value == "UNKNOWN"


def test_names_are_configurable():  # Istio with federation asks for all bundles as ROOTCA
    peer = Peer(names=SecretNames(svid="mine", bundle="null", all_bundles="ROOTCA"))
    peer.now = content("a", federated=True)
    secrets = peer.ask("mine", "ROOTCA", "default")
    assert names(secrets) == ["ROOTCA", "mine"]
    assert secrets is not None
    assert b"fed.org" in secrets[0].validation_context.custom_validator_config.typed_config.value


def test_who_carries_roots_alone():
    peer = Peer()
    peer.ask("ROOTCA", "spiffe://fed.org")
    assert peer.stream.roots_only
    peer.ack("ROOTCA", "default")
    assert not peer.stream.roots_only
    peer.ack()
    assert not peer.stream.roots_only
    assert is_root_name("ALL", SecretNames())
    assert not is_root_name(A, SecretNames())


def test_nothing_is_said_before_the_first_request():
    assert Peer().see() is None


def test_a_request_out_of_bounds_is_refused():
    with pytest.raises(InvalidArgument):
        Peer().ask(*[f"n{i}" for i in range(1001)])
    with pytest.raises(InvalidArgument):
        Peer().ask("x" * 2049)


def test_the_type_url_is_echoed():
    peer = Peer()
    peer.ask("default", type_url="type.googleapis.com/some.Other")
    assert peer.last.type_url == "type.googleapis.com/some.Other"
    peer = Peer()
    peer.ask("default")
    assert peer.last.type_url == ""


def test_names_no_longer_asked_for_are_forgotten():
    peer = Peer()
    peer.ask("default", "nope")
    peer.ack("default")
    assert peer.states() == {"default": "SENT"}


def test_what_callers_may_have_made_is_bounded_in_bytes() -> None:
    """A trust domain may be spelled in many ways, and any choice of spellings is an answer of its own."""
    now = content("a")
    spelled = [f"spiffe://{_spelled('example', number)}.org" for number in range(128)]
    stream = SdsStream()
    for first in range(100):
        names = [*spelled[first:], *spelled[:first]][:100]
        request = discovery_pb2.DiscoveryRequest(resource_names=names, response_nonce=stream.nonce)
        stream.request(request, NOW)
        assert len(stream.respond(secrets_of(stream, now), NOW) or b"") > 50_000
    assert sum(map(len, now._made.values())) <= MADE_BYTES_AT_MOST


def _spelled(name: str, number: int) -> str:
    return "".join(c.upper() if number >> position & 1 else c for position, c in enumerate(name))
