"""The configuration files of server and agent: the same files that a production node has, with short paths."""

from __future__ import annotations

from typing import Any

from ca.up.layout import Layout
from ca.up.options import Options
from ca.up.ports import LOOPBACK

_HEADER = "# Written by `burgee up` at every start; changes made here are lost.\n"

CA_TTL_SECONDS = 7 * 24 * 3600
AGENT_TTL_SECONDS = 24 * 3600
"""A day, so that a stack that was stopped overnight needs no new attestation; a sixth of the CA's life at most."""


def server_config(options: Options, layout: Layout, *, port: int, metrics_port: int) -> dict[str, Any]:
    """Listens on loopback only; publishes its trust bundle in a file, which is the agent's first trust."""
    return {
        "trust_domain": options.trust_domain.name,
        "data_dir": str(layout.server_data),
        "bind_address": LOOPBACK,
        "bind_port": port,
        "admin_socket": {"path": str(layout.server_admin_socket)},
        "bundle_file": str(layout.bundle_file),
        "ca_ttl_seconds": CA_TTL_SECONDS,
        "agent_ttl_seconds": AGENT_TTL_SECONDS,
        "metrics_address": f"{LOOPBACK}:{metrics_port}",
        "node_attestors": {"join_token": {}},
    }


def agent_config(options: Options, layout: Layout, *, server: str, metrics_port: int) -> dict[str, Any]:
    """Keeps its state in the home directory; needs the join token only where that state is of no use."""
    return {
        "trust_domain": options.trust_domain.name,
        "data_dir": str(layout.agent_data),
        "servers": [server],
        "workload_socket": str(layout.workload_socket),
        "admin_socket": {"path": str(layout.agent_admin_socket)},
        "trust": {"bundle_file": str(layout.bundle_file)},
        "node_attestor": {"join_token": {"token_file": str(layout.join_token)}},
        "workload_attestors": {"unix": {"path": True}},
        "cache": {"persist": "sealed", "directory": str(layout.agent_cache)},
        "metrics_address": f"{LOOPBACK}:{metrics_port}",
    }


def as_yaml(config: dict[str, Any]) -> str:
    """The file's text."""
    import yaml

    return _HEADER + yaml.safe_dump(config, sort_keys=False)
