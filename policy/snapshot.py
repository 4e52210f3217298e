"""All policies of a revision, compiled: one value that is swapped as a whole, so no deny is ever without its allows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from policy.authentication import PeerAuthentication
from policy.compile import InPieces, compile_pieces
from policy.decision import Decision, Reason
from policy.evaluate import Evaluator
from policy.model import Action, Mesh, Policy, Request, Target
from policy.peers import Peers
from policy.pieces import Prepared
from policy.workload import Since

UNKNOWN = Decision(allowed=False, reason=Reason.UNKNOWN_TARGET)
Policies = tuple[Policy, ...]
Evaluators = tuple[Evaluator, Evaluator | None]
"""Of what is enforced; and with the shadow policies, where there are any."""


class Judge:
    """The policies of one target or of several that have the same. Tables for connections are made when first asked
    for; both threads that make one make the same."""

    __slots__ = ("_connections", "_mesh", "_prepared", "_requests", "_spoken", "is_open", "origins", "policies")

    def __init__(
        self, prepared: tuple[Prepared, ...], mesh: Mesh, *, is_open: bool, before: Judge | None = None
    ) -> None:
        """`before` judged the same target: what of it is still right is used again."""
        self.policies = tuple(each.policy for each in prepared)
        """With trust domains expanded, in their order, shadow policies included."""
        self.origins = tuple(each.origin for each in prepared)
        """The same as they were given."""
        self._prepared, self._mesh = prepared, mesh
        self.is_open = is_open
        """Whether the namespace has Istio's default."""
        requests = [(each.policy, each.requests) for each in prepared]
        self._requests: Evaluators = self._evaluators(requests, before._requests if before is not None else None)
        self._connections: Evaluators | None = None
        self._spoken: tuple[tuple[Policy, int], ...] | None = None

    @property
    def spoken(self) -> tuple[tuple[Policy, int], ...]:
        """The rules of ALLOW policies that can allow a connection, each with its number."""
        if self._spoken is None:
            allows = (each for each in self._prepared if each.policy.action is Action.ALLOW)
            self._spoken = tuple((each.policy, number) for each in allows for number in each.spoken)
        return self._spoken

    def conditional(self, *, shadow: bool) -> bool:
        """Whether a rule has a CEL condition, of shadow policies, too, where they count."""
        return any(each.conditional for each in self._prepared if shadow or not each.policy.shadow)

    def decide(self, request: Request) -> Decision:
        """The verdict, with that of the shadow policies where there are any."""
        enforced, shadow = self.evaluators(http=request.http)
        decision = enforced.decide(request)
        return decision if shadow is None else replace(decision, shadow=shadow.decide(request))

    def evaluators(self, *, http: bool) -> Evaluators:
        """The enforced table, and the one that counts shadow policies as well where there are any."""
        if http:
            return self._requests
        if self._connections is None:
            unchanged = all(each.connections is each.requests for each in self._prepared)
            pieces = [(each.policy, each.connections) for each in self._prepared]
            self._connections = self._requests if unchanged else self._evaluators(pieces)
        return self._connections

    def _evaluators(self, policies: Sequence[InPieces], before: Evaluators | None = None) -> Evaluators:
        was, was_with_shadow = before or (None, None)
        enforced = self._evaluator([each for each in policies if not each[0].shadow], was)
        if not any(policy.shadow and policy.action is not Action.AUDIT for policy, _ in policies):
            return enforced, None
        return enforced, self._evaluator(policies, was_with_shadow)

    def _evaluator(self, policies: Sequence[InPieces], before: Evaluator | None) -> Evaluator:
        compiled = compile_pieces(policies, before.compiled if before is not None else None)
        return Evaluator(compiled, self._mesh, is_open=self.is_open)


