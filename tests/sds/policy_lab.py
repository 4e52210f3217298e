"""An agent's policy services behind a real gate, for real proxies; what is attested of a process, the test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ca.proto.burgee import policy_pb2
from ca.runtime.config import from_values
from ca.runtime.decision_log import DecisionLog
from ca.runtime.decision_log_config import DecisionLogConfig
from policy.decision_record import DecisionRecord
from sds.access_log import AccessLogs
from sds.askers import Askers
from sds.authz import ExtAuthz
from sds.authz_checks import Checks, Provider
from sds.policy_ecds import EnvoyPolicies
from sds.policy_held import HeldPolicies
from sds.sockets import Endpoint
from tests.sds.lab import Lab, eventually


def rule(**fields: Any) -> dict[str, Any]:
    return fields


def policy(name: str, action: str, *rules: dict[str, Any], namespace: str = "a", **spec: Any) -> dict[str, Any]:
    """An AuthorizationPolicy as it is written."""
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"action": action, "rules": list(rules), **spec},
    }


def workload(name: str, spiffe_id: str, *, namespace: str = "a", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "burgee.io/v1",
        "kind": "Workload",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"spiffeId": spiffe_id, **spec},
    }


def policy_set(revision: int, objects: Sequence[dict[str, Any]], **mesh: Any) -> bytes:
    """As the server sends it."""
    domain = {"trust_domains": ["example.org"], "root_namespace": "istio-system", **mesh}
    made = policy_pb2.PolicySet(revision=revision, mesh=policy_pb2.Mesh(**domain))
    for item in objects:
        meta = item["metadata"]
        made.objects.add(
            kind=item["kind"], namespace=meta["namespace"], name=meta["name"], body=json.dumps(item).encode()
        )
    return made.SerializeToString()


class PolicyLab(Lab):
    """`policy_socket` has ext_authz, the access log and what is pushed. `records` is everything that was decided."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.policy_socket = Path(self.directory) / "p" / "policy.sock"
        self.held = HeldPolicies()
        self.records: list[DecisionRecord] = []
        self.providers: dict[str, Provider] = {}
        self.decisions = Path(self.directory) / "decisions"
        self.log_config: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.log = DecisionLog(from_values(self.log_config, DecisionLogConfig), self.decisions)
        self.log.watchers.append(self.records.append)
        self.log.start()
        self.endpoint = Endpoint("policy", private_directory=Path(self.directory) / "private", clock=self.clock)
        peer_of = self.endpoint.gate.peer_of
        self.askers = Askers(workloads=self.workloads, cache=self.cache, clock=self.clock)
        self.authz = ExtAuthz(peer_of=peer_of, askers=self.askers, checks=self._checks)
        self.access_logs = AccessLogs(
            peer_of=peer_of, workloads=self.workloads, cache=self.cache, held=self.held, clock=self.clock, log=self.log
        )
        pushed = EnvoyPolicies(
            peer_of=peer_of,
            workloads=self.workloads,
            cache=self.cache,
            held=self.held,
            clients=self.clients,
            clock=self.clock,
        )
        handlers = (self.authz.handler(), self.access_logs.handler(), pushed.handler())
        self.endpoint.server.add_generic_rpc_handlers(handlers)
        await self.endpoint.listen(self.policy_socket, mode=0o777, dir_mode=0o755)
        self._reading = asyncio.create_task(self.held.run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reading.cancel()
        await self.askers.close()
        self.workloads.close()
        await self.endpoint.close()
        await asyncio.to_thread(self.log.close)
        await super().__aexit__(kind, error, trace)

    def _checks(self) -> Checks:
        return Checks(held=self.held, clock=self.clock, log=self.log, providers=lambda: self.providers)

    async def enforce(self, *objects: dict[str, Any], revision: int = 1, **mesh: Any) -> None:
        """From now on these hold."""
        payload = policy_set(revision, objects, **mesh)
        self.held.take(payload)
        await eventually(lambda: self.held.payload == payload or bool(self.held.problem))
        assert not self.held.problem
