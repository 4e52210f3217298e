"""RequestAuthentication as Envoy's filter that verifies tokens, without which a rule on their claims is not pushed.

Key sets are written into it: a proxy fetches nothing, and an issuer whose keys are not known has its tokens refused.
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
from policy.envoy_predicates import JWT_KEY

NO_KEYS = (
    '{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"nobody",'
    '"x":"_qf-9dxMg4VFdO14vj7jh-SQonNu3DZ_92U_twA2oXk","y":"EePHwKL_quikUJ1EfyNB5p4HmPoqqAHuttO4bHre7-c"}]}'
)
"""Envoy refuses a set without keys. The point's x is SHA-256 of "nobody has this key 4": nobody knows its logarithm."""


def jwt_filter(rules: Sequence[JwtRule], keys: Mapping[str, str]) -> JwtAuthentication:
    """The filter for the rules that are for a target. A token that is not valid is refused; a request without one goes
    on, without claims. `keys` has the key set, JSON, of each issuer or address whose rule brings none."""
    made = JwtAuthentication()
    if not rules:
        return made
    names = [f"issuer-{number}" for number in range(len(rules))]
    for name, rule in zip(names, rules, strict=True):
        made.providers[name].CopyFrom(_provider(rule, keys))
    everywhere = RequirementRule(requires=_one_or_none(names))
    everywhere.match.prefix = "/"
    made.rules.append(everywhere)
    return made


def _provider(rule: JwtRule, keys: Mapping[str, str]) -> JwtProvider:
    made = JwtProvider(
        issuer=rule.issuer,
        audiences=rule.audiences,
        payload_in_metadata=JWT_KEY,
        forward=rule.forward_original_token,
        forward_payload_header=rule.output_payload_to_header,
    )
    made.local_jwks.inline_string = rule.jwks or keys.get(rule.jwks_uri or rule.issuer) or NO_KEYS
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
