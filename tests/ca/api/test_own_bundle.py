"""What is added to our own bundle from outside: appended authorities, and those of downstream servers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca.errors import Unavailable
from ca.identity.svid import verify_x509_svid
from ca.proto.spire import server_bundle_pb2 as pb
from ca.proto.spire import server_svid_pb2, types_pb2
from tests.ca.api.refusals import Code, refused
from tests.support.server import Caller, RunningServer, broken_csr, entry, make_csr

NewCa = server_svid_pb2.NewDownstreamX509CARequest


def a_root(name: str = "root") -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def jwk(key_id: str) -> types_pb2.JWTKey:
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return types_pb2.JWTKey(public_key=der, key_id=key_id, expires_at=4102444800)


async def own(server: RunningServer) -> types_pb2.Bundle:
    found: types_pb2.Bundle = await server.local.bundles.GetBundle(pb.GetBundleRequest())
    return found


async def downstream(server: RunningServer) -> Caller:
    await server.create(entry("/down", "/spire/agent/join_token/x", downstream=True))
    return await server.caller(await server.mint("/down"))


async def test_append(server: RunningServer) -> None:
    append = server.local.bundles.AppendBundle
    before, root, key = await own(server), a_root(), jwk("app")
    after = await append(pb.AppendBundleRequest(x509_authorities=[types_pb2.X509Certificate(asn1=root)]))
    assert [a.asn1 for a in after.x509_authorities] == [server.roots[0], root]
    assert after.sequence_number == before.sequence_number + 1
    assert after == await own(server)
    mask = types_pb2.BundleMask(sequence_number=True, jwt_authorities=True)
    again = pb.AppendBundleRequest(x509_authorities=[types_pb2.X509Certificate(asn1=root)], output_mask=mask)
    assert (await append(again)).sequence_number == after.sequence_number
    more = await append(pb.AppendBundleRequest(jwt_authorities=[key], output_mask=mask))
    assert list(more.jwt_authorities) == [*before.jwt_authorities, key]
    assert more.sequence_number == after.sequence_number + 1
    with refused(Code.INVALID_ARGUMENT, "no authorities to append"):
        await append(pb.AppendBundleRequest())
    with refused(Code.INVALID_ARGUMENT, "failed to convert X.509 authority: malformed certificate"):
        await append(pb.AppendBundleRequest(x509_authorities=[types_pb2.X509Certificate(asn1=b"junk")]))
    with refused(Code.INVALID_ARGUMENT, "failed to convert JWT authority: missing key ID"):
        await append(pb.AppendBundleRequest(jwt_authorities=[types_pb2.JWTKey(public_key=key.public_key)]))
    assert (await own(server)).sequence_number == more.sequence_number


async def test_a_key_id_is_one_keys(server: RunningServer) -> None:
    ours = (await own(server)).jwt_authorities[0]
    caller = await downstream(server)
    stolen = pb.PublishJWTAuthorityRequest(jwt_authority=jwk(ours.key_id))
    with refused(Code.ALREADY_EXISTS, "in use by another key", reason="KEY_ID_IN_USE"):
        await caller.bundles.PublishJWTAuthority(stolen)
    assert list((await own(server)).jwt_authorities) == [ours]


async def test_downstream_servers_publish_their_keys(server: RunningServer) -> None:
    caller, ours, key = await downstream(server), await own(server), jwk("ds-key")
    publish = caller.bundles.PublishJWTAuthority
    for _ in range(2):
        answer = await publish(pb.PublishJWTAuthorityRequest(jwt_authority=key))
        assert list(answer.jwt_authorities) == [*ours.jwt_authorities, key]
    assert (await own(server)).sequence_number == ours.sequence_number + 1
    for request, message in (
        (pb.PublishJWTAuthorityRequest(), "missing JWT authority"),
        (pb.PublishJWTAuthorityRequest(jwt_authority=types_pb2.JWTKey(public_key=key.public_key)), "missing key ID"),
        (pb.PublishJWTAuthorityRequest(jwt_authority=types_pb2.JWTKey(public_key=b"j", key_id="z")), "invalid JWT"),
    ):
        with refused(Code.INVALID_ARGUMENT, message):
            await publish(request)
    with refused(Code.UNIMPLEMENTED, "WIT"):
        await caller.bundles.PublishWITAuthority(pb.PublishWITAuthorityRequest())


class TestDownstreamAuthority:
    async def test_it_signs_for_our_trust_domain(self, server: RunningServer) -> None:
        caller, key = await downstream(server), ec.generate_private_key(ec.SECP256R1())
        answer = await caller.svids.NewDownstreamX509CA(NewCa(csr=make_csr(key, uris=["spiffe://foreign.org/x"])))
        (certificate,) = answer.ca_cert_chain
        assert list(answer.x509_authorities) == server.roots
        authority = x509.load_der_x509_certificate(certificate)
        root = x509.load_der_x509_certificate(server.roots[0])
        authority.verify_directly_issued_by(root)
        assert authority.public_key() == key.public_key()
        assert "OU=DOWNSTREAM-1" in authority.subject.rfc4514_string()
        names = authority.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://example.org"]
        assert authority.not_valid_after_utc == root.not_valid_after_utc  # the default is cut to the signer's end
        leaf = leaf_under(authority, key, "spiffe://example.org/below")
        found = verify_x509_svid((leaf, certificate), server.server.trust.bundles, now=datetime.now(UTC))
        assert str(found.id) == "spiffe://example.org/below"

    async def test_lifetimes(self, server: RunningServer) -> None:
        caller = await downstream(server)
        root = x509.load_der_x509_certificate(server.roots[0])
        for ttl, expected in ((600, 600), (-1, None), (2**31 - 1, None)):
            answer = await caller.svids.NewDownstreamX509CA(NewCa(csr=make_csr(), preferred_ttl=ttl))
            authority = x509.load_der_x509_certificate(answer.ca_cert_chain[0])
            if expected is None:
                assert authority.not_valid_after_utc == root.not_valid_after_utc
            else:
                lifetime = authority.not_valid_after_utc - authority.not_valid_before_utc
                assert lifetime == timedelta(seconds=expected + server.config.backdate_seconds)

    async def test_it_is_on_record_with_its_entry(self, server: RunningServer) -> None:
        caller = await downstream(server)
        answer = await caller.svids.NewDownstreamX509CA(NewCa(csr=make_csr()))
        serial = x509.load_der_x509_certificate(answer.ca_cert_chain[0]).serial_number
        (entry_id,) = [e.id for e in await server.server.store.entries.all()]
        records = await server.server.store.issuance.find(spiffe_id="spiffe://example.org")
        assert (str(serial), "ca", entry_id) in [(r.serial_or_kid, r.kind, r.entry_id) for r in records]

    async def test_what_cannot_be_recorded_is_not_signed(
        self, server: RunningServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        caller, signed = await downstream(server), []

        async def lost(*_: object, **__: object) -> None:
            raise Unavailable("the store cannot be reached or written now")

        monkeypatch.setattr("ca.service.issuance_ca.sign", lambda *all, **named: signed.append(all))
        monkeypatch.setattr(server.server.store.issuance, "append", lost)
        with refused(Code.UNAVAILABLE):
            await caller.svids.NewDownstreamX509CA(NewCa(csr=make_csr()))
        assert signed == []

    async def test_proof_of_possession_and_strength(self, server: RunningServer) -> None:
        caller = await downstream(server)
        weak = make_csr(rsa.generate_private_key(public_exponent=65537, key_size=1024))
        for csr in (b"", b"junk", broken_csr(), weak):
            with refused(Code.INVALID_ARGUMENT):
                await caller.svids.NewDownstreamX509CA(NewCa(csr=csr))


def leaf_under(issuer: x509.Certificate, key: Any, uri: str) -> bytes:
    """A minimal X.509-SVID that a downstream server could make."""
    now = datetime.now(UTC)
    usage = {name: name == "digital_signature" for name in (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )}  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(seconds=5))
        .not_valid_after(now + timedelta(minutes=5))
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
