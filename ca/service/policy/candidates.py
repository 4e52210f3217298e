"""What each agent is sent: what its workloads may need, put together from pieces that are made once.

The message of a set is its pieces one after another, as protobuf allows: so a hundred agents cost hardly more than one.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ca.identity.entry import RegistrationEntry
from ca.proto.burgee import policy_pb2 as pb
from policy.book_values import REQUEST, WORKLOAD, Key, Stored, canonical
from policy.model import Mesh
from policy.state import State

_NAMESPACE = "ns:"


@dataclass(frozen=True, slots=True)
class Concern:
    """What one entry of an agent is about: an ID, and the namespaces of its pods, where its selectors tell them."""

    spiffe_id: str
    namespaces: tuple[str, ...]


def concern_of(entry: RegistrationEntry) -> Concern:
    """What policies an entry's workloads may need follows from this alone."""
    values = (s.value for s in entry.selectors if s.type == "k8s" and s.value.startswith(_NAMESPACE))
    return Concern(str(entry.spiffe_id), tuple(sorted(value.removeprefix(_NAMESPACE) for value in values)))


@dataclass(frozen=True, slots=True)
class CandidateSet:
    """`payload` is the message; `digest` is of what it holds, and not of the revision that it was made in."""

    revision: int
    digest: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some objects, as they stand in the message. `addresses` are those of key sets that they need."""

    stored: tuple[Stored, ...]
    data: bytes
    digest: bytes
    addresses: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Of one revision. Policies are in pieces by namespace, Workload objects by the ID that they name."""

    revision: int
    root_namespace: str
    mesh: bytes
    policies: Mapping[str, _Piece]
    workloads: Mapping[str, _Piece]
    namespaces: Mapping[str, frozenset[str]]
    """Of each ID that Workload objects name, theirs."""
    _made: dict[tuple[object, ...], CandidateSet] = field(default_factory=dict, compare=False, repr=False)

    @property
    def size(self) -> int:
        """Bytes of all of it, which an agent gets in one message."""
        return sum(len(piece.data) for some in (self.policies, self.workloads) for piece in some.values())

    def of(self, concerns: Iterable[Concern], key_sets: Mapping[str, str]) -> CandidateSet:
        """For an agent with these entries. The same value for the same need."""
        ids, wanted = set[str](), {self.root_namespace}
        everything = False
        for concern in concerns:
            if concern.spiffe_id in self.workloads:
                ids.add(concern.spiffe_id)
            told = concern.namespaces or self.namespaces.get(concern.spiffe_id, ())
            wanted.update(told)
            everything = everything or not told
        chosen = sorted(self.policies if everything else wanted & self.policies.keys())
        whole = () if everything else tuple(sorted(wanted))
        pieces = [self.policies[name] for name in chosen] + [self.workloads[name] for name in sorted(ids)]
        addresses = frozenset[str]().union(*(piece.addresses for piece in pieces))
        keys = tuple((address, key_sets[address]) for address in sorted(addresses) if address in key_sets)
        need = (whole, frozenset(ids), keys)
        if need not in self._made:
            self._made[need] = self._set(pieces, keys, whole)
        return self._made[need]

    def _set(
        self, pieces: Sequence[_Piece], keys: tuple[tuple[str, str], ...], namespaces: tuple[str, ...]
    ) -> CandidateSet:
        sets = [pb.KeySet(issuer=address, jwks=text) for address, text in keys]
        rest = pb.PolicySet(keys=sets, namespaces=namespaces).SerializeToString()
        digest = hashlib.sha256()
        for part in (self.mesh, rest, *(piece.digest for piece in pieces)):
            digest.update(hashlib.sha256(part).digest())
        number = pb.PolicySet(revision=self.revision).SerializeToString()
        payload = b"".join((number, self.mesh, *(piece.data for piece in pieces), rest))
        return CandidateSet(self.revision, digest.digest(), payload)


def candidates(state: State, previous: Candidates | None = None) -> Candidates:
    """Of a revision; pieces that are as they were before are not made again."""
    by_namespace: defaultdict[str, list[Stored]] = defaultdict(list)
    by_id: defaultdict[str, list[Stored]] = defaultdict(list)
    namespaces: defaultdict[str, set[str]] = defaultdict(set)
    for key, stored in state.objects.items():
        if key.kind == WORKLOAD:
            for target in state.parts[key][1].targets:
                by_id[target.spiffe_id].append(stored)
                namespaces[target.spiffe_id].add(target.namespace)
        else:
            by_namespace[key.namespace].append(stored)
    old = (previous.policies, previous.workloads) if previous is not None else ({}, {})
    return Candidates(
        revision=state.revision,
        root_namespace=state.mesh.root_namespace,
        mesh=_mesh(state.mesh),
        policies={name: _piece(found, state, old[0].get(name)) for name, found in by_namespace.items()},
        workloads={name: _piece(found, state, old[1].get(name)) for name, found in by_id.items()},
        namespaces={name: frozenset(found) for name, found in namespaces.items()},
    )


def addresses_of(state: State) -> frozenset[str]:
    """Where the key sets are that a revision needs and does not bring."""
    rules = (rule for one in state.parsed.request_authentications for rule in one.rules)
    return frozenset(rule.jwks_uri for rule in rules if rule.jwks_uri and not rule.jwks)


def _piece(found: Sequence[Stored], state: State, old: _Piece | None) -> _Piece:
    stored = tuple(sorted(found, key=_place))
    if old is not None and old.stored == stored:
        return old
    data = pb.PolicySet(objects=map(_object, stored)).SerializeToString()
    addresses = frozenset(address for one in stored for address in _addresses(one.key, state))
    return _Piece(stored, data, hashlib.sha256(data).digest(), addresses)


def _place(stored: Stored) -> tuple[str, str]:
    return stored.key.kind, stored.key.name


def _addresses(key: Key, state: State) -> Iterable[str]:
    if key.kind != REQUEST:
        return ()
    rules = (rule for one in state.parts[key][1].request_authentications for rule in one.rules)
    return [rule.jwks_uri for rule in rules if rule.jwks_uri and not rule.jwks]


def _object(stored: Stored) -> pb.Object:
    key = stored.key
    return pb.Object(kind=key.kind, namespace=key.namespace, name=key.name, body=canonical(stored.body))


def _mesh(mesh: Mesh) -> bytes:
    return pb.PolicySet(
        mesh=pb.Mesh(
            trust_domains=mesh.trust_domains,
            root_namespace=mesh.root_namespace,
            open_namespaces=sorted(mesh.open_namespaces),
            providers=sorted(mesh.providers),
        )
    ).SerializeToString()
