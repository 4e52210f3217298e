"""What a step would do to the authorities, as a value: it can be shown before it is carried out, and holds only for the
state that it was made on."""

from __future__ import annotations

from dataclasses import dataclass

from ca.authority.actions import Activate, Prune, Revoke, RevokeUpstream, Taint, TaintUpstream
from ca.authority.journal import Journal, depends_on
from ca.authority.state import Authority, AuthorityKind, of_kind, of_server
from ca.authority.story import what_happened
from ca.errors import FailedPrecondition, NotFound
from ca.service.rotation_guard_port import Blocker

Step = Activate | Taint | Revoke | Prune | TaintUpstream | RevokeUpstream
"""What can be done to an authority that is there."""

_NAMES: dict[type[Step], str] = {
    Activate: "activate",
    Taint: "taint",
    Revoke: "revoke",
    Prune: "prune",
    TaintUpstream: "taint-upstream",
    RevokeUpstream: "revoke-upstream",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Nothing has happened yet. `targets` are the authorities that the step is about, as they are; `blockers` whom it
    would cut off."""

    step: Step
    before: Journal
    after: Journal
    targets: tuple[Authority, ...]
    blockers: tuple[Blocker, ...]

    @property
    def name(self) -> str:
        return _NAMES[type(self.step)]

    @property
    def command(self) -> str:
        """What of `caadmin ca` does it: a root of the upstream is named like any other authority."""
        kind = self.targets[0].kind if self.targets else AuthorityKind.X509
        return f"{self.name.removesuffix('-upstream')} {kind} {self.step.authority_id}"


def targets(journal: Journal, step: Step, *, kind: AuthorityKind, server: str) -> tuple[Authority, ...]:
    """Which authorities the step is about; this server's own before another's of the same id. Raises NotFound
    (AUTHORITY_UNKNOWN)."""
    wanted = step.authority_id
    if isinstance(step, TaintUpstream | RevokeUpstream):
        return tuple(one for one in journal.authorities if depends_on(one, wanted))
    own_first = (*of_server(journal.authorities, server), *journal.authorities)
    for one in own_first:
        if one.authority_id == wanted and one.kind == kind:
            return (one,)
    raise NotFound(f"there is no {kind} authority `{wanted}`", reason="AUTHORITY_UNKNOWN")


def require_unchanged(seen: Journal, now: Journal, *, kind: AuthorityKind, server: str) -> None:
    """Raises FailedPrecondition (AUTHORITY_STATE), telling what happened, unless the authorities of that kind of that
    server are those that were seen."""
    before = of_kind(of_server(seen.authorities, server), kind)
    after = of_kind(of_server(now.authorities, server), kind)
    if set(before) != set(after):
        raise FailedPrecondition(
            f"{kind} authorities were changed meanwhile: {what_happened(before, after)}",
            reason="AUTHORITY_STATE",
            hint="see `caadmin ca status`, then decide again",
        )
