"""What the names of policies stand for to one caller, at one moment: whose policies, and what the filters are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ca.identity.selector import Selector
from ca.identity.text import quote
from policy.envoy_names import Resource, parsed
from sds.envoy_answers import Found, Missing
from sds.memory import Room
from sds.policy_filters import TYPE_URL, Made
from sds.views import BundleForms

FOUND_BYTES = 512
"""What keeping an answer takes beside its bytes."""
UNKNOWN = Missing("not a name of policies: such are `burgee.http.policy` and `burgee.tcp.policy`")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as far as it matters: the IDs that it holds, in their order, what was attested of it, and the bundles
    of the trust domains whose tokens it may verify."""

    ids: tuple[str, ...]
    selectors: frozenset[Selector]
    bundles: tuple[BundleForms, ...] = ()


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose policies a name means: `spiffe_id`, or nobody's, and `why`."""

    resource: Resource
    spiffe_id: str = ""
    why: str = ""


def owner_of(name: str, caller: Caller) -> Owner | None:
    """None for a name that is none of ours."""
    resource = parsed(name)
    if resource is None:
        return None
    if resource.spiffe_id:
        if resource.spiffe_id in caller.ids:
            return Owner(resource, resource.spiffe_id)
        return Owner(resource, why=f"no registration entry gives this workload {quote(resource.spiffe_id)}")
    if len(caller.ids) == 1:
        return Owner(resource, caller.ids[0])
    if not caller.ids:
        return Owner(resource, why="no identity issued: no registration entry matches this workload")
    return Owner(
        resource,
        why=f"this workload has {len(caller.ids)} identities: name the one that is meant, `{name}/<spiffe-id>`",
    )


@dataclass(frozen=True, slots=True, eq=False)
class PolicyAnswers:
    """Each name that was asked for. `made` are kept for as long as somebody is answered with them."""

    basis: object
    """What they were made of: while it is the same object, for the same caller and names, so are the answers."""
    caller: Caller
    revision: int
    owners: Mapping[str, Owner | None]
    found: Mapping[str, Found | Missing]
    made: Sequence[Made] = ()

    @property
    def type_url(self) -> str:
        return TYPE_URL

    @property
    def version(self) -> str:
        """State of the world names its answers as a whole; of policies that is the revision."""
        return str(self.revision)

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return sum(len(hit.resource) for hit in self.found.values() if isinstance(hit, Found))

    @property
    def held_bytes(self) -> int:
        """What refuses is made for each name, and the caller chooses the names."""
        shared = {id(one.found) for one in self.made}
        hits = (hit for hit in self.found.values() if isinstance(hit, Found) and id(hit) not in shared)
        return sum(len(hit.resource) + len(hit.note) + FOUND_BYTES for hit in hits)

    def every_name(self) -> Sequence[str]:
        """Nothing: names say what stands beside the filter, which nobody but the proxy knows."""
        return ()

    def find(self, name: str) -> Found | Missing:
        return self.found.get(name, UNKNOWN)

    def once_for(self, room: Room | None, key: tuple[object, ...], make: Callable[[], bytes]) -> bytes:
        """Made each time: what is large is the resource, and of that there is one for all."""
        return make()
