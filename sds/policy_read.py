"""A set of policies as the server sends it, read and ready: which are for whom is found by what was attested.

It needs the engine, which an agent without policies and without proxies that ask for them never loads.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from ca.errors import InvalidArgument
from ca.identity.selector import Selector
from ca.identity.text import quote
from ca.proto.burgee import policy_pb2
from ca.runtime.collector import paused
from policy.authentication import JwtRule, RequestAuthentication
from policy.described import contradictory, described
from policy.model import Mesh, Policy, Target
from policy.parse import PolicySet, parse_object
from policy.peers import Peers
from policy.problems import Refused
from policy.snapshot import Snapshot, compile_set
from policy.state import ANY_HOST
from policy.workload import Scopes, is_for

MAX_SNAPSHOTS = 256
CONTRADICTORY = "several Workload objects name this ID and say different things of it"
NEWCOMER = "the policies that came with its entry are being read"
Name = tuple[str, str, str]
"""Kind, namespace and name."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matched:
    """What is for one workload. `policies` begin with the one that a STRICT PeerAuthentication is.

    `unknown`: why it is not known what is for it; then nobody may call it.
    """

    target: Target
    policies: tuple[Policy, ...]
    authentications: tuple[RequestAuthentication, ...]
    mesh: Mesh
    keys: Mapping[str, str] = field(repr=False)
    unknown: str = ""

    @property
    def rules(self) -> tuple[JwtRule, ...]:
        """Whose tokens are believed."""
        return tuple(rule for one in self.authentications for rule in one.rules)


class Policies:
    """One set, as a whole. Of `previous`, what was read of an object that did not change is the same object here."""

    def __init__(self, message: policy_pb2.PolicySet, previous: Policies | None = None) -> None:
        self.revision = message.revision
        self.newcomers: frozenset[str] = frozenset()
        """IDs of entries that came after this set: Workload objects of theirs are in the next one."""
        mesh = _mesh(message.mesh)
        self.mesh: Mesh = previous.mesh if previous is not None and previous.mesh == mesh else mesh
        self.keys = {item.issuer: item.jwks for item in message.keys}
        self._namespaces = frozenset(message.namespaces)
        self._parts: dict[Name, tuple[bytes, PolicySet]] = _parts(
            message.objects, previous._parts if previous is not None else {}
        )
        parts = [part for _, part in self._parts.values()]
        root = self.mesh.root_namespace
        self._policies = tuple(item for part in parts for item in part.policies)
        self._scopes = Scopes(self._policies, root_namespace=root)
        self._requests = tuple(item for part in parts for item in part.request_authentications)
        peers = [item for part in parts for item in part.peer_authentications]
        kept = previous is not None and previous._same_peers(peers, root)
        self._peers: Peers = previous._peers if kept and previous is not None else Peers(peers, root)
        self._workloads: defaultdict[str, list[Target]] = defaultdict(list)
        for part in parts:
            for target in part.targets:
                self._workloads[target.spiffe_id].append(target)
        usable = previous is not None and self.mesh is previous.mesh and self._peers is previous._peers
        self._usable = dict(previous._snapshots) if usable and previous is not None else {}
        self._snapshots: dict[tuple[object, ...], tuple[tuple[Policy, ...], Snapshot]] = {}

    def matched(self, spiffe_id: str, selectors: Iterable[Selector]) -> Matched:
        """What is for the workload with this ID of which these selectors were attested."""
        pairs = [(selector.type, selector.value) for selector in selectors]
        given = self._workloads.get(spiffe_id, ())
        target = described(spiffe_id, pairs, given)
        strict = self._peers.policy_for(target)
        mine = self._scopes.of(target)
        return Matched(
            target=target,
            policies=mine if strict is None else (strict, *mine),
            authentications=tuple(one for one in self._requests if self._is_for(one, target)),
            mesh=self.mesh,
            keys=self.keys,
            unknown=CONTRADICTORY if contradictory(pairs, given) else self._unknown(target),
        )

    def snapshot(self, matched: Matched) -> Snapshot:
        """What decides for one workload, compiled when first asked for; one that is not known is no target of it. Takes
        long for thousands of rules: not on the event loop."""
        if matched.unknown:
            return compile_set((), self.mesh, ())
        mine = self._scopes.of(matched.target)
        key = (matched.target, *map(id, mine))
        known = self._snapshots.get(key) or self._usable.get(key)
        if known is None:
            with paused():
                known = (mine, compile_set(mine, self.mesh, [matched.target], peers=self._peers.objects))
        if len(self._snapshots) >= MAX_SNAPSHOTS:
            self._snapshots.pop(next(iter(self._snapshots)), None)
        self._snapshots[key] = known
        return known[1]

    def _unknown(self, target: Target) -> str:
        """Of a namespace that the server did not tell all about, policies that deny may be missing here; and of an ID
        that is newer than this set it is not known whether it is in any."""
        if not target.namespace and target.spiffe_id in self.newcomers:
            return NEWCOMER
        if not self._namespaces or target.namespace in self._namespaces:
            return ""
        return f"the server has not sent this agent the policies of the namespace {quote(target.namespace)}"

    def _is_for(self, one: RequestAuthentication, target: Target) -> bool:
        stand_in = Policy(namespace=one.namespace, name=one.name, scope=one.scope)
        return is_for(stand_in, target, root_namespace=self.mesh.root_namespace)

    def _same_peers(self, peers: Sequence[object], root: str) -> bool:
        known = self._peers.objects
        return (
            root == self._peers.root_namespace
            and len(known) == len(peers)
            and all(a is b for a, b in zip(known, peers, strict=True))
        )


def read(payload: bytes, previous: Policies | None = None) -> Policies:
    """Raises InvalidArgument (POLICY_SET_UNREADABLE), with the first of what is wrong."""
    try:
        return Policies(policy_pb2.PolicySet.FromString(payload), previous)
    except Refused as error:
        detail = f"{error.problems[0]}"
    except (DecodeError, ValueError, RecursionError) as error:
        detail = f"{type(error).__name__}: {error}"
    raise InvalidArgument(f"the policies cannot be used: {detail}", reason="POLICY_SET_UNREADABLE")


def _mesh(message: policy_pb2.Mesh) -> Mesh:
    if not message.trust_domains:
        raise ValueError("no trust domain is named")
    return Mesh(
        trust_domains=tuple(message.trust_domains),
        root_namespace=message.root_namespace,
        open_namespaces=frozenset(message.open_namespaces),
        providers=frozenset(message.providers),
    )


def _parts(
    objects: Iterable[policy_pb2.Object], known: Mapping[Name, tuple[bytes, PolicySet]]
) -> dict[Name, tuple[bytes, PolicySet]]:
    found: dict[Name, tuple[bytes, PolicySet]] = {}
    for item in objects:
        name = (item.kind, item.namespace, item.name)
        digest = hashlib.sha256(item.body).digest()
        old = known.get(name)
        if old is None or old[0] != digest:
            source = f"{item.kind} {item.namespace}/{item.name}"
            old = (digest, parse_object(json.loads(item.body), source, jwks_hosts=ANY_HOST))
        found[name] = old
    return found
