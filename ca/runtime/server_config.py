"""The server's configuration; `python -m ca.runtime.server_config table|schema` prints its manual."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints

from ca.errors import InvalidArgument
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.ports import KeyType
from ca.runtime.config import StrictModel
from ca.runtime.config_reference import print_reference
from ca.runtime.config_values import HostPort
from ca.runtime.istio_config import IstioConfig
from ca.runtime.policy_config import PolicyConfig


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


def _default_attestors() -> dict[str, dict[str, Any]]:
    return {"join_token": {}}


TrustDomainName = Annotated[str, AfterValidator(_trust_domain)]
SpiffeIdText = Annotated[str, AfterValidator(_spiffe_id)]
PublisherName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?\z")]
Seconds = Annotated[int, Field(gt=0, le=10 * 366 * 86400)]
Wait = Annotated[int, Field(ge=0, le=7 * 86400)]
Port = Annotated[int, Field(ge=0, le=65535)]


class AdminSocketConfig(StrictModel):
    """Who may administer over the Unix socket. root and the server's own user always may."""

    path: Path | None = None
    """The socket; by default `run/admin.sock` in the data directory. Its directory becomes private (0700)."""

    admin_group: str | None = None
    """A group that may reach the socket: it becomes 0660 in a 0750 directory of that group. By itself it admits nobody:
    who connects must be in `admin_uids` as well."""

    admin_uids: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """User ids that may use the socket besides root and the server's own. They must be able to open it: see
    `admin_group`."""


class StoreConfig(StrictModel):
    """Where entries, agents and records are kept."""

    url: str | None = None
    """`sqlite+aiosqlite:///path` or `postgresql+psycopg://…`; by default `store.sqlite3` in the data directory."""


class KeysConfig(StrictModel):
    """Where private keys are kept."""

    plugin: str = "disk"
    """Name of a key manager plugin; `disk`, `memory`, `pkcs11` and `vault_transit` come with Burgee."""

    config: dict[str, Any] = Field(default_factory=dict)
    """The plugin's own configuration."""


class UpstreamConfig(StrictModel):
    """The authority above this server's: its root is what the trust domain believes in, and this server's X.509
    authorities are intermediates below it. Without one the server signs its own roots."""

    plugin: str
    """Name of an upstream authority plugin."""

    config: dict[str, Any] = Field(default_factory=dict)
    """The plugin's own configuration."""


class BundlePublisherConfig(StrictModel):
    """One place where the server keeps a copy of its trust bundle."""

    plugin: str
    """Name of a bundle publisher plugin; `file`, `k8s_configmap` and `cluster_trust_bundle` come with Burgee."""

    config: dict[str, Any] = Field(default_factory=dict)
    """The plugin's own configuration."""


class LogConfig(StrictModel):
    """Logs go to standard error."""

    format: Literal["console", "json"] = "console"
    """For people or for programs."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe level that is written."""


class AuditConfig(StrictModel):
    """Administrative calls that change something, mint, or were denied are always recorded."""

    reads: bool = False
    """Record calls that only read, too."""


class ConsumerWaitsConfig(StrictModel):
    """A new authority signs nothing before these had their time: they are told of it, and cannot say that they have it.
    Only those that there are are waited for. Burgee's agents and their Envoys acknowledge, and need no time."""

    workloads_seconds: Wait = 10
    """Streams of the Workload API. Agents tell them at once."""

    polling_agents_seconds: Wait = 30
    """Agents that ask every few seconds, as SPIRE's do, and whatever is behind them."""

    files_seconds: Wait = 60
    """Readers of `bundle_file` and of what `bundle_publishers` publish; a kubelet takes a minute to renew what pods
    have mounted. 0 if only new agents read it."""

    downstream_seconds: Wait = 120
    """Servers below this one, and what is behind them."""

    istio_proxies_seconds: Wait | None = None
    """Proxies that have a certificate by `istio`: they learn of roots with the next one. By default
    `istio.max_ttl_seconds`; half of it is enough for proxies that renew then."""


