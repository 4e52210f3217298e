"""The agent's configuration file as strict models; the reference in the documentation is made from them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from ca.errors import BurgeeError
from ca.identity.endpoint import DEFAULT_SOCKET
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.ports import KeyType
from ca.runtime.addresses import MAX_SOCKET_PATH_BYTES, split_address
from ca.runtime.config import StrictModel
from ca.runtime.config_reference import print_reference
from ca.runtime.config_values import HostPort
from sds.limits import LimitsConfig
from sds.policy_config import PolicyConfig

MAX_DEADLINE_SECONDS = 300


class AdminSocketConfig(StrictModel):
    """Who may administer this agent, and where."""

    path: Path | None = Field(default=None, description="The admin socket. Default: `<data_dir>/run/admin.sock`.")
    admin_group: str | None = Field(
        default=None,
        description="A Unix group that may reach the socket: 0660 in a 0750 directory, instead of 0600 in a 0700 one. "
        "By itself it admits nobody: who connects must be in `admin_uids`, or be one of `authorized_delegates`.",
    )
    admin_uids: tuple[int, ...] = Field(
        default=(),
        description="User ids that may use the socket besides root and the agent's own. They must be able to open it: "
        "see `admin_group`.",
    )


class TrustConfig(StrictModel):
    """Where the agent learns which server to believe, the first time. Exactly one source."""

    bundle_file: Path | None = Field(
        default=None, description="A trust bundle on disk: PEM certificates or a SPIFFE bundle (JSON)."
    )
    bundle_url: str | None = Field(
        default=None,
        description="An https URL of a trust bundle (PEM or SPIFFE bundle), checked against the system's web roots. "
        "At most 1 MiB; redirects are not followed.",
    )
    insecure_bootstrap: bool = Field(
        default=False,
        description="Believe the first server that answers with the server's SPIFFE ID. Whoever sits on the network "
        "path can then be your server. Logged as a warning.",
    )

    @field_validator("bundle_url")
    @classmethod
    def _https_only(cls, value: str | None) -> str | None:
        if value is not None and (urlsplit(value).scheme != "https" or not urlsplit(value).hostname):
            raise ValueError("`bundle_url` must be an https URL")
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> TrustConfig:
        named = [self.bundle_file is not None, self.bundle_url is not None, self.insecure_bootstrap]
        if sum(named) != 1:
            raise ValueError("name exactly one of `bundle_file`, `bundle_url` and `insecure_bootstrap: true`")
        return self


class CacheConfig(StrictModel):
    """What the agent keeps so that it can restart while no server answers."""

    persist: Literal["sealed", "none"] = Field(
        default="sealed",
        description="`sealed` keeps entries, workload SVIDs and their keys encrypted in `directory`; `none` keeps "
        "them in memory only. JWT-SVIDs are never kept. The agent's own key and SVID stay sealed in `data_dir`.",
    )
    directory: Path | None = Field(
        default=None,
        description="Where. Default: /run/burgee/cache/… or $XDG_RUNTIME_DIR/burgee/cache/…, "
        "whichever is writable and on tmpfs, so that a reboot empties it; otherwise `<data_dir>/cache`.",
    )


class SdsConfig(StrictModel):
    """Names and shapes of what Envoy is given."""

    default_svid_name: str = Field(default="default", min_length=1, description="The name of the default SVID.")
    default_bundle_name: str = Field(
        default="ROOTCA", min_length=1, description="The name of the trust domain's own bundle."
    )
    default_all_bundles_name: str = Field(
        default="ALL", min_length=1, description="The name of all bundles, the own and the federated ones."
    )
    validator: Literal["spiffe", "trusted_ca"] = Field(
        default="spiffe",
        description="`spiffe` gives Envoy's SPIFFE validator one bundle per trust domain; `trusted_ca` gives plain "
        "certificates, for proxies without that validator.",
    )


class LogConfig(StrictModel):
    """How the agent logs."""

    format: Literal["console", "json"] = Field(default="console", description="Shape of a log line.")
    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level to log.")


class AgentConfig(StrictModel):
    """The agent's configuration."""

    trust_domain: str = Field(description="The trust domain, for example `example.org`.")
    data_dir: Path = Field(description="Where the agent keeps its own sealed key, SVID and trust bundle; made 0700.")
    servers: tuple[str, ...] = Field(
        min_length=1, max_length=64, description="Servers as `host:port`; the first that answers is used."
    )
    workload_socket: Path = Field(
        default=Path(DEFAULT_SOCKET), description="The socket of the Workload API and Envoy SDS."
    )
    admin_socket: AdminSocketConfig = Field(default=AdminSocketConfig(), description="The agent's admin socket.")
    trust: TrustConfig = Field(description="First trust in the server.")
    rebootstrap: Literal["never", "auto", "always"] = Field(
        default="auto",
        description="When the server no longer chains to the bundle this agent holds: `never` stays degraded until "
        "an operator acts; `auto` reads `bundle_file` or `bundle_url` again; `always` does so too and also repeats "
        "`insecure_bootstrap`. Neither brings back an authority that this agent has seen dropped or tainted.",
    )
    node_attestor: dict[str, dict[str, Any]] = Field(
        description="One node attestor by name with its own configuration, for example "
        "`join_token: {token_file: /etc/burgee/token}`."
    )
    workload_attestors: dict[str, dict[str, Any]] = Field(
        default={"unix": {}}, min_length=1, description="Workload attestors by name, each with its own configuration."
    )
    attestor_deadlines_seconds: dict[str, float] = Field(
        default={},
        description="How long each workload attestor, by name, may take for a caller. One that is late is left out of "
        "that attestation: the caller has the selectors of the others. Default: what the attestor says itself, else 5.",
    )
    cache: CacheConfig = Field(default=CacheConfig(), description="What is kept for a restart without a server.")
    authorized_delegates: tuple[str, ...] = Field(
        default=(),
        max_length=64,
        description="SPIFFE IDs of workloads, such as a node's proxy, that may ask for the identities of every other "
        "workload on this node (SPIRE's Delegated Identity API, on the admin socket). They must be able to open that "
        "socket: see `admin_group`.",
    )
    limits: LimitsConfig = Field(default=LimitsConfig(), description="How much of the agent one workload may use.")
    sds: SdsConfig = Field(default=SdsConfig(), description="Envoy's secret discovery service.")
    policy: PolicyConfig = Field(default=PolicyConfig(), description="Policies that are pushed to proxies.")
    key_type: KeyType = Field(
        default=KeyType.EC_P256, description="Type of the keys of this agent and of its workloads."
    )
    metrics_address: HostPort | None = Field(
        default="127.0.0.1:9989", description="Where /metrics, /live and /ready are served; null for nowhere."
    )
    log: LogConfig = Field(default=LogConfig(), description="Logging.")
    attest_interval_seconds: float = Field(
        default=5.0,
        ge=0.1,
        le=3600,
        description="How often an open stream's caller is attested again: so soon does one whose container was "
        "relabelled gain and lose identities.",
    )
    attest_cpu_share: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="How much of one processor core that may take. Where it is not enough for all callers within the "
        "interval, the interval gets longer for all of them alike (`ATTESTATION_BEHIND` in the log).",
    )

    @field_validator("trust_domain")
    @classmethod
    def _trust_domain(cls, value: str) -> str:
        try:
            return TrustDomain.parse(value).name
        except BurgeeError as error:
            raise ValueError(error.detail) from error

    @field_validator("servers")
    @classmethod
    def _servers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for server in value:
            split_address(server)
        return value

    @field_validator("authorized_delegates")
    @classmethod
    def _delegates(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for delegate in value:
            try:
                parsed = SpiffeId.parse(delegate)
            except BurgeeError as error:
                raise ValueError(error.detail) from error
            if not parsed.path:
                raise ValueError(f"`{delegate}` is a trust domain and no workload")
        return value

    @field_validator("workload_socket")
    @classmethod
    def _socket_path(cls, value: Path) -> Path:
        if len(str(value).encode()) > MAX_SOCKET_PATH_BYTES:
            raise ValueError(f"a Unix socket's path holds at most {MAX_SOCKET_PATH_BYTES} bytes")
        return value

    @field_validator("node_attestor")
    @classmethod
    def _one_node_attestor(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if len(value) != 1:
            raise ValueError("name exactly one node attestor")
        return value

    @model_validator(mode="after")
    def _known_deadlines(self) -> AgentConfig:
        for name, seconds in self.attestor_deadlines_seconds.items():
            if name not in self.workload_attestors:
                raise ValueError(f"`attestor_deadlines_seconds` names `{name}`, which is not in `workload_attestors`")
            if not 0 < seconds <= MAX_DEADLINE_SECONDS:
                raise ValueError(f"the deadline of `{name}` must be above 0 and at most {MAX_DEADLINE_SECONDS} seconds")
        return self

    @property
    def domain(self) -> TrustDomain:
        """The trust domain as a value."""
        return TrustDomain(self.trust_domain)

    @property
    def delegates(self) -> frozenset[SpiffeId]:
        """`authorized_delegates` as values."""
        return frozenset(SpiffeId.parse(delegate) for delegate in self.authorized_delegates)

    @property
    def admin_socket_path(self) -> Path:
        """The admin socket with its default filled in."""
        return self.admin_socket.path or self.data_dir / "run" / "admin.sock"


if __name__ == "__main__":
    sys.exit(print_reference(AgentConfig, "Agent configuration", sys.argv[1:]))
