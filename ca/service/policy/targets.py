"""Who can be called, as far as a server knows: what entries make, and what Workload objects describe."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ca.identity.entry import RegistrationEntry
from ca.identity.spiffe_id import SpiffeId
from policy.described import contradictory, described
from policy.model import Target

Made = frozenset[tuple[SpiffeId, tuple[tuple[str, str], ...]]]
"""The SPIFFE IDs of entries, each with the selectors of an entry that say where its workload is. An entry names some of
what its workloads have, so a workload may have more labels than are known here."""

TOLD = ("ns:", "pod-label:")


def made_by(entries: Iterable[RegistrationEntry]) -> Made:
    """What entries tell of workloads, each thing once."""
    return frozenset(
        (
            entry.spiffe_id,
            tuple(sorted((s.type, s.value) for s in entry.selectors if s.type == "k8s" and s.value.startswith(TOLD))),
        )
        for entry in entries
    )


def all_targets(made: Made, given: tuple[Target, ...]) -> tuple[Target, ...]:
    """Those of entries, described; then those that Workload objects alone know of."""
    of_id: defaultdict[str, list[Target]] = defaultdict(list)
    for target in given:
        of_id[target.spiffe_id].append(target)
    found: dict[Target, None] = {}
    for name, selectors in sorted((str(spiffe_id), selectors) for spiffe_id, selectors in made):
        mine = of_id.get(name, ())
        found |= dict.fromkeys(mine if contradictory(selectors, mine) else [described(name, selectors, mine)])
    known = {target.spiffe_id for target in found}
    return (*found, *(target for target in given if target.spiffe_id not in known))