class PruneConfig(StrictModel):
    """How long what is over is kept. A pass runs soon after the start and then regularly."""

    every_seconds: Seconds = 3_600
    """Time between two passes."""

    agents_expired_for_seconds: Seconds | None = 2_592_000
    """Agents are forgotten when their SVID expired so long ago (30 days); null keeps them. Banned ones always stay."""

    first_use_agents: bool = False
    """Also forget agents that were trusted on first use: their evidence could then be used once more, by anybody."""

    entries_expired_for_seconds: Annotated[int, Field(ge=0, le=10 * 366 * 86400)] = 0
    """Entries are deleted when their `expires_at` passed so long ago."""

    issuance_retention_seconds: Seconds = 604_800
    """Issuance records are kept so long after the expiry of what was issued (7 days)."""

    audit_retention_seconds: Seconds = 7_776_000
    """Audit records are kept so long (90 days)."""

    changes_kept: Annotated[int, Field(ge=1_000)] = 100_000
    """Changes that an agent may sleep through and still resume; a longer sleep costs it a snapshot."""

    policy_revisions_kept: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000
    """Revisions of policies that can be shown and rolled back to."""


class ExchangeConfig(StrictModel):
    """SVIDs for tokens of foreign issuers, without an agent (`caadmin exchange`). Whose tokens: see the node attestor
    `oidc`."""

    max_ttl_seconds: Annotated[int, Field(ge=60, le=3_600)] = 600
    """The longest life of such an SVID; an entry or a request may want less."""


class LimitsConfig(StrictModel):
    """What the server bears before it refuses."""

    max_connections: Annotated[int, Field(gt=0)] = 10_000
    """Open connections over all listeners."""

    max_connections_per_address: Annotated[int, Field(gt=0)] = 2_000
    """Open connections from one IP address."""

    max_connections_per_uid: Annotated[int, Field(gt=0)] = 4_000
    """Open connections from one user id on the Unix socket."""

    max_message_bytes: Annotated[int, Field(ge=64 << 10, le=256 << 20)] = 4 << 20
    """The largest request that is read."""

    handshake_timeout_seconds: Annotated[float, Field(gt=0, le=300)] = 10.0
    """Time for a TLS handshake, and for the first bytes after it."""

    max_connection_age_seconds: Seconds = 180
    """After this age a connection is asked to reconnect (open streams may end first), so that it is verified anew."""

    attestations_per_second_per_address: Annotated[float, Field(gt=0)] = 100.0
    """Attestations from one IP address, or IPv6 /64. What exceeds a rate is refused with a time to come again."""

    exchanges_per_second_per_address: Annotated[float, Field(gt=0)] = 10.0
    """Tokens that are exchanged for SVIDs from one IP address, or IPv6 /64."""

    x509_svids_per_second_per_agent: Annotated[float, Field(gt=0)] = 500.0
    """X.509-SVIDs of one agent's workloads, and its own renewals; counted are CSRs, not calls."""

    jwt_svids_per_second_per_agent: Annotated[float, Field(gt=0)] = 500.0
    """JWT-SVIDs of one agent's workloads."""

    signatures_per_second_per_address: Annotated[float, Field(gt=0)] = 5_000.0
    """X.509- and JWT-SVIDs for all agents behind one IP address."""

    status_posts_per_second_per_agent: Annotated[float, Field(gt=0)] = 1.0
    """Calls of PostStatus by one agent."""

    burst_seconds: Annotated[float, Field(ge=1, le=600)] = 10.0
    """So many seconds' worth of each rate may come at once."""

    streams_per_agent: Annotated[int, Field(gt=0)] = 4
    """Push streams of one agent: for one more its oldest is ended, which is the likeliest to be dead. An agent needs
    one. Twice as many may be open while some of them begin or end; more are refused."""

    streams_per_address: Annotated[int, Field(gt=0)] = 2_000
    """Open push streams from one IP address."""

    admission_running: Annotated[int, Field(gt=0)] = 64
    """Attestations and calls that sign at the same time; each 25 CSRs of a call count as one more."""

    admission_waiting: Annotated[int, Field(ge=0)] = 256
    """As many may wait, those whose own SVID ends first in front, attestations last; the rest is told to come again."""


