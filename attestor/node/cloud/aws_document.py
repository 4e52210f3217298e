"""Amazon's instance identity documents: signed JSON that says which instance this is, and whose.

Each region signs with a key of its own; its certificate is pinned by the administrator.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from attestor.node.cloud import cms
from attestor.node.cloud.evidence import (
    malformed_document,
    malformed_payload,
    payload_base64,
    payload_object,
    payload_text,
    refused_signature,
    signed_object,
    signed_text,
)
from ca.errors import ConfigError, Denied
from ca.runtime.notes import note

MAX_DOCUMENT_BYTES = 16 * 1024
MAX_CERTIFICATE_FILES = 200
MAX_CERTIFICATES = 8

_ACCOUNT = re.compile(r"[0-9]{12}")
_REGION = re.compile(r"[a-z0-9]{2,16}(-[a-z0-9]{1,16}){1,5}")
_INSTANCE = re.compile(r"i-[0-9a-f]{8,32}")
_IMAGE = re.compile(r"[a-z]{2,8}-[0-9a-f]{8,32}")

Certificates = Mapping[str, Sequence[x509.Certificate]]
"""By region."""


@dataclass(frozen=True, kw_only=True)
class InstanceDocument:
    """What Amazon signed. `pending_time` is when the instance was last launched."""

    account_id: str
    region: str
    availability_zone: str
    instance_id: str
    image_id: str
    pending_time: datetime


def verified_document(payload: bytes, certificates: Certificates) -> InstanceDocument:
    """From an agent's payload: `{"document", "signature", "rsa2048"}`, as SPIRE's.

    `rsa2048` is a signed message that counts wherever it is given; `signature` alone is RSA with SHA-256 over the
    document, for which Amazon's own keys of 1024 bits are too short. Raises InvalidArgument and Denied.
    """
    evidence = payload_object(payload)
    content = payload_text(evidence, "document").encode()
    message, signature = payload_text(evidence, "rsa2048"), payload_text(evidence, "signature")
    if not content or len(content) > MAX_DOCUMENT_BYTES:
        raise malformed_payload(f"`document` is missing or longer than {MAX_DOCUMENT_BYTES} bytes")
    document = _document(content)  # says whose key to use; believed when that key has signed it
    signers = certificates.get(document.region, ())
    note("region", f"{document.region}: {len(signers)} certificates are pinned")
    if not signers:
        raise Denied(
            f"no certificate of the region `{document.region}` is pinned here",
            reason="CLOUD_DOCUMENT_SIGNER",
            hint="put the region's certificate into the directory that `certificates` names and restart the server",
        )
    if message:
        _verify_message(payload_base64(message, "rsa2048"), content, signers)
    else:
        _verify_signature(payload_base64(signature, "signature"), content, signers)
    return document


def load_certificates(directory: Path) -> Certificates:
    """`<region>.pem` files with one or more certificates each. Raises ConfigError."""
    try:
        files = sorted(directory.glob("*.pem"))
        if not files or len(files) > MAX_CERTIFICATE_FILES:
            raise ValueError(f"there should be 1 to {MAX_CERTIFICATE_FILES} files named `<region>.pem`")
        return {file.stem: _certificates(file) for file in files}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot use the certificates in `{directory}`: {error}",
            reason="CLOUD_CERTIFICATES",
            hint="Amazon publishes the RSA-2048 certificate of each region in the EC2 user guide",
        ) from error


def _certificates(file: Path) -> Sequence[x509.Certificate]:
    if _REGION.fullmatch(file.stem) is None:
        raise ValueError(f"`{file.name}` is not named after a region")
    found = x509.load_pem_x509_certificates(file.read_bytes())
    if len(found) > MAX_CERTIFICATES:
        raise ValueError(f"`{file.name}` holds more than {MAX_CERTIFICATES} certificates")
    for certificate in found:
        key = certificate.public_key()
        if not isinstance(key, rsa.RSAPublicKey) or key.key_size < cms.MIN_RSA_BITS:
            raise ValueError(f"`{file.name}` holds no RSA key of at least {cms.MIN_RSA_BITS} bits")
    return found


def _document(content: bytes) -> InstanceDocument:
    document = signed_object(content, max_bytes=MAX_DOCUMENT_BYTES)
    pending = document.get("pendingTime")
    try:
        pending_time = datetime.fromisoformat(pending if isinstance(pending, str) else "")
    except ValueError as error:
        raise malformed_document("`pendingTime` is no time") from error
    if pending_time.tzinfo is None:
        raise malformed_document("`pendingTime` is in no time zone")
    return InstanceDocument(
        account_id=signed_text(document, "accountId", _ACCOUNT),
        region=signed_text(document, "region", _REGION),
        availability_zone=signed_text(document, "availabilityZone", _REGION),
        instance_id=signed_text(document, "instanceId", _INSTANCE),
        image_id=signed_text(document, "imageId", _IMAGE),
        pending_time=pending_time,
    )


def _verify_message(data: bytes, content: bytes, signers: Sequence[x509.Certificate]) -> None:
    """What is signed is compared with the document that is used: a message signs its own content, maybe another's."""
    try:
        message = cms.parse(data)
    except ValueError as error:
        raise malformed_payload(f"`rsa2048` is no signed message: {error}") from error
    why: ValueError | None = None
    for signer in signers:  # certificates in the message count for nothing
        try:
            return message.verify(signer, content)
        except ValueError as error:
            why = error
    raise refused_signature(why) from why


def _verify_signature(signature: bytes, content: bytes, signers: Sequence[x509.Certificate]) -> None:
    if not signature:
        raise malformed_payload("neither `rsa2048` nor `signature` is given")
    for signer in signers:
        key = signer.public_key()
        assert isinstance(key, rsa.RSAPublicKey)  # of the kind that was loaded
        try:
            return key.verify(signature, content, padding.PKCS1v15(), hashes.SHA256())
        except (InvalidSignature, UnsupportedAlgorithm):
            continue
    raise refused_signature("`signature` is not that of a pinned key, and `rsa2048` is missing")
