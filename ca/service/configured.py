"""What becomes of the server's configuration: its check, what a reload may change, and the settings of each part."""

from __future__ import annotations

import grp
from datetime import datetime, timedelta

from ca.authority.ttls import check_ttls, longest_svid_ttl
from ca.errors import ConfigError
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.ports import (
    AuthorityHost,
    BundlePublisher,
    BundlePublisherPlugin,
    KeyManager,
    KeyManagerPlugin,
    NodeAttestorPlugin,
    UpstreamAuthorityPlugin,
)
from ca.runtime import plugins
from ca.runtime.config import from_values
from ca.runtime.gate import GateLimits
from ca.runtime.server_config import LimitsConfig, PruneConfig, ServerConfig
from ca.runtime.vacancy import require_free_metrics, require_free_port, require_free_socket
from ca.service.consumer_waits import ConsumerWaits
from ca.service.issuance import IssueSettings
from ca.service.pruning import PrunePolicy
from ca.service.rotation import RotationSettings
from ca.service.upstream_link import UpstreamLink

LIVE = frozenset(
    {
        "log",
        "admin_ids",
        "admin_socket.admin_uids",
        "x509_svid_ttl_seconds",
        "jwt_svid_ttl_seconds",
        "agent_ttl_seconds",
        "audit",
        "policy.admins",
        "prune",
        "stop_grace_seconds",
    }
)
"""What a reload applies; every other key waits for a restart."""


def check(config: ServerConfig) -> None:
    """What can be known to be wrong without touching anything. Raises ConfigError."""
    check_ttls(
        ca_ttl_seconds=config.ca_ttl_seconds,
        x509_svid_ttl_seconds=config.x509_svid_ttl_seconds,
        jwt_svid_ttl_seconds=config.jwt_svid_ttl_seconds,
        agent_ttl_seconds=config.agent_ttl_seconds,
        others={} if config.istio is None else {"istio.max_ttl_seconds": config.istio.max_ttl_seconds},
    )
    keys = plugins.load(plugins.KEY_MANAGERS, config.keys.plugin, KeyManagerPlugin)
    from_values(config.keys.config, keys.config, name="keys.config")
    if config.upstream is not None:
        upstream = plugins.load(plugins.UPSTREAM_AUTHORITIES, config.upstream.plugin, UpstreamAuthorityPlugin)
        from_values(config.upstream.config, upstream.config, name="upstream.config")
    for name, settings in config.node_attestors.items():
        attestor = plugins.load(plugins.NODE_ATTESTORS, name, NodeAttestorPlugin)
        from_values(settings, attestor.server_config, name=f"node_attestors.{name}")
    for name, published in config.bundle_publishers.items():
        publisher = plugins.load(plugins.BUNDLE_PUBLISHERS, published.plugin, BundlePublisherPlugin)
        from_values(published.config, publisher.config, name=f"bundle_publishers.{name}.config")
    _check_waits(config)
    admin_gid(config)


def foresee(config: ServerConfig, now: datetime) -> None:
    """What can be known beforehand by looking at this machine, and is no reason not to start: a server whose upstream
    is about to end goes on with what it has. Raises ConfigError (TTL_IMPOSSIBLE), FailedPrecondition (UPSTREAM_*)."""
    if config.upstream is None:
        return
    plugin = plugins.load(plugins.UPSTREAM_AUTHORITIES, config.upstream.plugin, UpstreamAuthorityPlugin)
    ends = plugin.ends(from_values(config.upstream.config, plugin.config, name="upstream.config"))
    if ends is None:
        return
    longest = max(config.x509_svid_ttl_seconds, config.agent_ttl_seconds)
    left = int((ends - now).total_seconds())
    if longest_svid_ttl(max(left, 0)) < longest:
        raise ConfigError(
            f"the upstream authority ends at {ends.isoformat()}, in {left} s: too soon for SVIDs of {longest} s",
            reason="TTL_IMPOSSIBLE",
            hint="renew the upstream's certificates: an authority is replaced when a sixth of its life is left",
        )


def _check_waits(config: ServerConfig) -> None:
    """A wait that somebody chose must fit between the publication of an authority and its activation."""
    waits = config.consumer_waits
    longest = config.ca_ttl_seconds // 3
    for name in sorted(waits.model_fields_set):
        if (seconds := getattr(waits, name) or 0) > longest:
            raise ConfigError(
                f"consumer_waits.{name} of {seconds} cannot be kept with ca_ttl_seconds of {config.ca_ttl_seconds}: "
                "an authority is public for a third of that before it signs",
                reason="TTL_IMPOSSIBLE",
                hint=f"set ca_ttl_seconds to {seconds * 3} or more, or consumer_waits.{name} to {longest} or less",
            )


def require_free_addresses(config: ServerConfig) -> None:
    """Raises FailedPrecondition (ADDRESS_IN_USE, ADDRESS_UNAVAILABLE), before anything is made."""
    require_free_port(config.bind_address, config.bind_port)
    if config.istio is not None:
        require_free_port(config.istio.bind_address, config.istio.bind_port)
    if config.metrics_address is not None:
        require_free_metrics(config.metrics_address)
    if config.admin_socket.path is not None:  # in the data directory the store's lock tells more
        require_free_socket(config.admin_socket.path)