class ServerConfig(StrictModel):
    """Configuration of the Burgee server. Unknown keys are errors; units are in the names."""

    trust_domain: TrustDomainName
    """The trust domain whose authority this server is, such as `example.org`."""

    data_dir: Path
    """Everything the server keeps; created as a private directory (0700)."""

    bind_address: str = "0.0.0.0"  # noqa: S104 (agents come from other machines)
    """Address that agents connect to."""

    bind_port: Port = 8081
    """Port that agents connect to; 0 takes a free one."""

    admin_socket: AdminSocketConfig = AdminSocketConfig()
    """Administration over a Unix socket."""

    admin_ids: tuple[SpiffeIdText, ...] = ()
    """SPIFFE IDs that may administer over the network, also of federated trust domains, as `admin` entries may."""

    store: StoreConfig = StoreConfig()
    """Persistent state."""

    keys: KeysConfig = KeysConfig()
    """Private keys of the authorities."""

    upstream: UpstreamConfig | None = None
    """The authority above this server's; none by default."""

    ca_ttl_seconds: Seconds = 86_400
    """Lifetime of X.509 and JWT authorities."""

    consumer_waits: ConsumerWaitsConfig = ConsumerWaitsConfig()
    """How long a rotation waits for those who cannot acknowledge."""

    x509_svid_ttl_seconds: Seconds = 3_600
    """Lifetime of X.509-SVIDs whose entry names none."""

    jwt_svid_ttl_seconds: Seconds = 300
    """Lifetime of JWT-SVIDs whose entry names none."""

    agent_ttl_seconds: Seconds = 3_600
    """Lifetime of agents' SVIDs."""

    backdate_seconds: Annotated[int, Field(ge=0, le=3600)] = 10
    """How far notBefore lies in the past, for clocks that are behind."""

    ca_key_type: KeyType = KeyType.EC_P256
    """Key type of X.509 authorities."""

    jwt_key_type: KeyType = KeyType.EC_P256
    """Key type of JWT authorities."""

    jwt_issuer: str | None = None
    """The `iss` claim of JWT-SVIDs; none by default."""

    node_attestors: dict[str, dict[str, Any]] = Field(default_factory=_default_attestors)
    """Node attestors that agents may use, each with its own configuration."""

    exchange: ExchangeConfig = ExchangeConfig()
    """SVIDs without an agent."""

    istio: IstioConfig | None = None
    """Certificates for the proxies of an Istio mesh; none by default. See [With Istio](../with-istio.md)."""

    policy: PolicyConfig = PolicyConfig()
    """Policies."""

    push_service: bool = True
    """Push changes and policies to Burgee's agents at once; without it they poll every 5 s, and get no policies."""

    bundle_file: Path | None = None
    """The server keeps its trust bundle here as PEM, for the first trust of agents; by default nowhere."""

    bundle_publishers: dict[PublisherName, BundlePublisherConfig] = Field(default_factory=dict)
    """Copies of the trust bundle where others look for one, by names of your choice. A copy that cannot be written is
    a warning and is tried again; the server works without."""

    metrics_address: HostPort | None = "127.0.0.1:9988"
    """Where /metrics, /live and /ready are served, without authentication; null turns it off."""

    log: LogConfig = LogConfig()
    """Logs."""

    audit: AuditConfig = AuditConfig()
    """The record of administrative calls."""

    prune: PruneConfig = PruneConfig()
    """What is forgotten, and when."""

    stop_grace_seconds: Annotated[float, Field(ge=0, le=300)] = 5.0
    """What calls under way get to finish when the server stops."""

    limits: LimitsConfig = LimitsConfig()
    """Limits."""

    @property
    def admin_socket_path(self) -> Path:
        """The admin socket, with its default filled in."""
        return self.admin_socket.path or self.data_dir / "run" / "admin.sock"

    @property
    def store_url(self) -> str:
        """The store's URL, with its default filled in."""
        return self.store.url or f"sqlite+aiosqlite:///{self.data_dir / 'store.sqlite3'}"


if __name__ == "__main__":
    sys.exit(print_reference(ServerConfig, "Server configuration", sys.argv[1:]))
