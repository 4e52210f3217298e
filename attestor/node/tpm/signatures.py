"""Signatures that a TPM made, and those over a challenge by a certificate's key. Verifying raises."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from attestor.node.tpm.public import PublicArea, PublicKey
from attestor.node.tpm.structures import (
    ALG_ECDSA,
    ALG_RSAPSS,
    ALG_RSASSA,
    ALG_SHA256,
    ALG_SHA384,
    ALG_SHA512,
    Malformed,
    Signature,
)

HASHES: dict[int, hashes.HashAlgorithm] = {
    ALG_SHA256: hashes.SHA256(),
    ALG_SHA384: hashes.SHA384(),
    ALG_SHA512: hashes.SHA512(),
}


class BadSignature(Exception):
    """It is not that key's over those bytes."""


def verify_signature(key: PublicArea, signature: Signature, data: bytes) -> None:
    """By exactly the scheme that the key is bound to: a restricted key has one. Raises BadSignature."""
    if signature.scheme != key.scheme or key.scheme.digest not in HASHES:
        raise BadSignature("signed by another scheme than the key's")
    digest = HASHES[key.scheme.digest]
    try:
        if isinstance(key.key, rsa.RSAPublicKey) and key.scheme.algorithm == ALG_RSASSA:
            key.key.verify(signature.rsa, data, padding.PKCS1v15(), digest)
        elif isinstance(key.key, rsa.RSAPublicKey) and key.scheme.algorithm == ALG_RSAPSS:
            # Part 1 §B.7: the salt is as long as the digest or as the key allows, by version.
            pss = padding.PSS(padding.MGF1(digest), padding.PSS.AUTO)
            key.key.verify(signature.rsa, data, pss, digest)
        elif isinstance(key.key, ec.EllipticCurvePublicKey) and key.scheme.algorithm == ALG_ECDSA:
            key.key.verify(utils.encode_dss_signature(signature.r, signature.s), data, ec.ECDSA(digest))
        else:
            raise BadSignature("the key's scheme is not for signing")
    except (InvalidSignature, ValueError, UnsupportedAlgorithm) as error:
        raise BadSignature("not the key's signature") from error


def verify_answer(key: PublicKey, signature: bytes, challenge: bytes) -> None:
    """SPIRE's form: PKCS#1 v1.5 or an ECDSA-Sig-Value in DER, both over SHA-256. Raises BadSignature."""
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, challenge, padding.PKCS1v15(), hashes.SHA256())
        else:
            key.verify(signature, challenge, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError, UnsupportedAlgorithm) as error:
        raise BadSignature("not the key's signature") from error


def answer_of(signature: Signature) -> bytes:
    """The same form, from what a TPM gave. Raises Malformed."""
    if signature.scheme.algorithm == ALG_RSASSA:
        return signature.rsa
    if signature.scheme.algorithm == ALG_ECDSA:
        return utils.encode_dss_signature(signature.r, signature.s)
    raise Malformed("a signature in a scheme that servers do not verify")