class Snapshot:
    """Decides for every target of a revision. Made by `compile_set`."""

    __slots__ = ("_cache", "_judges", "_modes", "_prepared", "mesh", "peers", "policies", "targets")

    def __init__(
        self,
        policies: Policies,
        mesh: Mesh,
        targets: Iterable[Target],
        previous: Snapshot | None = None,
        peers: tuple[PeerAuthentication, ...] = (),
    ) -> None:
        self.policies, self.mesh, self.peers = policies, mesh, peers
        same = previous if previous is not None and previous.mesh == mesh else None
        self._modes: Peers = (
            same._modes if same is not None and same.peers == peers else Peers(peers, mesh.root_namespace)
        )
        prepared = same._prepared if same is not None else {}
        self._prepared: dict[int, Prepared] = {
            id(policy): prepared[id(policy)] for policy in policies if id(policy) in prepared
        }
        """By the policies' identities, which are kept, so that an identity stays one."""
        self._cache: dict[tuple[bool, tuple[int, ...]], tuple[Policies, Judge]] = {}
        """By openness and the policies' identities; the policies are kept, so that an identity stays one."""
        self._judges: dict[str, tuple[Judge, ...]] = {}
        self.targets: dict[str, tuple[Target, ...]] = {}
        since = Since(policies, same.policies if same is not None else (), root_namespace=mesh.root_namespace)
        for target in targets:
            self._add(target, since, same)

    def _add(self, target: Target, since: Since, same: Snapshot | None) -> None:
        spiffe_id = target.spiffe_id
        before = same._judges[spiffe_id][0] if same is not None and spiffe_id in same._judges else None
        had = before.origins if same is not None and before and same.targets[spiffe_id] == (target,) else None
        mine, strict = since.of(target, had), self._modes.policy_for(target)
        judge = self._judge(mine if strict is None else (strict, *mine), target, same._cache if same else {}, before)
        self.targets[spiffe_id] = (*self.targets.get(spiffe_id, ()), target)
        known = self._judges.get(spiffe_id, ())
        if judge not in known:
            self._judges[spiffe_id] = (*known, judge)

    def _judge(
        self,
        policies: Policies,
        target: Target,
        usable: dict[tuple[bool, tuple[int, ...]], tuple[Policies, Judge]],
        before: Judge | None,
    ) -> Judge:
        is_open = target.namespace in self.mesh.open_namespaces
        key = (is_open, tuple(map(id, policies)))
        known = self._cache.get(key)
        if known is None:
            known = usable.get(key)
            if known is None:
                mine = tuple(map(self._prepare, policies))
                known = (policies, Judge(mine, self.mesh, is_open=is_open, before=before))
            self._cache[key] = known
        return known[1]

    def _prepare(self, policy: Policy) -> Prepared:
        known = self._prepared.get(id(policy))
        if known is None:
            known = self._prepared[id(policy)] = Prepared(policy, self.mesh)
        return known

    def decide(self, target_spiffe_id: str, request: Request) -> Decision:
        """The verdict on a request to a target. Where several workloads share the ID and not their policies, each of
        them must allow."""
        judges = self._judges.get(target_spiffe_id)
        if judges is None:
            return UNKNOWN
        decision = judges[0].decide(request)
        for judge in judges[1:]:
            decision = _both(decision, judge.decide(request))
        return decision

    def judges(self, target_spiffe_id: str) -> tuple[Judge, ...]:
        """The compiled policies of a target, several where workloads of different policies share the ID."""
        return self._judges.get(target_spiffe_id, ())


def _both(one: Decision, other: Decision) -> Decision:
    """What holds where each of two must allow, and each one's providers must agree."""
    shadow = None
    if one.shadow is not None or other.shadow is not None:
        shadow = _both(one.shadow or replace(one, shadow=None), other.shadow or replace(other, shadow=None))
    decision = one if not one.allowed or other.allowed else other
    providers = decision.providers
    if decision.allowed:
        providers = tuple(sorted({*one.providers, *other.providers}))
    return replace(decision, providers=providers, shadow=shadow)


def compile_set(
    policies: Iterable[Policy],
    mesh: Mesh,
    workloads: Iterable[Target],
    *,
    peers: Iterable[PeerAuthentication] = (),
    previous: Snapshot | None = None,
) -> Snapshot:
    """Compiles a revision. Of `previous`, what is for the same policies (the same objects) is used again."""
    return Snapshot(tuple(policies), mesh, workloads, previous, tuple(peers))
