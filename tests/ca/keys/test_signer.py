"""The local signer: every key type, and no other."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from ca.errors import FailedPrecondition
from ca.keys.signer import LocalSigner, generate_private_key, key_type_of
from ca.ports import KeyType


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_2048, KeyType.RSA_3072])
def test_a_generated_key_is_of_its_type(key_type: KeyType) -> None:
    key = generate_private_key(key_type)
    assert key_type_of(key) == key_type
    assert LocalSigner("k", key).key_type == key_type


def test_an_rsa_key_of_4096_bits() -> None:
    """By itself, for this is the one that takes seconds."""
    assert key_type_of(generate_private_key(KeyType.RSA_4096)) == KeyType.RSA_4096


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(public_exponent=65537, key_size=1024),
    ],
)
def test_other_keys_are_refused(key: object) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        key_type_of(key)
    assert caught.value.reason == "KEY_TYPE"
    assert "ec-p256" in caught.value.hint
