"""What travels between the halves: SPIRE's JSON, and beside it one field of ours that SPIRE's programs do not know.

Bytes are base64 as Go writes it. Unknown members are passed over, as SPIRE does: so may others be added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attestor.node.possession import octets, text_of, wire
from attestor.node.tpm.structures import BANKS, MAX_STRUCTURE_BYTES, Malformed
from ca.identity import strict_json

MAX_MESSAGE_BYTES = 128 * 1024
MAX_CERTIFICATES = 8
MAX_CERTIFICATE_BYTES = 16 * 1024
MAX_PCRS = 24
NONCE_BYTES = range(16, 64 + 1)
"""Of what a server may have signed: too short to be anything else's message (a handshake's transcript is longer)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The payload. Certificates are DER, the DevID's own first; keys are TPMT_PUBLIC."""

    devid_chain: tuple[bytes, ...]
    devid_public: bytes
    ek_certificate: bytes
    ek_public: bytes
    ak_public: bytes
    certified: bytes
    certification: bytes

    def encode(self) -> bytes:
        return wire(
            {
                "DevIDCert": [text_of(der) for der in self.devid_chain],
                "DevIDPub": text_of(self.devid_public),
                "EKCert": text_of(self.ek_certificate),
                "EKPub": text_of(self.ek_public),
                "AKPub": text_of(self.ak_public),
                "CertifiedDevID": text_of(self.certified),
                "CertificationSignature": text_of(self.certification),
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Evidence:
        """Raises Malformed."""
        members = _load(data)
        chain = members.get("DevIDCert")
        if not isinstance(chain, list) or not 1 <= len(chain) <= MAX_CERTIFICATES:
            raise Malformed(f"`DevIDCert` is not a list of 1 to {MAX_CERTIFICATES} certificates")
        return cls(
            devid_chain=tuple(_decode(der, "DevIDCert", MAX_CERTIFICATE_BYTES) for der in chain),
            devid_public=_bytes(members, "DevIDPub"),
            ek_certificate=_bytes(members, "EKCert", MAX_CERTIFICATE_BYTES),
            ek_public=_bytes(members, "EKPub"),
            ak_public=_bytes(members, "AKPub"),
            certified=_bytes(members, "CertifiedDevID"),
            certification=_bytes(members, "CertificationSignature"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteRequest:
    """Which PCRs the server wants to see, signed together with its nonce. `pcrs` ascend."""

    nonce: bytes
    bank: str
    pcrs: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """The challenge: a nonce for the DevID key, a credential for the attestation key, and ours: a quote."""

    devid_nonce: bytes
    credential: bytes
    secret: bytes
    quote: QuoteRequest | None = None

    def encode(self) -> bytes:
        activation = {"Credential": text_of(self.credential), "Secret": text_of(self.secret)}
        members: dict[str, Any] = {"DevID": text_of(self.devid_nonce), "CredActivation": activation}
        if self.quote is not None:
            quote = self.quote
            members["Quote"] = {"Nonce": text_of(quote.nonce), "Bank": quote.bank, "PCRs": list(quote.pcrs)}
        return wire(members)

    @classmethod
    def decode(cls, data: bytes) -> Questions:
        """Raises Malformed."""
        members = _load(data)
        activation = _object(members.get("CredActivation"), "CredActivation")
        quote = members.get("Quote")
        return cls(
            devid_nonce=_nonce(members, "DevID"),
            credential=_bytes(activation, "Credential"),
            secret=_bytes(activation, "Secret"),
            quote=None if quote is None else _quote_request(_object(quote, "Quote")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Quoted:
    """TPMS_ATTEST, TPMT_SIGNATURE, and the PCRs' values in the order in which they were asked for."""

    attest: bytes
    signature: bytes
    values: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The answer to `Questions`."""

    devid_signature: bytes
    activated: bytes
    quoted: Quoted | None = None

    def encode(self) -> bytes:
        members: dict[str, Any] = {"DevID": text_of(self.devid_signature), "CredActivation": text_of(self.activated)}
        if self.quoted is not None:
            members["Quote"] = {
                "Quoted": text_of(self.quoted.attest),
                "Signature": text_of(self.quoted.signature),
                "Values": [text_of(value) for value in self.quoted.values],
            }
        return wire(members)

    @classmethod
    def decode(cls, data: bytes) -> Answers:
        """Raises Malformed."""
        members = _load(data)
        quote = members.get("Quote")
        return cls(
            devid_signature=_bytes(members, "DevID"),
            activated=_bytes(members, "CredActivation"),
            quoted=None if quote is None else _quoted(_object(quote, "Quote")),
        )


def _quote_request(members: dict[str, Any]) -> QuoteRequest:
    bank, pcrs = members.get("Bank"), members.get("PCRs")
    if not isinstance(bank, str) or bank not in BANKS:
        raise Malformed("`Bank` names no bank of PCRs")
    if not isinstance(pcrs, list) or not pcrs or not all(type(p) is int and 0 <= p < MAX_PCRS for p in pcrs):
        raise Malformed("`PCRs` is not a list of indexes")
    return QuoteRequest(nonce=_nonce(members, "Nonce"), bank=bank, pcrs=tuple(sorted(set(pcrs))))


def _quoted(members: dict[str, Any]) -> Quoted:
    values: object = members.get("Values")
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) > MAX_PCRS:
        raise Malformed("`Values` is not a list of PCR values")
    return Quoted(
        attest=_bytes(members, "Quoted"),
        signature=_bytes(members, "Signature"),
        values=tuple(_decode(value, "Values", 64) for value in values),
    )


def _load(data: bytes) -> dict[str, Any]:
    try:
        return _object(strict_json.loads(data, max_bytes=MAX_MESSAGE_BYTES), "it")
    except Malformed:
        raise
    except ValueError as error:
        raise Malformed(str(error)) from error


def _object(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Malformed(f"`{name}` is not an object")
    return value


def _nonce(members: dict[str, Any], name: str) -> bytes:
    nonce = _bytes(members, name)
    if len(nonce) not in NONCE_BYTES:
        raise Malformed(f"`{name}` is no nonce: {len(nonce)} bytes")
    return nonce


def _bytes(members: dict[str, Any], name: str, most: int = MAX_STRUCTURE_BYTES) -> bytes:
    return _decode(members.get(name), name, most)


def _decode(value: object, name: str, most: int) -> bytes:
    """Not empty: every field is needed."""
    if not isinstance(value, str) or not value:
        raise Malformed(f"`{name}` is missing")
    if len(value) > most * 2:
        raise Malformed(f"`{name}` is too long")
    try:
        data = octets(value, name)
    except ValueError as error:
        raise Malformed(str(error)) from error
    if len(data) > most:
        raise Malformed(f"`{name}` is too long")
    return data
