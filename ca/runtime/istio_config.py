"""The part of the server's configuration that is about Istio."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from ca.errors import InvalidArgument
from ca.identity.dns_name import check_dns_name
from ca.runtime.config import StrictModel

ALL_NAMESPACES = "*"
REQUESTER = "istio"
OF_PROXIES = f"{REQUESTER}:"
"""How records of what proxies got begin, in place of an agent."""
DAY_SECONDS = 86_400

_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_ACCOUNT = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?/[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def _namespace(text: str) -> str:
    if text != ALL_NAMESPACES and _NAMESPACE.fullmatch(text) is None:
        raise ValueError("must be a namespace, or `*` for all of them")
    return text


def _account(text: str) -> str:
    if _ACCOUNT.fullmatch(text) is None:
        raise ValueError("must be `namespace/service-account`")
    return text


def _dns_name(text: str) -> str:
    try:
        check_dns_name(text)
    except InvalidArgument as error:
        raise ValueError(error.detail) from error
    return text


ClusterId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,252}\z")]
Rate = Annotated[float, Field(gt=0)]
Ttl = Annotated[int, Field(ge=60, le=3_660 * DAY_SECONDS)]


class IstioClusterConfig(StrictModel):
    """One cluster whose service accounts get certificates, under the ID that its mesh gives it."""

    kube_config_file: Path | None = None
    """A kubeconfig whose current context leads to the cluster's API server. Without one the server runs in a pod of
    this cluster and comes as its service account."""

    audiences: tuple[Annotated[str, StringConstraints(min_length=1, max_length=1024)], ...] = Field(
        default=("istio-ca",), min_length=1
    )
    """A service account's token must be for one of these."""

    namespaces: tuple[Annotated[str, AfterValidator(_namespace)], ...] = Field(min_length=1)
    """The namespaces whose service accounts get certificates; `*` stands for all of them."""

    impersonators: tuple[Annotated[str, AfterValidator(_account)], ...] = ()
    """Service accounts, each `namespace/service-account`, that may ask for those of the pods on their own pod's node:
    ztunnel's."""

    publish_root: bool = False
    """Keep the trust bundle in the ConfigMap `istio-ca-root-cert` of each of `namespaces`, where proxies look for it.
    One that somebody else made is left alone."""

    timeout_seconds: Annotated[float, Field(gt=0, le=30)] = 5.0
    """For each question to the API server."""


class IstioConfig(StrictModel):
    """Certificates for the proxies of an Istio mesh, as its own CA makes them: who has a service account token of a pod
    is `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, without an entry and without an agent."""

    bind_address: str = "0.0.0.0"  # noqa: S104 (proxies come from other machines)
    """Address of the listener for proxies."""

    bind_port: Annotated[int, Field(ge=0, le=65535)] = 15012
    """Its port; 0 takes a free one."""

    dns_names: tuple[Annotated[str, AfterValidator(_dns_name)], ...] = Field(min_length=1)
    """The names by which proxies call the listener (`caAddress`): its certificate is for them."""

    clusters: dict[ClusterId, IstioClusterConfig] = Field(min_length=1)
    """The clusters, by the IDs that their proxies send: Istio's `multiCluster.clusterName`, by default `Kubernetes`."""

    default_cluster: str | None = None
    """The cluster of proxies that send no ID. Where there is one cluster, it is that one."""

    default_ttl_seconds: Ttl = DAY_SECONDS
    """What a request gets that names no lifetime, as far as `max_ttl_seconds` goes."""

    max_requested_ttl_seconds: Ttl = 90 * DAY_SECONDS
    """Requests for more are refused, as Istio's own CA does."""

    max_ttl_seconds: Ttl = 3_600
    """What is granted at most, whatever was asked for: proxies ask for a day and renew at half of what they got."""

    requests_per_second_per_address: Rate = 200.0
    """From one IP address, or IPv6 /64; each costs a question to an API server."""

    requests_per_second_per_caller: Rate = 50.0
    """Of one pod, or of one service account whose token is bound to none. A ztunnel asks for all pods of its node."""

    max_connections: Annotated[int, Field(gt=0)] = 4_000
    """Open connections of proxies."""

    max_connections_per_address: Annotated[int, Field(gt=0)] = 1_000
    """Open connections from one IP address."""

    @property
    def publishes_roots(self) -> bool:
        """In any cluster."""
        return any(cluster.publish_root for cluster in self.clusters.values())

    @model_validator(mode="after")
    def _default_is_there(self) -> Self:
        if self.default_cluster is not None and self.default_cluster not in self.clusters:
            raise ValueError("`default_cluster` is none of `clusters`")
        return self
