"""The server's judgement of a TPM's evidence, step by step; each step has its own reason. No I/O."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestor.node.node_certificate import NodeCertificate, parse_node_certificate, verify_chain
from attestor.node.tpm.authorities import verify_endorsement
from attestor.node.tpm.messages import Evidence
from attestor.node.tpm.public import MAX_RSA_BITS, PublicArea, PublicKey, parse_public
from attestor.node.tpm.signatures import BadSignature, verify_answer, verify_signature
from attestor.node.tpm.structures import (
    ATTEST_CERTIFY,
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SIGN,
    Malformed,
    parse_attest,
    parse_signature,
)
from ca.errors import Denied, InvalidArgument
from ca.identity.text import quote
from ca.runtime.notes import note

_FIXED = (FIXED_TPM, FIXED_PARENT, SENSITIVE_DATA_ORIGIN)
"""Made in this TPM, and cannot leave it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorities:
    """DER: who may issue DevIDs, and who endorsement certificates."""

    devid: Sequence[bytes]
    endorsement: Sequence[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """Evidence that holds together, and still may be somebody else's: only the TPM's answers tell.

    `above` are the certificates above the DevID's, DER.
    """

    devid: NodeCertificate
    above: tuple[bytes, ...]
    ek: PublicArea
    ak: PublicArea


def verify_evidence(evidence: Evidence, authorities: Authorities, *, now: datetime) -> Claimed:
    """Raises InvalidArgument for what is malformed, Denied for what does not prove."""
    devid, ek, ak = (
        _public(evidence.devid_public, "DevIDPub"),
        _public(evidence.ek_public, "EKPub"),
        _public(evidence.ak_public, "AKPub"),
    )
    leaf = parse_node_certificate(evidence.devid_chain[0], max_rsa_bits=MAX_RSA_BITS)
    above = verify_chain(leaf, evidence.devid_chain[1:], authorities.devid, now=now)
    note("DevID certificate", f"of {quote(leaf.certificate.subject.rfc4514_string())}")
    _require_same_key("DevID", leaf.key, devid, reason="TPM_DEVID_MISMATCH")
    endorsement = verify_endorsement(evidence.ek_certificate, authorities.endorsement, now)
    _require_same_key("endorsement", _key_of(endorsement), ek, reason="TPM_EK_MISMATCH")
    _require_attributes("attestation key", ak, (*_FIXED, RESTRICTED, SIGN), without=DECRYPT)
    _require_attributes("DevID key", devid, (*_FIXED, SIGN))
    _require_attributes("endorsement key", ek, (FIXED_TPM, FIXED_PARENT, RESTRICTED, DECRYPT))
    if not ek.symmetric_bits:
        raise Denied("the endorsement key protects nothing", reason="TPM_KEY_ATTRIBUTES")
    _certification(evidence, devid, ak)
    return Claimed(devid=leaf, above=above, ek=ek, ak=ak)


def verify_possession(claimed: Claimed, *, nonce: bytes, signature: bytes) -> None:
    """The DevID key signed our nonce. Raises Denied."""
    try:
        verify_answer(claimed.devid.key, signature, nonce)
    except BadSignature as error:
        note("answer to the challenge", "not signed by the DevID certificate's key over this nonce")
        raise Denied(
            "the challenge was not signed by the DevID certificate's key", reason="POSSESSION_UNPROVEN"
        ) from error


def verify_activation(*, secret: bytes, activated: bytes) -> None:
    """Whoever knows the secret is the TPM with that endorsement key, and holds that attestation key. Raises Denied."""
    if not hmac.compare_digest(secret, activated):
        raise Denied(
            "the credential was not activated: the attestation key is not in the TPM of the endorsement certificate",
            reason="TPM_ACTIVATION",
        )


def _require_same_key(what: str, key: PublicKey, area: PublicArea, reason: str) -> None:
    if _spki(key) != _spki(area.key):
        raise Denied(f"the {what} certificate is another key's", reason=reason)


def _require_attributes(what: str, area: PublicArea, wanted: tuple[int, ...], without: int = 0) -> None:
    if not area.has(*wanted) or area.attributes & without:
        note(f"attributes of the {what}", f"0x{area.attributes:08x}, needed 0x{sum(wanted):08x}, without 0x{without:x}")
        raise Denied(
            f"the {what} could have been made or used outside of the TPM, by its attributes",
            reason="TPM_KEY_ATTRIBUTES",
        )


def _certification(evidence: Evidence, devid: PublicArea, ak: PublicArea) -> None:
    """Part 3 §18.2: the attestation key says that the DevID key is loaded beside it. Signature first."""
    try:
        verify_signature(ak, parse_signature(evidence.certification), evidence.certified)
        attest = parse_attest(evidence.certified)
        if attest.kind != ATTEST_CERTIFY:
            raise Malformed("it certifies no key")
        if not hmac.compare_digest(attest.name, devid.name):
            raise Malformed("it certifies another key")
    except (BadSignature, Malformed) as error:
        note("certification of the DevID key", error)
        raise Denied(
            "the attestation key does not certify the DevID key: they are not in the same TPM",
            reason="TPM_DEVID_UNCERTIFIED",
        ) from error


def _public(data: bytes, name: str) -> PublicArea:
    try:
        return parse_public(data)
    except Malformed as error:
        raise InvalidArgument(f"`{name}` is not a public area: {error}", reason="ATTESTATION_PAYLOAD") from error


def _key_of(certificate: x509.Certificate) -> PublicKey:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidArgument("malformed or unsupported key in a certificate", reason="ATTESTATION_PAYLOAD") from error
    if not isinstance(key, PublicKey):
        raise InvalidArgument("a certificate's key is neither RSA nor on a curve", reason="ATTESTATION_PAYLOAD")
    return key


def _spki(key: PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
