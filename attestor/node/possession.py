"""Proof of possession by nonces, as x509pop and sshpop have it: both sides choose 32 bytes, the node signs their hash.

Neither side alone chooses what is signed: a server cannot have an agent sign what it likes, and an answer to one
challenge answers no other. Everything here that is read came from the other side.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import secrets
from typing import Any, NoReturn

from ca.errors import Denied, InvalidArgument
from ca.identity import strict_json
from ca.runtime.notes import note

NONCE_BYTES = 32
MAX_PAYLOAD_BYTES = 128 * 1024
MAX_ANSWER_BYTES = 32 * 1024


def new_nonce() -> bytes:
    return secrets.token_bytes(NONCE_BYTES)


def signed_digest(challenge: bytes, response: bytes) -> bytes:
    """What the node signs: SHA-256 of the server's nonce and its own."""
    return hashlib.sha256(challenge + response).digest()


def payload_members(payload: bytes) -> dict[str, Any]:
    """What an agent sent first. Raises InvalidArgument ATTESTATION_PAYLOAD."""
    if not payload:
        refuse_payload("there is none")
    try:
        return _members(payload, MAX_PAYLOAD_BYTES)
    except ValueError as error:
        refuse_payload(str(error), error)


def answer_members(answer: bytes) -> dict[str, Any]:
    """An agent's answer to a challenge. Raises InvalidArgument ATTESTATION_ANSWER."""
    try:
        return _members(answer, MAX_ANSWER_BYTES)
    except ValueError as error:
        refuse_answer(str(error), error)


def challenge_members(challenge: bytes) -> dict[str, Any]:
    """A server's challenge. Raises InvalidArgument CHALLENGE_MALFORMED."""
    try:
        return _members(challenge, MAX_ANSWER_BYTES)
    except ValueError as error:
        refuse_challenge(str(error), error)


def octets(value: Any, what: str) -> bytes:
    """Base64 as Go's JSON has it for bytes; one spelling only. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"`{what}` is missing or is no text")
    try:
        found = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"`{what}` is not base64") from error
    if base64.b64encode(found) != value.encode("ascii"):
        raise ValueError(f"`{what}` is not canonical base64")
    return found


def nonce_of(value: Any, what: str) -> bytes:
    """Raises ValueError."""
    found = octets(value, what)
    if len(found) != NONCE_BYTES:
        raise ValueError(f"`{what}` does not have {NONCE_BYTES} bytes")
    return found


def text_of(data: bytes) -> str:
    """Bytes as a member's value."""
    return base64.b64encode(data).decode("ascii")


def wire(members: dict[str, Any]) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode()


def refuse_payload(what: str, cause: Exception | None = None) -> NoReturn:
    raise InvalidArgument(f"malformed attestation payload: {what}", reason="ATTESTATION_PAYLOAD") from cause


def refuse_answer(what: str, cause: Exception | None = None) -> NoReturn:
    raise InvalidArgument(f"malformed answer to the challenge: {what}", reason="ATTESTATION_ANSWER") from cause


def refuse_challenge(what: str, cause: Exception | None = None) -> NoReturn:
    raise InvalidArgument(f"malformed challenge: {what}", reason="CHALLENGE_MALFORMED") from cause


def refuse_possession(cause: Exception | None = None) -> NoReturn:
    note("answer to the challenge", "not signed by the certificate's key over these two nonces")
    raise Denied(
        "the answer to the challenge does not prove possession of the certificate's key", reason="POSSESSION_UNPROVEN"
    ) from cause


def _members(data: bytes, max_bytes: int) -> dict[str, Any]:
    value = strict_json.loads(data, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value
