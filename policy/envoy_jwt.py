"""RequestAuthentication as Envoy's filter that verifies tokens, without which a rule on their claims is not pushed.

Key sets are written into it: a proxy fetches nothing, and an issuer whose keys are not known has its tokens refused.
JWT-SVIDs of trust domains whose keys are known need no rule, if they were meant for the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from envoy.extensions.filters.http.jwt_authn.v3.config_pb2 import (
    JwtAuthentication,
    JwtProvider,
    JwtRequirement,
    JwtRequirementAndList,
    JwtRequirementOrList,
    RequirementRule,
)
from google.protobuf.empty_pb2 import Empty

from policy.attributes import SPACE_DELIMITED
from policy.authentication import JwtRule
from policy.envoy_predicates import JWT_KEY, SVID_KEY
from policy.jwks import keys_of

SPIFFE = "spiffe://"
NO_KEYS = (
    '{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"nobody",'
    '"x":"_qf-9dxMg4VFdO14vj7jh-SQonNu3DZ_92U_twA2oXk","y":"EePHwKL_quikUJ1EfyNB5p4HmPoqqAHuttO4bHre7-c"}]}'
)
"""Envoy refuses a set without keys. The point's x is SHA-256 of "nobody has this key 4": nobody knows its logarithm."""


def jwt_filter(
    rules: Sequence[JwtRule],
    keys: Mapping[str, str],
    *,
    domains: Mapping[str, str] | None = None,
    audience: str = "",
) -> JwtAuthentication:
    """The filter for the rules that are for a target. A token that is not valid is refused; a request without one goes
    on, without claims. `keys` has the key set, JSON, of each issuer or address whose rule brings none.

    `domains` has the key sets of trust domains by name, and `audience` is whom their JWT-SVIDs must be meant for.
    Without rules nobody asked for tokens, and what is no such JWT-SVID is passed over.
    """
    made = JwtAuthentication()
    svids = dict(sorted((domains or {}).items()))
    if not rules and not svids:
        return made
    known = {**keys, **{f"{SPIFFE}{domain}": jwks for domain, jwks in svids.items() if f"{SPIFFE}{domain}" not in keys}}
    names = [f"issuer-{number}" for number in range(len(rules))]
    for name, rule in zip(names, rules, strict=True):
        made.providers[name].CopyFrom(_provider(rule, known))
    for domain, jwks in svids.items():
        made.providers[domain].CopyFrom(_svids(domain, jwks, audience))
    everywhere = RequirementRule(requires=_required(names, [*svids]))
    everywhere.match.prefix = "/"
    made.rules.append(everywhere)
    return made


def _svids(domain: str, jwks: str, audience: str) -> JwtProvider:
    """JWT-SVIDs of one trust domain (JWT-SVID §4): an issuer they need not have, a time at which they end they must."""
    made = JwtProvider(audiences=[audience], require_expiration=True, forward=True, payload_in_metadata=SVID_KEY)
    made.subjects.prefix = f"{SPIFFE}{domain}/"
    made.local_jwks.inline_string = jwks
    made.normalize_payload_in_metadata.space_delimited_claims.extend(sorted(SPACE_DELIMITED))
    made.from_headers.add(name="Authorization", value_prefix="Bearer ")
    return made


def _required(rules: Sequence[str], svids: Sequence[str]) -> JwtRequirement:
    """A token that a rule's provider verifies, or a JWT-SVID, or none at all."""
    if not svids:
        return _one_or_none(rules)
    each = [JwtRequirement(provider_name=name) for name in (*rules, *svids)]
    rest = _one_or_none(rules) if rules else JwtRequirement(allow_missing_or_failed=Empty())
    return _any([*each, rest])


def _provider(rule: JwtRule, keys: Mapping[str, str]) -> JwtProvider:
    made = JwtProvider(
        issuer=rule.issuer,
        audiences=rule.audiences,
        payload_in_metadata=JWT_KEY,
        forward=rule.forward_original_token,
        forward_payload_header=rule.output_payload_to_header,
    )
    jwks = rule.jwks or keys.get(rule.jwks_uri or rule.issuer) or ""
    # A set that a proxy refuses would leave it with the keys it had, also where the issuer has taken them back.
    made.local_jwks.inline_string = jwks if keys_of(jwks) else NO_KEYS
    delimited = sorted(SPACE_DELIMITED.union(rule.space_delimited_claims))
    made.normalize_payload_in_metadata.space_delimited_claims.extend(delimited)
    for name, prefix in rule.from_headers:
        made.from_headers.add(name=name, value_prefix=prefix)
    made.from_params.extend(rule.from_params)
    made.from_cookies.extend(rule.from_cookies)
    for header, claim in rule.output_claim_to_headers:
        made.claim_to_headers.add(header_name=header, claim_name=claim)
    return made


def _one_or_none(names: Sequence[str]) -> JwtRequirement:
    """A token that one of the providers verifies, or none at all."""
    each = [JwtRequirement(provider_name=name) for name in names]
    missing = JwtRequirement(allow_missing=Empty())
    valid_or_missing = [_any([one, missing]) for one in each]
    if len(each) == 1:
        return valid_or_missing[0]
    return _any([*each, JwtRequirement(requires_all=JwtRequirementAndList(requirements=valid_or_missing))])


def _any(found: Sequence[JwtRequirement]) -> JwtRequirement:
    return JwtRequirement(requires_any=JwtRequirementOrList(requirements=found))