def key_manager(config: ServerConfig, host: AuthorityHost) -> KeyManager:
    """The plugin's. Raises ConfigError, FailedPrecondition."""
    plugin = plugins.load(plugins.KEY_MANAGERS, config.keys.plugin, KeyManagerPlugin)
    settings = from_values(config.keys.config, plugin.config, name="keys.config")
    return plugin.manager(settings, host)


def upstream_link(config: ServerConfig, host: AuthorityHost) -> UpstreamLink | None:
    """To the authority above, where there is one. Raises ConfigError, FailedPrecondition."""
    if config.upstream is None:
        return None
    plugin = plugins.load(plugins.UPSTREAM_AUTHORITIES, config.upstream.plugin, UpstreamAuthorityPlugin)
    settings = from_values(config.upstream.config, plugin.config, name="upstream.config")
    upstream = plugin.upstream(settings, host)
    return UpstreamLink(upstream, name=plugin.name, trust_domain=host.trust_domain, clock=host.clock)


def bundle_publishers(config: ServerConfig, host: AuthorityHost) -> dict[str, BundlePublisher]:
    """By the names that the configuration gives them. Raises ConfigError."""
    made = {}
    for name, published in config.bundle_publishers.items():
        plugin = plugins.load(plugins.BUNDLE_PUBLISHERS, published.plugin, BundlePublisherPlugin)
        settings = from_values(published.config, plugin.config, name=f"bundle_publishers.{name}.config")
        made[name] = plugin.publisher(settings, host)
    return made


def consumer_waits(config: ServerConfig) -> ConsumerWaits:
    """What those get who cannot acknowledge."""
    waits = config.consumer_waits
    longest = 0 if config.istio is None else config.istio.max_ttl_seconds
    proxies = longest if waits.istio_proxies_seconds is None else waits.istio_proxies_seconds
    return ConsumerWaits(
        istio_proxies=timedelta(seconds=proxies),
        workloads=timedelta(seconds=waits.workloads_seconds),
        polling_agents=timedelta(seconds=waits.polling_agents_seconds),
        files=timedelta(seconds=waits.files_seconds),
        downstream=timedelta(seconds=waits.downstream_seconds),
    )


def has_files(config: ServerConfig) -> bool:
    """Whether the bundle is kept where somebody reads it who cannot acknowledge."""
    roots = config.istio is not None and config.istio.publishes_roots
    return roots or config.bundle_file is not None or bool(config.bundle_publishers)


def has_own_keys(config: ServerConfig) -> bool:
    """Whether the keys lie where no other server can have any: a directory of one's own choice may be shared."""
    return config.keys.plugin == "disk" and config.keys.config.get("directory") is None


def admin_ids(config: ServerConfig) -> frozenset[SpiffeId]:
    """Who may administer from the network without an entry."""
    return frozenset(SpiffeId.parse(admin) for admin in config.admin_ids)


def admin_gid(config: ServerConfig) -> int | None:
    """The group of the admin socket, if it has one. Raises ConfigError."""
    group = config.admin_socket.admin_group
    if group is None:
        return None
    if config.admin_socket.path is None:
        raise ConfigError(
            "admin_socket.admin_group needs admin_socket.path: the group cannot reach into the data directory",
            hint="set admin_socket.path to a directory of its own, such as /run/burgee-admin/admin.sock",
        )
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(f"there is no group `{group}` for admin_socket.admin_group") from None


def rotation_settings(config: ServerConfig, server: str) -> RotationSettings:
    """Of the server of that name."""
    return RotationSettings(
        trust_domain=TrustDomain(config.trust_domain),
        server=server,
        ca_ttl_seconds=config.ca_ttl_seconds,
        backdate_seconds=config.backdate_seconds,
        x509_key_type=config.ca_key_type,
        jwt_key_type=config.jwt_key_type,
    )


def issue_settings(config: ServerConfig, server: str) -> IssueSettings:
    """Of the server of that name."""
    return IssueSettings(
        trust_domain=TrustDomain(config.trust_domain),
        server=server,
        x509_svid_ttl_seconds=config.x509_svid_ttl_seconds,
        jwt_svid_ttl_seconds=config.jwt_svid_ttl_seconds,
        agent_ttl_seconds=config.agent_ttl_seconds,
        backdate_seconds=config.backdate_seconds,
        jwt_issuer=config.jwt_issuer,
    )


def prune_policy(config: PruneConfig) -> PrunePolicy:
    """What is over when."""
    agents = config.agents_expired_for_seconds
    return PrunePolicy(
        agents_expired_for=None if agents is None else timedelta(seconds=agents),
        first_use_agents=config.first_use_agents,
        entries_expired_for=timedelta(seconds=config.entries_expired_for_seconds),
        issuance_retention=timedelta(seconds=config.issuance_retention_seconds),
        audit_retention=timedelta(seconds=config.audit_retention_seconds),
        changes_kept=config.changes_kept,
        policy_revisions_kept=config.policy_revisions_kept,
    )


def gate_limits(config: LimitsConfig) -> GateLimits:
    """What the gate bears."""
    return GateLimits(
        max_connections=config.max_connections,
        max_connections_per_address=config.max_connections_per_address,
        max_connections_per_uid=config.max_connections_per_uid,
        handshake_timeout_seconds=config.handshake_timeout_seconds,
        first_bytes_timeout_seconds=config.handshake_timeout_seconds,
    )
