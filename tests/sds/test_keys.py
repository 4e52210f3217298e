from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_private_key

from ca.identity.spiffe_id import SpiffeId
from ca.ports import KeyType
from sds.keys import KeyPool, certificate_request, generate
from tests.sds.lab import TD, eventually


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_2048])
def test_a_key_and_its_request(key_type: KeyType):
    key = generate(key_type)
    loaded = load_der_private_key(key.pkcs8, None)  # F15
    if key_type is KeyType.RSA_2048:
        assert isinstance(loaded, rsa.RSAPrivateKey)
        assert loaded.key_size == 2048
    else:
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        assert loaded.curve.name == {"ec-p256": "secp256r1", "ec-p384": "secp384r1"}[key_type]
    request = x509.load_der_x509_csr(certificate_request(key, SpiffeId(TD, "/w")))
    assert request.is_signature_valid
    names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://example.org/w"]


async def test_the_pool_fills_ahead_and_gives_no_key_twice():
    pool = KeyPool(KeyType.EC_P256, size=3)
    pool.start()
    await eventually(lambda: len(pool) == 3)
    taken = await pool.take(5) + await pool.take(1)
    assert len({key.pkcs8 for key in taken}) == 6
    await eventually(lambda: len(pool) == 3)
    await pool.close()
    assert len(pool) == 0
