"""Requests for authorities: what other readers see in them."""

from __future__ import annotations

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from ca.errors import InvalidArgument
from ca.identity.spiffe_id import TrustDomain
from ca.issuing.csr import parse_csr
from ca.issuing.csr_new import request_info, signed_request
from ca.keys.signer import LocalSigner, generate_private_key
from ca.ports import KeyType

TD = TrustDomain("example.org")


def made(key_type: KeyType, trust_domain: TrustDomain = TD) -> tuple[bytes, LocalSigner]:
    signer = LocalSigner("k", generate_private_key(key_type))
    info = request_info(signer.public_key_der, trust_domain)
    return signed_request(info, key_type, signer.sign(info)), signer


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_2048])
def test_it_is_what_others_take_for_one(key_type: KeyType) -> None:
    request, signer = made(key_type)
    parsed = x509.load_der_x509_csr(request)
    assert parsed.is_signature_valid
    assert not parsed.subject.rdns
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier("spiffe://example.org")]
    ours = parse_csr(request)
    assert (ours.public_key_der, ours.uri_sans, ours.dns_names) == (
        signer.public_key_der,
        ("spiffe://example.org",),
        (),
    )


@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,200}", fullmatch=True))
def test_any_trust_domain_fits(name: str) -> None:
    request, _ = made(KeyType.EC_P256, TrustDomain(name))
    assert parse_csr(request).uri_sans == (f"spiffe://{name}",)


def test_a_signature_of_another_key_is_found_before_it_leaves() -> None:
    request, signer = made(KeyType.EC_P256)
    other = LocalSigner("o", generate_private_key(KeyType.EC_P256))
    info = request_info(signer.public_key_der, TD)
    with pytest.raises(InvalidArgument) as caught:
        parse_csr(signed_request(info, KeyType.EC_P256, other.sign(info)))
    assert caught.value.reason == "CSR_SIGNATURE"
    assert request != b""
