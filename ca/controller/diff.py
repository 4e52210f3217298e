"""Pure: what must be done to the server's entries so that they are those that are wanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ca.controller.entry_wire import key_of, message_of
from ca.controller.render import Plan, Wanted
from ca.proto.spire import types_pb2


@dataclass(slots=True)
class Changes:
    """`create` and `update` are what is to be stored, each with who wants it; `delete` are IDs."""

    create: list[tuple[types_pb2.Entry, Wanted]] = field(default_factory=list)
    update: list[tuple[types_pb2.Entry, Wanted]] = field(default_factory=list)
    delete: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.create) + len(self.update) + len(self.delete)

    def add(self, other: Changes) -> None:
        self.create += other.create
        self.update += other.update
        self.delete += other.delete


def diff(plan: Plan, current: Mapping[str, types_pb2.Entry], wanted_elsewhere: Iterable[str] = ()) -> Changes:
    """Of one group: `current` are our entries in it, by ID. What `wanted_elsewhere` or the plan keeps is left alone.

    An entry that would be deleted while the same is to be created for another owner stays, and is that owner's.
    """
    changes = Changes()
    missing: list[Wanted] = []
    for entry_id, wanted in plan.wanted.items():
        found = current.get(entry_id)
        if found is None:
            missing.append(wanted)
        elif found != (message := message_of(wanted.entry)):
            changes.update.append((message, wanted))
    elsewhere = set(wanted_elsewhere)
    spare = [one for one in current if one not in plan.wanted and one not in plan.kept and one not in elsewhere]
    heirs = {key_of(current[entry_id]): entry_id for entry_id in spare} if missing else {}
    for wanted in missing:
        message = message_of(wanted.entry)
        heir = heirs.pop(key_of(message), None) if heirs else None
        if heir is None:
            changes.create.append((message, wanted))
            continue
        spare.remove(heir)
        message.id = heir
        if message != current[heir]:
            changes.update.append((message, wanted))
    changes.delete = spare
    return changes
