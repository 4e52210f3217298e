"""Tokens of a request, verified against the RequestAuthentication rules of its target: only such claims count.

As the proxy's own filter does it: the first rule that one of its tokens satisfies gives the claims; a request without a
token has none; one with tokens of which no rule is satisfied is refused. JWT-SVIDs of the own and of federated trust
domains need no rule, if they were meant for the target.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, unquote

from policy.attributes import SPACE_DELIMITED
from policy.authentication import JwtRule, RequestAuthentication
from policy.envoy_predicates import JWT_KEY, SVID_KEY
from policy.jwks import ALGORITHMS, NotVerified, check_signature, json_object, keys_of, octets
from policy.model import Target
from policy.workload import is_for

MAX_TOKEN_BYTES = 64 * 1024
SKEW_SECONDS = 60.0
"""What clocks may differ by, as with the proxy's filter."""

SPIFFE = "spiffe://"
_AUTHORIZATION, _BEARER, _ACCESS_TOKEN = "authorization", "Bearer ", "access_token"
_LATEST = 253402300800.0  # the year 10000


@dataclass(frozen=True, slots=True, kw_only=True)
class Vouchers:
    """Whose keys are known. `issuers` has key sets, JSON, by issuer or address, `domains` those of trust domains'
    JWT-SVIDs by the domain's name."""

    issuers: Mapping[str, str] = field(default_factory=dict)
    domains: Mapping[str, str] = field(default_factory=dict)


def rules_for(found: Iterable[RequestAuthentication], target: Target, *, root_namespace: str) -> tuple[JwtRule, ...]:
    """The rules that hold for a target: those of every object that is for it."""
    mine = (o for o in found if is_for(o, target, root_namespace=root_namespace))
    return tuple(dict.fromkeys(rule for o in mine for rule in o.rules))


def claims_of(
    *,
    headers: Mapping[str, str],
    query: str,
    rules: Sequence[JwtRule],
    vouchers: Vouchers,
    audience: str,
    now: datetime,
) -> Mapping[str, Any] | None:
    """The claims of a request's token, None where it has none that counts. `headers` have lower-case names, `query` is
    what follows the path's `?`, `audience` whom a JWT-SVID must be meant for: the target.

    Raises NotVerified for a request that must be refused.
    """
    shown: set[str] = set()
    why: NotVerified | None = None
    for rule in rules:
        token = _only(tokens_in(rule, headers, query))
        if token is None:
            continue
        shown.add(token)
        try:
            return _with_lists(verified(token, rule, vouchers, now), rule)
        except NotVerified as error:
            why = error
    token = _bearer(headers)
    if token is not None and shown <= {token}:
        with suppress(NotVerified):
            return svid_claims(token, vouchers, audience, now)
    if why is not None:
        raise why
    return None


def tokens_in(rule: JwtRule, headers: Mapping[str, str], query: str) -> list[str]:
    """Every token of a request in the places of a rule, each once. Raises NotVerified where one cannot be told."""
    places, params = rule.from_headers, rule.from_params
    if not (places or params or rule.from_cookies):
        places, params = ((_AUTHORIZATION, _BEARER),), (_ACCESS_TOKEN,)
    found: dict[str, None] = {}
    for name, prefix in places:
        if (value := headers.get(name.lower())) is not None:
            found.update(dict.fromkeys(_after(prefix, value, name)))
    if params and query:
        try:
            pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=1000)
        except ValueError:
            raise NotVerified("a query with too many fields") from None
        found.update(dict.fromkeys(value for name, value in pairs if name in params))
    if rule.from_cookies:
        found.update(dict.fromkeys(_cookies(headers.get("cookie", ""), rule.from_cookies)))
    return list(found)


def _after(prefix: str, value: str, name: str) -> list[str]:
    """The token behind a prefix. A header that came several times is joined by commas, of which no token has any."""
    at = value.find(prefix)
    if at < 0:
        return []
    rest = value[at + len(prefix) :]
    if at > 0 or "," in rest or " " in rest or (prefix and prefix in rest):
        raise NotVerified(f"there is more than one token in `{name}`")
    return [rest]


def _cookies(value: str, names: Sequence[str]) -> list[str]:
    pairs = (item.strip().partition("=") for item in value.replace(",", ";").split(";"))
    return [unquote(text).strip('"') for name, _, text in pairs if name in names]


def _only(tokens: Sequence[str]) -> str | None:
    if len(tokens) > 1:
        raise NotVerified("there is more than one token")
    return tokens[0] if tokens else None


def _bearer(headers: Mapping[str, str]) -> str | None:
    value = headers.get(_AUTHORIZATION, "")
    return value[len(_BEARER) :] if value.startswith(_BEARER) else None


@dataclass(frozen=True, slots=True)
class _Token:
    """Taken apart; nothing in it is believed before its signature is checked."""

    algorithm: str
    key_id: str | None
    kind: Any
    claims: dict[str, Any]
    signed: bytes
    signature: bytes


