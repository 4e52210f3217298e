"""The configured attestors, found by entry point as a stranger's would be."""

from __future__ import annotations

from collections.abc import Mapping

from attestor.workload.run import TIMEOUT_SECONDS
from ca.ports import NodeAttestorPlugin, NodeProver, Patient, WorkloadAttestor, WorkloadAttestorPlugin
from ca.runtime import plugins
from ca.runtime.config import from_values
from sds.config import AgentConfig


def node_attestor(config: AgentConfig) -> tuple[str, NodeProver]:
    """The configured node attestor's name and its agent half. Raises ConfigError."""
    ((name, settings),) = config.node_attestor.items()
    plugin = plugins.load(plugins.NODE_ATTESTORS, name, NodeAttestorPlugin)
    return name, plugin.prover(from_values(settings, plugin.agent_config, name=f"node_attestor.{name}"))


def workload_attestors(config: AgentConfig) -> dict[str, WorkloadAttestor]:
    """The configured workload attestors by name. Raises ConfigError."""
    found: dict[str, WorkloadAttestor] = {}
    for name, settings in config.workload_attestors.items():
        plugin = plugins.load(plugins.WORKLOAD_ATTESTORS, name, WorkloadAttestorPlugin)
        found[name] = plugin.attestor(from_values(settings, plugin.config, name=f"workload_attestors.{name}"))
    return found


def deadlines(config: AgentConfig, attestors: Mapping[str, WorkloadAttestor]) -> dict[str, float]:
    """What each attestor may take, in seconds: as configured, else as it says itself, else as most."""
    return {name: config.attestor_deadlines_seconds.get(name, _own(attestor)) for name, attestor in attestors.items()}


def _own(attestor: WorkloadAttestor) -> float:
    return attestor.deadline_seconds if isinstance(attestor, Patient) else TIMEOUT_SECONDS
