"""Evidence from the wire, taken apart strictly: JSON objects with members of the right type, and base64."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from ca.errors import Denied, InvalidArgument
from ca.identity import strict_json
from ca.identity.text import quote
from ca.runtime.notes import note

MAX_PAYLOAD_BYTES = 128 * 1024
_WHITESPACE = re.compile(r"[ \t\r\n]")


def payload_object(payload: bytes) -> dict[str, Any]:
    """What an agent sent, as a JSON object. Raises InvalidArgument ATTESTATION_PAYLOAD."""
    if not payload:
        raise malformed_payload("missing attestation payload")
    try:
        value = strict_json.loads(payload, max_bytes=MAX_PAYLOAD_BYTES)
    except ValueError as error:
        raise malformed_payload(f"malformed attestation payload: {error}") from error
    if not isinstance(value, dict):
        raise malformed_payload("malformed attestation payload: no JSON object")
    return value


def payload_text(payload: Mapping[str, Any], name: str) -> str:
    """A text of the payload; empty where it is missing. Raises InvalidArgument ATTESTATION_PAYLOAD."""
    value = payload.get(name, "")
    if not isinstance(value, str):
        raise malformed_payload(f"malformed attestation payload: `{name}` is no text")
    return value


def payload_base64(text: str, name: str) -> bytes:
    """Base64 with line feeds, as metadata services give it. Raises InvalidArgument ATTESTATION_PAYLOAD."""
    try:
        return base64.b64decode(_WHITESPACE.sub("", text), validate=True)
    except (binascii.Error, ValueError) as error:
        raise malformed_payload(f"malformed attestation payload: `{name}` is not base64") from error


def malformed_payload(detail: str) -> InvalidArgument:
    return InvalidArgument(detail, reason="ATTESTATION_PAYLOAD")


def signed_object(content: bytes, *, max_bytes: int) -> dict[str, Any]:
    """The JSON object that was signed. Raises InvalidArgument CLOUD_DOCUMENT_MALFORMED."""
    try:
        value = strict_json.loads(content, max_bytes=max_bytes)
    except ValueError as error:
        raise malformed_document(f"not the JSON that is expected: {error}") from error
    if not isinstance(value, dict):
        raise malformed_document("no JSON object")
    return value


def signed_text(document: Mapping[str, Any], name: str, form: re.Pattern[str]) -> str:
    """A member of a signed document that must have this form. Raises InvalidArgument CLOUD_DOCUMENT_MALFORMED."""
    value = document.get(name)
    if not isinstance(value, str) or form.fullmatch(value) is None:
        raise malformed_document(f"`{name}` is missing or has another form")
    return value


def malformed_document(detail: str) -> InvalidArgument:
    note("document", detail)
    return InvalidArgument(f"the cloud's document is malformed: {detail}", reason="CLOUD_DOCUMENT_MALFORMED")


def refused_signature(why: object) -> Denied:
    """Why it was refused is for administrators."""
    note("document's signature", why)
    return Denied(
        "the signature of the cloud's document proves nothing here",
        reason="CLOUD_DOCUMENT_SIGNATURE",
        hint="what failed is for administrators: `caadmin explain agent` says it",
    )


def forbidden_account(kind: str, value: str) -> Denied:
    """`kind` is what the vendor calls whom the machine belongs to."""
    note(kind, f"{quote(value)} is not on the list")
    return Denied(
        f"nodes of this {kind} are not admitted here",
        reason="CLOUD_ACCOUNT_FORBIDDEN",
        hint=f"the server's configuration lists each {kind} whose nodes may attest",
    )
