"""What a proxy's filters are configured with: one workload's policies as the bytes of an extension's configuration."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.extensions.filters.http.jwt_authn.v3.config_pb2 import JwtAuthentication
from google.protobuf.any_pb2 import Any as AnyMessage

from ca.runtime.collector import paused
from policy.envoy import Shares, deny_all, deny_all_connections, http_config, network_config
from policy.envoy_chain import chained
from policy.envoy_jwt import jwt_filter
from policy.envoy_names import Resource
from policy.envoy_snippet import any_of
from policy.envoy_verified import leaving, name_of
from sds.envoy_answers import Found
from sds.policy_read import Matched
from sds.views import BundleForms

TYPE_URL = f"type.googleapis.com/{TypedExtensionConfig.DESCRIPTOR.full_name}"
VERIFIED, TOKENS, POLICY = "burgee.http.verified", "burgee.http.tokens", "burgee.http.policy"
"""Filters within a chain. No route configures others by such names."""

Key = tuple[object, ...]


class Made:
    """The configuration for one name. While it lives, so do the objects that its key tells apart by identity."""

    __slots__ = ("__weakref__", "beside", "found", "kept", "tokens")

    def __init__(self, found: Found, kept: object, tokens: str = "") -> None:
        self.found = found
        self.kept = kept
        self.tokens = tokens
        """A name for what verifies tokens, where the proxy tells it when it asks."""
        self.beside: object = None


def key_of(matched: Matched, resource: Resource, bundles: Sequence[BundleForms], *, lasting: bool) -> Key:
    """The same for workloads with the same policies: what is made for one is made for all of them."""
    target = matched.target
    is_open = target.namespace in matched.mesh.open_namespaces
    key = (str(resource), lasting, id(matched.mesh), target.normalized, is_open, *map(id, matched.policies))
    if not resource.proxy.jwt:
        return key
    keys = tuple((rule, matched.keys.get(rule.jwks_uri or rule.issuer)) for rule in matched.rules)
    return (*key, keys, target.spiffe_id, *map(id, bundles))


def make(
    matched: Matched, resource: Resource, bundles: Sequence[BundleForms], shares: Shares, *, lasting: bool
) -> Made:
    """Takes long for thousands of rules: not on the event loop. What is kept has a share of `shares`, of which the next
    is made faster. `lasting`: it has an end unless it is renewed."""
    with paused():
        return _made(matched, resource, bundles, shares, lasting=lasting)


def _made(
    matched: Matched, resource: Resource, bundles: Sequence[BundleForms], shares: Shares, *, lasting: bool
) -> Made:
    note = ""
    build = http_config if resource.protocol == "http" else network_config
    made = build(matched.target, matched.policies, matched.mesh, resource.proxy, shares)
    if made.unsaid:
        what, first = "asked about" if resource.proxy.ext_authz else "refused", made.unsaid[0]
        note = f"{what}: what only {len(made.unsaid)} rules can decide, such as {first.policy}#{first.rule}"
    filters, name = made.message, ""
    if resource.proxy.jwt:
        tokens = tokens_of(matched, bundles)
        name = name_of(tokens) if resource.proxy.ext_authz else ""
        telling = [(VERIFIED, any_of(leaving(name)))] if name else []
        filters = chained([*telling, (TOKENS, any_of(tokens)), (POLICY, filters)])
    return Made(_found(filters, resource, lasting=lasting, note=note), (matched, bundles, made.shares), name)


def tokens_of(matched: Matched, bundles: Sequence[BundleForms]) -> JwtAuthentication:
    """What verifies tokens. Envoy refuses a set without keys."""
    known = (forms for forms in bundles if forms.bundle.jwt_authorities)
    domains = {forms.trust_domain.name: forms.jwks.decode("utf-8") for forms in known}
    return jwt_filter(matched.rules, matched.keys, domains=domains, audience=matched.target.spiffe_id)


def refusing(resource: Resource, why: str, *, lasting: bool) -> Found:
    """What refuses everything, and is sent rather than nothing: a proxy keeps what it is told nothing new about."""
    filters = deny_all() if resource.protocol == "http" else deny_all_connections()
    return _found(any_of(filters), resource, lasting=lasting, note=f"everything is refused: {why}")


def _found(filters: AnyMessage, resource: Resource, *, lasting: bool, note: str) -> Found:
    made = any_of(TypedExtensionConfig(name=str(resource), typed_config=filters))
    raw: bytes = made.SerializeToString(deterministic=True)
    version = hashlib.sha256(raw).hexdigest()[:16]
    return Found(raw, 0, f"{version}-ttl" if lasting else version, note)
