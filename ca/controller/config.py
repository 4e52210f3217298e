"""The controller's configuration file as strict models; the reference in the documentation is made from them."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from ca.controller.pod_certificates_config import PodCertificatesConfig
from ca.errors import BurgeeError
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.runtime.addresses import split_address
from ca.runtime.config import StrictModel
from ca.runtime.config_reference import print_reference
from ca.runtime.config_values import HostPort

_CLUSTER = re.compile(r"[A-Za-z0-9._-]{1,100}")
_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def _trust_domain(text: str) -> str:
    try:
        return TrustDomain.parse(text).name
    except BurgeeError as error:
        raise ValueError(error.detail) from error


def _cluster(text: str) -> str:
    if _CLUSTER.fullmatch(text) is None or text in (".", ".."):
        raise ValueError(
            "must be 1 to 100 of the characters that a SPIFFE ID's path holds: letters, digits, `.`, `-`, `_`"
        )
    return text


def _prefix(text: str) -> str:
    if _PREFIX.fullmatch(text) is None:
        raise ValueError("must be 1 to 64 letters, digits, `-` and `_`")
    return text


def _named_like(text: str) -> str:
    """The text as part of a prefix; two that differ are two."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", text)[:40]
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _namespace_name(text: str) -> str:
    if _LABEL.fullmatch(text) is None:
        raise ValueError("is no name of a Kubernetes namespace")
    return text


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from error
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]
NamespaceName = Annotated[str, AfterValidator(_namespace_name)]


class ServerConfig(StrictModel):
    """The server whose entries these are. Exactly one of `admin_socket` and `address`."""

    admin_socket: Path | None = None
    """Its admin socket, where both run in one pod or on one machine."""

    address: str | None = None
    """Its `host:port`, to administer it over the network with the SVID in `svid_dir`."""

    svid_dir: Path | None = None
    """Key, chain and bundle of an SVID that may administer, as `caadmin svid watch --write` keeps them; read again when
    they change."""

    @model_validator(mode="after")
    def _one_way(self) -> ServerConfig:
        if (self.admin_socket is None) == (self.address is None):
            raise ValueError("name exactly one of `admin_socket` and `address`")
        if (self.address is None) != (self.svid_dir is None):
            raise ValueError("`address` and `svid_dir` come together")
        if self.address is not None:
            split_address(self.address)
        return self


class LeaseConfig(StrictModel):
    """The Lease by which one of several controllers leads."""

    namespace: NamespaceName
    """Where it is."""

    name: str = "burgee-controller"
    """What it is called. Controllers that are to take turns have one name, others have others."""

    duration_seconds: Annotated[float, Field(ge=1, le=3600)] = 15.0
    """So long after its last sign of life is a leader believed to lead."""

    renew_seconds: Annotated[float, Field(ge=0.1, le=600)] = 2.0
    """How often a leader gives one, and the others look."""

    @model_validator(mode="after")
    def _room(self) -> LeaseConfig:
        if self.duration_seconds < 4 * self.renew_seconds:
            raise ValueError("`duration_seconds` must be at least four times `renew_seconds`")
        return self


class DeletionGuardConfig(StrictModel):
    """What may be deleted at once of entries whose pods were not seen to go. Beyond both numbers none of them is."""

    entries: Annotated[int, Field(ge=0)] = 100
    """So many may go within `window_seconds`, however few there are."""

    share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """So large a part of this controller's entries may go within `window_seconds`; 1 turns the guard off."""

    window_seconds: Annotated[float, Field(ge=1, le=86_400)] = 300.0
    """For how long a deletion counts."""


class LogConfig(StrictModel):
    """How the controller logs."""

    format: Literal["console", "json"] = "console"
    """Shape of a log line."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level to log."""


class ControllerConfig(StrictModel):
    """The controller's configuration."""

    trust_domain: Annotated[str, AfterValidator(_trust_domain)]
    """The trust domain, for example `example.org`."""

    cluster: Annotated[str, AfterValidator(_cluster)]
    """The cluster's name, as the server's `k8s_psat` attestor and its agents have it."""

    cluster_domain: str = "cluster.local"
    """The cluster's domain in DNS: `.ClusterDomain` in templates."""

    server: ServerConfig
    """Where entries are written."""

    kubeconfig: Path | None = None
    """How to reach the Kubernetes API; by default as the service account of the pod in which this runs."""

    class_name: str | None = None
    """Only objects with this `className` count; by default those that have none."""

    watch_classless: bool = False
    """With `class_name`: objects that have none count, too."""

    ignore_namespaces: tuple[Pattern, ...] = ("kube-system", "kube-public", "kube-node-lease")
    """Namespaces whose pods get no entries: regular expressions, each for the whole name."""

    mirror_pods: bool = False
    """Static pods count, too. What the API server has of one, its labels, name and namespace, is its node's word alone:
    who has a node has any identity then that does not depend on a service account."""

    entry_id_prefix: Annotated[str, AfterValidator(_prefix)] | None = None
    """The IDs of this controller's entries begin with it and the cluster's name: two controllers of one cluster need
    two. Default: `k8s`, or `k8s-` and the class's name, with a digest where that has other characters or is long."""

    parent_id: str | None = None
    """The parent of every entry of a pod, such as an alias of the cluster's nodes; by default each pod's own node:
    `/spire/agent/k8s_psat/<cluster>/<UID of the node>`."""

    pod_certificates: PodCertificatesConfig | None = None
    """Certificates for pods without an agent; none by default. See
    [Kubernetes without an agent](../kubernetes-without-agent.md)."""

    lease: LeaseConfig | None = None
    """Leader election; without it this must be the only controller."""

    deletion_guard: DeletionGuardConfig = DeletionGuardConfig()
    """A limit to what one mistake can take away."""

    resync_seconds: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    """How often the server's entries are read again, for what others did to them."""

    metrics_address: HostPort | None = "127.0.0.1:9990"
    """Where /metrics, /live and /ready are served, without authentication; null turns it off."""

    log: LogConfig = LogConfig()
    """Logs."""

    @model_validator(mode="after")
    def _parent(self) -> ControllerConfig:
        if self.parent_id is not None:
            try:
                parent = SpiffeId.parse(self.parent_id)
            except BurgeeError as error:
                raise ValueError(f"`parent_id`: {error.detail}") from error
            if parent.trust_domain != self.domain or not parent.path:
                raise ValueError("`parent_id` must be an ID with a path in `trust_domain`")
        return self

    @property
    def domain(self) -> TrustDomain:
        return TrustDomain(self.trust_domain)

    @property
    def mark(self) -> str:
        """With what the IDs of our entries begin, and no others do: `<prefix>.<cluster>.`, before a UUID."""
        prefix = self.entry_id_prefix
        if prefix is None:
            prefix = f"k8s-{_named_like(self.class_name)}" if self.class_name else "k8s"
        return f"{prefix}.{self.cluster}."


if __name__ == "__main__":
    sys.exit(print_reference(ControllerConfig, "Controller configuration", sys.argv[1:]))
