"""Azure's attested documents: signed JSON with the server's nonce in it."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from attestor.node.cloud import cms
from attestor.node.cloud.azure_chain import SignerChain
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
from ca.errors import Denied
from ca.runtime.notes import note

MAX_DOCUMENT_BYTES = 16 * 1024
SKEW = timedelta(seconds=60)
_TIME_FORMAT = "%m/%d/%y %H:%M:%S %z"  # such as `11/28/18 00:16:17 -0000`
_UUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_NONCE = re.compile(r"[A-Za-z0-9]{1,64}")
_DOMAIN = re.compile(r"[A-Za-z0-9.-]{1,253}")
_SCALE_SET = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What an agent answered. `tenant_domain` and `scale_set` are its own words: they say where to look."""

    message: cms.SignedMessage
    content: bytes
    tenant_domain: str
    scale_set: str | None


@dataclass(frozen=True, kw_only=True)
class AttestedDocument:
    """What Azure signed."""

    vm_id: str
    subscription_id: str


def evidence_of(answer: bytes) -> Evidence:
    """`{"document": {"encoding", "signature"}, "metadata": {"agentDomain", "vmssName"}}`, as SPIRE's.

    Raises InvalidArgument ATTESTATION_PAYLOAD.
    """
    payload = payload_object(answer)
    document, metadata = _object(payload, "document"), _object(payload, "metadata")
    if payload_text(document, "encoding") != "pkcs7":
        raise malformed_payload("malformed attestation payload: `encoding` is not `pkcs7`")
    try:
        message = cms.parse(payload_base64(payload_text(document, "signature"), "signature"))
    except ValueError as error:
        raise malformed_payload(f"`signature` is no signed message: {error}") from error
    if message.content is None:
        raise malformed_payload("`signature` holds no document")
    domain = payload_text(metadata, "agentDomain")
    scale_set = None if metadata.get("vmssName") is None else payload_text(metadata, "vmssName")
    if _DOMAIN.fullmatch(domain) is None or (scale_set is not None and _SCALE_SET.fullmatch(scale_set) is None):
        raise malformed_payload("malformed attestation payload: `agentDomain` or `vmssName` cannot be one")
    return Evidence(message=message, content=message.content, tenant_domain=domain.lower(), scale_set=scale_set)


async def verified_document(evidence: Evidence, chain: SignerChain, nonce: str, now: datetime) -> AttestedDocument:
    """Whose signature, whether it is over our nonce, and whether it is of now. Raises InvalidArgument and Denied."""
    try:
        signer = evidence.message.own_signer()
        evidence.message.verify(signer, evidence.content)
    except ValueError as error:
        raise refused_signature(error) from error
    await chain.verify(signer, evidence.message.certificates, now)
    document = signed_object(evidence.content, max_bytes=MAX_DOCUMENT_BYTES)
    if not hmac.compare_digest(signed_text(document, "nonce", _NONCE), nonce):
        note("nonce", "the document has another than this server's")
        raise Denied("the document was not made for this attestation", reason="CLOUD_DOCUMENT_NONCE")
    _check_times(_member(document, "timeStamp"), now)
    return AttestedDocument(
        vm_id=signed_text(document, "vmId", _UUID), subscription_id=signed_text(document, "subscriptionId", _UUID)
    )


def _check_times(stamp: Mapping[str, Any], now: datetime) -> None:
    created, expires = _time(stamp, "createdOn"), _time(stamp, "expiresOn")
    note("document", f"created {created.isoformat()}, expires {expires.isoformat()}, the clock here says {now}")
    if not created - SKEW <= now < expires + SKEW:
        raise Denied("the document is not of now", reason="CLOUD_DOCUMENT_EXPIRED", hint="compare the clocks")


def _time(stamp: Mapping[str, Any], name: str) -> datetime:
    value = stamp.get(name)
    try:
        return datetime.strptime(value if isinstance(value, str) else "", _TIME_FORMAT)
    except ValueError as error:
        raise malformed_document(f"`{name}` is no time") from error


def _object(payload: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = payload.get(name)
    if not isinstance(value, dict):
        raise malformed_payload(f"malformed attestation payload: `{name}` is no JSON object")
    return value


def _member(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name)
    if not isinstance(value, dict):
        raise malformed_document(f"`{name}` is no JSON object")
    return value
