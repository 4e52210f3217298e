"""The part of the server's configuration that is about policies."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from ca.errors import InvalidArgument
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.runtime.config import StrictModel
from ca.runtime.decision_log_config import DecisionLogConfig

_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_HOST = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?|[0-9a-f:.]+")


def _trust_domain(name: str) -> str:
    try:
        return TrustDomain(name).name
    except InvalidArgument as error:
        raise ValueError(error.detail) from error


def _spiffe_id(text: str) -> str:
    try:
        identity = SpiffeId.parse(text)
    except InvalidArgument as error:
        raise ValueError(error.detail) from error
    if identity.is_trust_domain_id:
        raise ValueError("must have a path: no workload's SPIFFE ID is without")
    return str(identity)


def _namespace(text: str) -> str:
    if _NAMESPACE.fullmatch(text) is None:
        raise ValueError("must be a namespace")
    return text


def _host(text: str) -> str:
    if _HOST.fullmatch(text) is None:
        raise ValueError("must be the name or the address of a host, in lower case and without a port")
    return text


Namespace = Annotated[str, AfterValidator(_namespace)]
ProviderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\z")]


class PolicyLimitsConfig(StrictModel):
    """What the book of policies holds, and bears."""

    max_object_bytes: Annotated[int, Field(ge=1_024, le=16 << 20)] = 1 << 20
    """The largest object, as JSON without spaces."""

    max_bytes: Annotated[int, Field(ge=1_024, le=48 << 20)] = 32 << 20
    """All objects together, as JSON: an agent gets those that it may need in one message."""

    max_objects: Annotated[int, Field(gt=0, le=1_000_000)] = 20_000
    """Objects in the book."""

    max_rules: Annotated[int, Field(gt=0, le=1_000_000)] = 100_000
    """Rules of all AuthorizationPolicies together."""

    max_grants: Annotated[int, Field(gt=0, le=100_000)] = 1_000
    """Grants."""

    writes_per_second_per_caller: Annotated[float, Field(gt=0)] = 20.0
    """Writes of one caller, dry runs included; whoever comes through the Unix socket is exempt."""

    questions_per_second_per_caller: Annotated[float, Field(gt=0)] = 100.0
    """Reads and questions of one caller; an analysis counts as ten."""

    checks_per_second_per_caller: Annotated[float, Field(gt=0)] = 1_000.0
    """Checks (ext_authz) of one caller on the server; an agent's socket has no such limit."""

    burst_seconds: Annotated[float, Field(ge=1, le=600)] = 10.0
    """So many seconds' worth of writes, and of questions, may come at once."""


class PolicyConfig(StrictModel):
    """Who may call whom: what holds for all policies, and who may write them first."""

    admins: tuple[Annotated[str, AfterValidator(_spiffe_id)], ...] = ()
    """SPIFFE IDs that may do everything with policies, also of federated trust domains; so may whoever administers over
    the Unix socket. They give grants to others."""

    root_namespace: Namespace = "istio-system"
    """Policies of this namespace are for the whole mesh."""

    open_namespaces: tuple[Namespace, ...] = ()
    """In these holds Istio's default: a workload that no ALLOW policy is for can be called by anybody. Everywhere else
    it can be called by nobody."""

    trust_domain_aliases: tuple[Annotated[str, AfterValidator(_trust_domain)], ...] = ()
    """Other names of the own trust domain: a principal that is written with one of them means all."""

    ext_authz_providers: tuple[ProviderName, ...] = ()
    """Providers that CUSTOM policies may name. One that is not listed denies."""

    jwks_hosts: tuple[Annotated[str, AfterValidator(_host)], ...] = ()
    """Hosts that a `jwksUri` may name. The server alone fetches from them, and sends agents what it got."""

    jwks_ca_file: Path | None = None
    """PEM of the authorities that certify those hosts; by default the system's."""

    jwks_plain_http: bool = False
    """Fetch from `http://` addresses, too: whoever is between could put keys of their own there."""

    decision_log: DecisionLogConfig = DecisionLogConfig()
    """What the server keeps of the decisions that it makes itself."""

    limits: PolicyLimitsConfig = PolicyLimitsConfig()
    """Limits."""
