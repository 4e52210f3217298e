"""Istio's rules for who gets which certificate: by a pod's token for itself, by a node's proxy for pods on its node.

An identity comes from the cluster's API server and from the configuration, never from a CSR.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ca.errors import BurgeeError, Denied, InvalidArgument, Unauthenticated, Unavailable
from ca.identity.exchange import requester
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.identity.text import quote
from ca.ports import Clock
from ca.runtime import log
from ca.runtime.istio_config import ALL_NAMESPACES, REQUESTER, IstioClusterConfig, IstioConfig
from ca.runtime.kube import KubeClient
from ca.runtime.kube_cluster import node_of_pod, open_cluster, outward, pod_of_token
from ca.runtime.notes import note
from ca.runtime.token_review import ReviewedToken, is_token, review
from ca.service.istio_pods import NodePods

NOT_AUTHENTICATED = "request authenticate failure"
NOT_IMPERSONATING = "request impersonation authentication failure"
"""Istio's own words, which its clients log."""

MAX_ID_CHARACTERS = 2_048
MAX_CLUSTER_CHARACTERS = 256
_PATH = re.compile(r"/ns/([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)/sa/([a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?)")

logger = log.get("istio")


@dataclass(frozen=True, slots=True)
class Account:
    """A Kubernetes service account."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who showed a token that holds. `key` tells callers apart, for rates: a pod where the token is bound to one."""

    cluster: str
    token: ReviewedToken

    @property
    def account(self) -> Account:
        return Account(self.token.namespace, self.token.account)

    @property
    def key(self) -> tuple[str, str]:
        return self.cluster, self.token.pod_uid or str(self.account)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entitled:
    """What a caller may have; `requester` stands in records."""

    identity: SpiffeId
    requester: str


class Cluster:
    """One cluster's API, and what the configuration says of it."""

    def __init__(self, name: str, config: IstioClusterConfig, clock: Clock) -> None:
        """Raises ConfigError where its API cannot be known."""
        self.name = name
        self.config = config
        self.api: KubeClient = open_cluster(name, config.kube_config_file, config.timeout_seconds)
        self.pods = NodePods(self.api, clock)

    def admits(self, namespace: str) -> bool:
        return ALL_NAMESPACES in self.config.namespaces or namespace in self.config.namespaces