def _take_apart(token: str) -> _Token:
    if len(token) > MAX_TOKEN_BYTES:
        raise NotVerified("the token is too long")
    parts = token.split(".")
    if len(parts) != 3 or not token.isascii():
        raise NotVerified("the token has not three parts")
    header = json_object(octets(parts[0], "the token's header"), "the token's header")
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise NotVerified("the token's algorithm is none that is used")
    if "crit" in header:  # RFC 7515 §4.1.11: extensions that must be understood, and none is known here
        raise NotVerified("the token has critical extensions")
    if key_id is not None and not isinstance(key_id, str):
        raise NotVerified("the token's key id is no text")
    claims = json_object(octets(parts[1], "the token's payload"), "the token's payload")
    signature = octets(parts[2], "the token's signature")
    return _Token(algorithm, key_id, header.get("typ"), claims, token[: token.rindex(".")].encode("ascii"), signature)


def verified(token: str, rule: JwtRule, vouchers: Vouchers, now: datetime) -> dict[str, Any]:
    """The claims of a token that satisfies a rule. Raises NotVerified."""
    parts = _take_apart(token)
    issuer = parts.claims.get("iss")
    if rule.issuer and issuer != rule.issuer:
        raise NotVerified("the token is of another issuer")
    jwks = rule.jwks or vouchers.issuers.get(rule.jwks_uri or rule.issuer)
    if not jwks and rule.issuer.startswith("spiffe://") and not rule.jwks_uri:
        jwks = vouchers.domains.get(rule.issuer.removeprefix("spiffe://"))
    if not jwks:
        raise NotVerified("the issuer's keys are not known")
    _check_signed(parts, jwks)
    _check_times(parts.claims, now)
    if rule.audiences and not _audiences(parts.claims).intersection(rule.audiences):
        raise NotVerified("the token is for another audience")
    return parts.claims


def svid_claims(token: str, vouchers: Vouchers, audience: str, now: datetime) -> dict[str, Any]:
    """The claims of a JWT-SVID (JWT-SVID §4) of a trust domain whose keys are known. Its issuer is that trust domain,
    whatever it says: else one domain would speak for the issuers of others. Raises NotVerified."""
    parts = _take_apart(token)
    subject = parts.claims.get("sub")
    if not isinstance(subject, str) or not subject.startswith("spiffe://"):
        raise NotVerified("the token is no JWT-SVID")
    if parts.kind not in (None, "JWT", "JOSE") or not parts.key_id:  # JWT-SVID §2.2, §2.3
        raise NotVerified("the token is no JWT-SVID")
    jwks = vouchers.domains.get(subject.removeprefix("spiffe://").partition("/")[0])
    if not jwks:
        raise NotVerified("the keys of the token's trust domain are not known")
    _check_signed(parts, jwks)
    _check_times(parts.claims, now, must_expire=True)
    if audience not in _audiences(parts.claims):  # JWT-SVID §3.2
        raise NotVerified("the token is for another audience")
    return of_svid(parts.claims)


def left_claims(left: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The claims that the proxy's filter left, if it did."""
    payload, svid = left.get(JWT_KEY), left.get(SVID_KEY)
    if isinstance(payload, dict):
        return payload
    return of_svid(svid) if isinstance(svid, dict) else None


def of_svid(claims: Mapping[str, Any]) -> dict[str, Any]:
    """The claims of a verified JWT-SVID as policies see them."""
    domain = str(claims.get("sub", "")).removeprefix(SPIFFE).partition("/")[0]
    return {**claims, "iss": f"{SPIFFE}{domain}"}


def _check_signed(parts: _Token, jwks: str) -> None:
    """By a key that the token names, or by any of the right kind where it names none."""
    why = NotVerified("the token's key is not known")
    for key in keys_of(jwks):
        if (parts.key_id is not None and key.id != parts.key_id) or key.algorithm not in ("", parts.algorithm):
            continue
        try:
            return check_signature(parts.algorithm, key.key, parts.signed, parts.signature)
        except NotVerified as error:
            why = error
    raise why


def _check_times(claims: Mapping[str, Any], now: datetime, *, must_expire: bool = False) -> None:
    clock, expiry, begins = now.timestamp(), _time(claims, "exp"), _time(claims, "nbf")
    if expiry is None and must_expire:
        raise NotVerified("the token never expires")
    if expiry is not None and clock >= expiry + SKEW_SECONDS:  # RFC 7519 §4.1.4
        raise NotVerified("the token has expired")
    if begins is not None and clock < begins - SKEW_SECONDS:  # RFC 7519 §4.1.5
        raise NotVerified("the token is not valid yet")


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    if name not in claims:
        return None
    value = claims[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < _LATEST:
        raise NotVerified(f"`{name}` of the token is no point in time")
    return float(value)


def _audiences(claims: Mapping[str, Any]) -> frozenset[str]:
    found = claims.get("aud")
    values = found if isinstance(found, list) else [found]
    return frozenset(value for value in values if isinstance(value, str))


def _with_lists(claims: dict[str, Any], rule: JwtRule) -> dict[str, Any]:
    """Claims whose text is a list of words, as a rule says so."""
    for name in set(rule.space_delimited_claims) - SPACE_DELIMITED:
        if isinstance(value := claims.get(name), str):
            claims[name] = [word for word in value.split(" ") if word]
    return claims
