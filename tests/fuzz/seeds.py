"""Writes the part of the corpus that is made rather than found: `python -m tests.fuzz.seeds`. No secrets go in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.rpc import status_pb2

from ca.identity import bundle_json, bundle_pem
from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority
from ca.issuing import der
from ca.issuing.x509 import sign
from ca.proto.burgee import node_pb2
from ca.proto.spire import server_agent_pb2, server_entry_pb2, types_pb2
from ca.runtime.gate_h2 import PREFACE
from tests.ca.identity import forge
from tests.fuzz import keys, records
from tests.fuzz.harness import CORPUS
from tests.fuzz.targets import requests, tokens

Seeds = Iterator[tuple[str, str, bytes]]


def requests_and_certificates() -> Seeds:
    yield from _requests()
    leaf = requests.leaf(dns_names=("web.example.org",))
    yield "tbs", "a-leaf-with-a-dns-name", leaf.tbs
    yield "tbs", "a-leaf", requests.leaf().tbs
    yield "der", "a-leaf", requests.leaf().tbs
    yield "der", "short-and-long-lengths", der.tlv(4, b"a") + der.tlv(4, bytes(128)) + der.tlv(4, bytes(256))
    yield "x509_svid", "a-good-leaf", sign(requests.leaf(), keys.signer("root"), remote=True)
    yield "x509_svid", "a-leaf-with-a-dns-name", sign(leaf, keys.signer("root"), remote=True)
    yield "x509_svid", "an-authority", requests.root()
    yield "authority", "a-root", requests.root()
    yield "authority", "a-leaf", sign(requests.leaf(), keys.signer("root"), remote=True)
    yield "authority", "with-name-constraints", _constrained()


def _requests() -> Seeds:
    uri = x509.UniformResourceIdentifier("spiffe://example.org/web")
    names = x509.SubjectAlternativeName([uri, x509.DNSName("web.example.org")])
    subject = x509.Name([x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"), x509.NameAttribute(NameOID.COMMON_NAME, "ä")])
    empty = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    full = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(names, critical=False)
    full = full.add_extension(x509.BasicConstraints(True, 3), critical=True)
    for name, builder in (("empty", empty), ("with-names", full)):
        yield "csr", name, builder.sign(keys.key("leaf"), hashes.SHA256()).public_bytes(Encoding.DER)
    big = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    yield "csr", "rsa", empty.sign(big, hashes.SHA256()).public_bytes(Encoding.DER)
    yield "csr", "p384", empty.sign(forge.key("P-384"), hashes.SHA384()).public_bytes(Encoding.DER)
    yield "csr", "ed25519", empty.sign(forge.key("Ed25519"), None).public_bytes(Encoding.DER)


def _constrained() -> bytes:
    subtree = [x509.UniformResourceIdentifier("example.org"), x509.DNSName("example.org")]
    order = forge.ca_order(
        "constrained",
        key=keys.key("leaf"),
        extra=[
            (x509.NameConstraints(permitted_subtrees=subtree, excluded_subtrees=None), True),
            (x509.PolicyConstraints(require_explicit_policy=0, inhibit_policy_mapping=None), True),
        ],
        not_before=requests.NOW - timedelta(days=1),
        not_after=requests.NOW + timedelta(days=30),
    )
    return forge.issue(order, "constrained", keys.key("root"))


def texts() -> Seeds:
    for name, text in {
        "workload": "spiffe://example.org/ns/prod/sa/web",
        "folded": "SPIFFE://EXAMPLE.ORG/Web",
        "domain": "spiffe://a_b-c.d",
        "bare-domain": "example.org",
        "dot-segment": "spiffe://example.org/a/../b",
        "port": "spiffe://example.org:80/a",
        "selector": "unix:uid:1000",
        "dotted-capital-i": "spiffe://exampl\u0130/a",
        "longest": "spiffe://example.org/" + "a" * 2027,
    }.items():
        yield "spiffe_id", name, text.encode()
    for name, text in {
        "unix": "unix:///run/burgee/workload.sock",
        "unix-one-slash": "unix:/run/a%20b",
        "tcp4": "tcp://127.0.0.1:8000",
        "tcp6": "tcp://[::1]:8000",
        "tcp6-zone": "tcp://[fe80::1%25eth0]:1",
    }.items():
        yield "endpoint", name, text.encode()


def documents() -> Seeds:
    bundle = TrustBundle(
        trust_domain=requests.TD,
        x509_authorities=(X509Authority(certificate=requests.root()),),
        jwt_authorities=(JwtAuthority(key_id="k1", public_key=keys.public_der("jwt")),),
        refresh_hint_seconds=60,
        sequence_number=7,
    )
    yield "bundle_json", "whole", bundle_json.format_spiffe_bundle(bundle).encode()
    yield "bundle_json", "jwks", bundle_json.format_jwks(bundle).encode()
    yield "bundle_json", "plain-jwks", bundle_json.format_plain_jwks(bundle).encode()
    rsa_key = {"kty": "RSA", "use": "jwt-svid", "kid": "r", "n": "u" * 342, "e": "AQAB"}
    yield "bundle_json", "rsa", json.dumps({"keys": [rsa_key, {"kty": "OKP"}, {"kty": "oct", "k": "AA"}]}).encode()
    yield "bundle_pem", "one", bundle_pem.format_pem(bundle).encode()
    yield (
        "bundle_pem",
        "between-text",
        b"# CA\r\n" + bundle_pem.format_pem(bundle).replace("\n", "\r\n").encode() + b"\xff",
    )
    yield from _configurations()


def _configurations() -> Seeds:
    server = "trust_domain: example.org\ndata_dir: /var/lib/burgee\nx509_svid_ttl_seconds: 600\nlog: {format: json}\n"
    agent = (
        "trust_domain: example.org\ndata_dir: /var/lib/agent\nservers: ['a:8081']\ntrust: {insecure_bootstrap: true}\n"
        "node_attestor: {join_token: {token_file: /t}}\nsds: {default_svid_name: x}\n"
    )
    for name, text in {
        "server": server,
        "agent": agent,
        "twice": server + "data_dir: /b\n",
        "tags": "a: !!int 1\nb: !!float 1\nc: !!binary aGk=\nd: !!timestamp 2026-01-01\ne: !!bool yes\n",
        "blocks": "trust_domain: |\n  a\ndata_dir: >-\n  b\n? {a: b}\n: c\n",
        "alias": "a: &x [1]\nb: *x\n",
    }.items():
        yield "config", name, text.encode()


def json_web_tokens() -> Seeds:
    now = int(tokens.NOW.timestamp())
    header = {"alg": "ES256", "kid": "k1", "typ": "JWT"}
    claims: dict[str, Any] = {"aud": ["db"], "exp": now + 60, "iat": now, "sub": "spiffe://example.org/web"}
    for name, head, body in (
        ("good", header, claims),
        ("one-audience", header, claims | {"aud": "db", "nbf": now - 1.5}),
        ("expired", header, claims | {"exp": now - 3600}),
        ("broken-key", header | {"kid": "broken"}, claims),
        ("none", header | {"alg": "none"}, claims),
        ("wrong-curve", header | {"alg": "ES512"}, claims),
    ):
        yield "jwt", name, keys.token("jwt", json.dumps(head).encode(), json.dumps(body).encode())


def envoy_streams() -> Seeds:
    node = base_pb2.Node(id="envoy", user_agent_name="envoy")
    node.user_agent_build_version.version.major_number = 1
    node.extensions.add(name="envoy.tls.cert_validator.spiffe")

    def ask(*names: str, **fields: Any) -> tuple[bytes, bytes]:
        return b"q", discovery_pb2.DiscoveryRequest(resource_names=names, **fields).SerializeToString()

    first = ask("default", "ROOTCA", node=node)
    nack = ask("default", response_nonce="$", error_detail=status_pb2.Status(code=3, message="no\nthanks"))
    yield "sds", "ask-and-accept", records.join([first, ask("default", "ROOTCA", response_nonce="$")])
    yield "sds", "reject-and-rotate", records.join([first, nack, (b"w", b"\x03"), (b"s", b""), (b"w", b"\x01")])
    yield "sds", "everything", records.join([(b"t", b""), ask(node=node), (b"w", b"\x00"), (b"w", b"\x02")])
    yield "sds", "names", records.join([ask("spiffe://fed.org", "spiffe://example.org/a", "ALL", "file-root:x", "x\n")])
    plain = ask("ROOTCA", "trusted_ca:ROOTCA", "trusted_ca:ALL", "trusted_ca:spiffe://fed.org", "trusted_ca:default")
    yield "sds", "plain-bundles", records.join([plain, (b"w", b"\x03"), (b"w", b"\x00")])
    yield from _delta(node)


def _delta(node: base_pb2.Node) -> Seeds:
    def ask(*names: str, **fields: Any) -> tuple[bytes, bytes]:
        request = discovery_pb2.DeltaDiscoveryRequest(resource_names_subscribe=names, **fields)
        return b"q", request.SerializeToString()

    first, accept = ask("default", "ROOTCA", node=node), ask(response_nonce="$")
    drop = ask("x", resource_names_unsubscribe=["default"], response_nonce="$")
    yield "sds_delta", "ask-accept-drop", records.join([first, accept, drop, (b"w", b"\x01")])
    held = ask("*", "spiffe://fed.org", initial_resource_versions={"spiffe://fed.org": "v", "gone": "v"})
    nack = ask(response_nonce="$", error_detail=status_pb2.Status(code=3, message="no"))
    yield "sds_delta", "everything-resumed", records.join([held, nack, (b"w", b"\x03"), (b"s", b""), (b"w", b"\x00")])
    yield "sds_delta", "wildcard-left", records.join([ask(), ask(resource_names_unsubscribe=["*"]), ask("ALL")])


def messages() -> Seeds:
    entry = types_pb2.Entry(
        id="e1",
        spiffe_id=types_pb2.SPIFFEID(trust_domain="example.org", path="/web"),
        parent_id=types_pb2.SPIFFEID(trust_domain="example.org", path="/spire/agent/a"),
        selectors=[types_pb2.Selector(type="unix", value="uid:1")],
        federates_with=["fed.org"],
        dns_names=["web.example.org"],
        expires_at=1800000000,
        hint="internal",
    )
    bundle = types_pb2.Bundle(trust_domain="example.org", x509_authorities=[types_pb2.X509Certificate(asn1=b"x")])
    bundle.jwt_authorities.add(key_id="k", public_key=b"y", expires_at=1800000000)
    yield "entry", "full", entry.SerializeToString()
    by_selectors = types_pb2.SelectorMatch(selectors=entry.selectors, match=types_pb2.SelectorMatch.MATCH_SUBSET)
    wanted = server_entry_pb2.ListEntriesRequest.Filter(by_spiffe_id=entry.spiffe_id, by_selectors=by_selectors)
    yield "filter", "entries", server_entry_pb2.ListEntriesRequest(filter=wanted).SerializeToString()
    agents = server_agent_pb2.ListAgentsRequest.Filter(by_expires_before="2026-01-31 12:00:00 +0000 UTC")
    yield "filter", "agents", server_agent_pb2.ListAgentsRequest(filter=agents).SerializeToString()
    resources = [
        node_pb2.Resource(kind="entry", name="e1", payload=entry.SerializeToString()),
        node_pb2.Resource(kind="bundle", name="example.org", payload=bundle.SerializeToString()),
        node_pb2.Resource(kind="news", name="x", payload=b"?"),
    ]
    snapshot = node_pb2.SyncResponse(store_epoch="e", revision=1, snapshot=True, resources=resources)
    removed = [node_pb2.ResourceName(kind="entry", name="e1"), node_pb2.ResourceName(kind="bundle", name="fed.org")]
    change = node_pb2.SyncResponse(store_epoch="e", revision=2, removed=removed)
    steps = [(b"s", snapshot.SerializeToString()), (b"c", change.SerializeToString())]
    yield "push", "snapshot-and-change", records.join(steps)
    subscribe = node_pb2.SyncRequest(subscribe=node_pb2.Subscribe(store_epoch="e", revision=1, agent_version="1"))
    ack = node_pb2.SyncRequest(ack=node_pb2.Ack(kind="entry", revision=1, consumers=2, consumers_acked=1))
    bare = [message.SerializeToString() for message in (subscribe, ack)]
    yield "acknowledgement", "subscribe-and-acknowledge", records.join([(b"m", bare[0]), (b"m", bare[1])])
    yield "acknowledgement", "acknowledge-first", records.join([(b"m", bare[1])])


def mended_faults() -> Seeds:
    """What once broke a promise."""
    ids = {
        "spiffe_id": types_pb2.SPIFFEID(trust_domain="example.org", path="/web"),
        "parent_id": types_pb2.SPIFFEID(trust_domain="example.org", path="/spire/agent/a"),
        "selectors": [types_pb2.Selector(type="unix", value="uid:1")],
    }
    twice = types_pb2.Entry(**ids, dns_names=["a\nb", "a\nb"])  # type: ignore[arg-type]
    yield "entry", "line-break-in-a-detail", twice.SerializeToString()
    late = types_pb2.Entry(**ids, id="e", expires_at=2**62)  # type: ignore[arg-type]
    push = node_pb2.SyncResponse(resources=[node_pb2.Resource(kind="entry", payload=late.SerializeToString())])
    yield "push", "time-out-of-range", records.join([(b"s", push.SerializeToString())])
    for name, text in (("time-out-of-range", "9999-12-31 23:59:59 -2359 UTC"), ("line-break", "a\nb")):
        agents = server_agent_pb2.ListAgentsRequest.Filter(by_expires_before=text)
        yield "filter", name, server_agent_pb2.ListAgentsRequest(filter=agents).SerializeToString()
    match = types_pb2.SelectorMatch(selectors=ids["selectors"], match=99)  # type: ignore[arg-type]
    wanted = server_agent_pb2.ListAgentsRequest.Filter(by_selector_match=match)
    yield "filter", "match-of-no-name", server_agent_pb2.ListAgentsRequest(filter=wanted).SerializeToString()


def connections() -> Seeds:
    http = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    pieces = [(b"c", PREFACE[at : at + 5]) for at in range(0, 24, 5)]
    yield "gate_unix", "http2", records.join([(b"c", PREFACE + bytes(9))])
    yield "gate_unix", "http2-in-pieces", records.join([*pieces, (b"c", b"rest")])
    yield "gate_unix", "http1", records.join([(b"c", http)])
    yield "gate_unix", "nearly-http2", records.join([(b"c", PREFACE[:20]), (b"c", b"nope")])
    yield "gate_unix", "left-early", records.join([(b"c", PREFACE[:10])])
    for letter, name in ((b"h", "h2"), (b"1", "http1"), (b"2", "both-with-certificate"), (b"n", "without-alpn")):
        yield "gate_tls", name, records.join([(letter, b""), (b"c", PREFACE), (b"c", b"rest")])
    yield "gate_tls", "unknown-alpn", records.join([(b"x", b"spdy/3"), (b"c", b"x")])
    yield "gate_tls", "plain-http", records.join([(b"r", b""), (b"c", http)])
    yield (
        "gate_tls",
        "no-client-hello",
        records.join([(b"r", b""), (b"c", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00")]),
    )


def main() -> None:
    for make in (
        requests_and_certificates,
        texts,
        documents,
        json_web_tokens,
        envoy_streams,
        messages,
        mended_faults,
        connections,
    ):
        for target, name, data in make():
            (CORPUS / target).mkdir(parents=True, exist_ok=True)
            (CORPUS / target / name).write_bytes(data)


if __name__ == "__main__":
    main()
