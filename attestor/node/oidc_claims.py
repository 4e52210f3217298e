"""What a verified token's claims become: selectors, and the values of an agent path. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from attestor.node.foreign_jwt import TokenFault
from ca.identity.selector import Selector
from ca.identity.text import quote
from ca.runtime.notes import note

KIND = "oidc"
MAX_VALUE_CHARACTERS = 512
MAX_SELECTORS = 64
HASH_CHARACTERS = 40


def subject_of(claims: Mapping[str, Any]) -> str:
    """`sub` is mandatory (OpenID Connect Core §2). Raises TokenFault."""
    value = claims.get("sub")
    if not isinstance(value, str) or not _usable(value):
        raise TokenFault("`sub` is missing, not printable or too long", reason="TOKEN_CLAIM")
    return value


def check_required(claims: Mapping[str, Any], required: Mapping[str, str | tuple[str, ...]]) -> None:
    """Raises TokenFault for the first claim that has not the value, or one of the values, that it must have."""
    for name, wanted in required.items():
        allowed = {wanted} if isinstance(wanted, str) else set(wanted)
        if not allowed & set(texts(claims.get(name))):
            shown, among = quote(str(claims.get(name))), " or ".join(map(quote, sorted(allowed)))
            raise TokenFault(f"claim {quote(name)} is {shown}, wanted {among}", reason="TOKEN_CLAIM")


def selectors_of(issuer: str, claims: Mapping[str, Any], allowed: Iterable[str]) -> frozenset[Selector]:
    """`oidc:issuer:…`, `oidc:sub:…` and one `oidc:claim:<name>:<value>` for each value of the `allowed` claims."""
    found = [f"issuer:{issuer}", f"sub:{subject_of(claims)}"]
    for name in allowed:
        for value in texts(claims.get(name)):
            if _usable(value):
                found.append(f"claim:{name}:{value}")
            else:
                note("claim left out", f"`{name}`: not printable or longer than {MAX_VALUE_CHARACTERS} characters")
    if len(found) > MAX_SELECTORS:
        raise TokenFault(f"its claims make more than {MAX_SELECTORS} selectors", reason="TOKEN_CLAIM")
    return frozenset(Selector(KIND, value) for value in found)


def texts(value: object) -> list[str]:
    """A claim's values as text: what is a string, a number without fraction, or a truth value; a list's members."""
    if isinstance(value, list):
        return [text for member in value if not isinstance(member, list) for text in texts(member)]
    if isinstance(value, bool):
        return ["true" if value else "false"]
    return [str(value)] if isinstance(value, str | int) else []


def evidence_of(issuer: str, claims: Mapping[str, Any], signing_input: bytes) -> str:
    """What serves once: the token by its `jti`, which its issuer gives once (RFC 7519 §4.1.7), else by what is signed.

    Not by its whole text: an ECDSA signature has a twin that verifies as well.
    """
    jti = claims.get("jti")
    if isinstance(jti, str) and jti:
        return digest(issuer, "jti", jti)
    return digest(issuer, "signed", hashlib.sha256(signing_input).hexdigest())


def path_values(issuer: str, address: str, claims: Mapping[str, Any], evidence: str) -> dict[str, str]:
    """The fields of an agent path template."""
    subject = subject_of(claims)
    values = {f"Claims.{name}": found[0] for name, value in claims.items() if len(found := texts(value)) == 1}
    return {
        **values,
        "PluginName": KIND,
        "IssuerName": issuer,
        "TokenHash": evidence[:HASH_CHARACTERS],
        "SubjectHash": digest(address, "sub", subject)[:HASH_CHARACTERS],
        "Subject": subject,
    }


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _usable(text: str) -> bool:
    return 0 < len(text) <= MAX_VALUE_CHARACTERS and text.isprintable()