class IstioAuthority:
    """Decides; signing is the issuer's. `clusters` by the IDs that callers send."""

    def __init__(
        self, *, config: IstioConfig, trust_domain: TrustDomain, clusters: Mapping[str, Cluster], clock: Clock
    ) -> None:
        self._config = config
        self._trust_domain = trust_domain
        self._clusters = clusters
        self._clock = clock
        self._default = config.default_cluster or (next(iter(clusters)) if len(clusters) == 1 else None)

    async def authenticate(self, token: str, cluster_id: str) -> Caller:
        """Raises Unauthenticated, whatever the reason, or Unavailable where the API server cannot be asked."""
        try:
            return await self._reviewed(token, cluster_id)
        except (Denied, InvalidArgument) as error:
            raise Unauthenticated(NOT_AUTHENTICATED, reason=error.reason, hint=error.hint) from error

    async def entitled(self, caller: Caller, impersonated: str) -> Entitled:
        """`impersonated` is empty, or the identity for which a node's proxy asks.

        Raises Denied ISTIO_NAMESPACE, Unauthenticated ISTIO_IMPERSONATION (its cause says why), Unavailable.
        """
        cluster = self._clusters[caller.cluster]
        if not impersonated:
            self._check_namespace(cluster, caller.account.namespace)
            return self._entitled(cluster, caller.account, str(caller.account))
        try:
            account, node = await self._impersonated(cluster, caller, impersonated)
        except BurgeeError as error:
            note("refused", f"{error.reason}: {error.detail}")
            if (told := _told(error, cluster.name, "look for its pods")) is not error:
                raise told from error
            if isinstance(error, Denied | InvalidArgument):
                raise Unauthenticated(NOT_IMPERSONATING, reason="ISTIO_IMPERSONATION") from error
            raise
        return self._entitled(cluster, account, f"{caller.account}@{node}")

    def ttl_seconds(self, asked: int) -> int:
        """Raises InvalidArgument ISTIO_TTL for more than may be asked for."""
        longest = self._config.max_requested_ttl_seconds
        if asked > longest:
            raise InvalidArgument(
                f"requested TTL of {asked} s is greater than the max allowed TTL of {longest} s", reason="ISTIO_TTL"
            )
        return min(asked if asked > 0 else self._config.default_ttl_seconds, self._config.max_ttl_seconds)

    async def _reviewed(self, token: str, cluster_id: str) -> Caller:
        if not token:
            raise Denied("there is no bearer token", reason="ISTIO_TOKEN_MISSING")
        if not is_token(token):
            raise InvalidArgument("the bearer token is no JWT", reason="ISTIO_TOKEN_MALFORMED")
        cluster = self._cluster(cluster_id)
        try:
            found = await review(cluster.api, token, cluster.config.audiences, now=self._clock.now())
        except BurgeeError as error:
            note("refused", f"{error.reason}: {error.detail}")
            if (told := _told(error, cluster.name, "have tokens reviewed")) is error:
                raise
            raise told from error
        return Caller(cluster=cluster.name, token=found)

    def _cluster(self, cluster_id: str) -> Cluster:
        name = cluster_id or self._default
        note("cluster", quote(cluster_id[:MAX_CLUSTER_CHARACTERS]) if cluster_id else f"none said, so {name}")
        cluster = self._clusters.get(name) if name is not None else None
        if cluster is None:
            raise Denied(
                "no cluster of that ID is configured here",
                reason="ISTIO_CLUSTER_UNKNOWN",
                hint="the proxies' cluster ID must be one of `istio.clusters`",
            )
        return cluster

    async def _impersonated(self, cluster: Cluster, caller: Caller, wanted: str) -> tuple[Account, str]:
        """Whose certificate, and the node. All of Istio's conditions, the cheapest first."""
        note("impersonation", f"{caller.account} asks for {quote(wanted[:MAX_ID_CHARACTERS])}")
        if str(caller.account) not in cluster.config.impersonators:
            raise Denied("the caller is none of `impersonators`", reason="ISTIO_IMPERSONATOR")
        account = account_of(wanted, self._trust_domain)
        self._check_namespace(cluster, account.namespace)
        node = node_of_pod(await pod_of_token(cluster.api, caller.token))
        note("node", f"token for {caller.token.node_name or 'any'}, its pod is on {node}")
        if caller.token.node_name not in (None, node):
            raise Denied("the token was made for another node", reason="K8S_NODE_MISMATCH")
        if not await cluster.pods.has(node, account.namespace, account.name):
            raise Denied("no pod of that service account is on the caller's node", reason="ISTIO_NOT_ON_NODE")
        return account, node

    @staticmethod
    def _check_namespace(cluster: Cluster, namespace: str) -> None:
        note("namespace", namespace)
        if not cluster.admits(namespace):
            raise Denied(
                f"namespace {quote(namespace)} of cluster {quote(cluster.name)} gets no certificates here",
                reason="ISTIO_NAMESPACE",
                hint="see `namespaces` of the cluster in the server's `istio.clusters`",
            )

    def _entitled(self, cluster: Cluster, account: Account, asked_by: str) -> Entitled:
        identity = SpiffeId.of(self._trust_domain, f"/ns/{account.namespace}/sa/{account.name}")
        return Entitled(identity=identity, requester=requester(REQUESTER, cluster.name, asked_by))


def account_of(text: str, trust_domain: TrustDomain) -> Account:
    """Whose this SPIFFE ID is, as Istio makes them. Raises InvalidArgument ISTIO_IMPERSONATED_ID, Denied
    ISTIO_TRUST_DOMAIN."""
    if len(text) > MAX_ID_CHARACTERS:
        raise InvalidArgument("the identity is too long", reason="ISTIO_IMPERSONATED_ID")
    try:
        identity = SpiffeId.parse(text)
    except InvalidArgument as error:
        raise InvalidArgument(error.detail, reason="ISTIO_IMPERSONATED_ID") from error
    if identity.trust_domain != trust_domain:
        raise Denied("the identity is of another trust domain", reason="ISTIO_TRUST_DOMAIN")
    match = _PATH.fullmatch(identity.path)
    if match is None:
        raise InvalidArgument("the identity is no service account's", reason="ISTIO_IMPERSONATED_ID")
    return Account(match[1], match[2])


def _told(error: BurgeeError, cluster: str, purpose: str) -> BurgeeError:
    """What a proxy may know; an answer that makes no sense is one to come again for."""
    if isinstance(error, Denied | InvalidArgument | Unavailable):
        return outward(error, cluster, purpose)
    return outward(Unavailable(error.detail, reason=error.reason), cluster, purpose)
