"""Which policies are for a workload, for its administrator: as they were matched on what was attested."""

from __future__ import annotations

from collections.abc import Iterable

from ca.identity.selector import Selector
from ca.proto.burgee import agent_pb2 as pb
from sds.policy_held import HeldPolicies

SHOWN = 1000


def policies_of(held: HeldPolicies, ids: Iterable[str], selectors: frozenset[Selector]) -> list[pb.Policies]:
    """For each of its identities; nothing where the server never spoke of policies."""
    if not held.told:
        return []
    return [_of(held, spiffe_id, selectors) for spiffe_id in dict.fromkeys(ids)]


def _of(held: HeldPolicies, spiffe_id: str, selectors: frozenset[Selector]) -> pb.Policies:
    policies = held.in_force
    if policies is None:
        return pb.Policies(spiffe_id=spiffe_id, detail=held.detail)
    matched = policies.matched(spiffe_id, selectors)
    return pb.Policies(
        spiffe_id=spiffe_id,
        namespace=matched.target.namespace,
        labels=[f"{name}={value}" for name, value in matched.target.labels[:SHOWN]],
        revision=held.revision,
        policies=[policy.id for policy in matched.policies[:SHOWN]],
        request_authentications=[one.id for one in matched.authentications[:SHOWN]],
        detail=matched.unknown or held.detail,
    )
