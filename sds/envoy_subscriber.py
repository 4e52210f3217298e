"""What both kinds of xDS stream have in common: who is at the other end, its names, and how far each resource got."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import DecodeError, Message

from ca.errors import InvalidArgument
from sds import envoy_messages as messages
from sds.envoy_answers import Answers, Found, Missing
from sds.memory import Room
from sds.secrets import Form, SecretNames, is_root_name

if TYPE_CHECKING:
    from google.rpc import status_pb2

MAX_NAMES = 1000
MAX_NAME_BYTES = 2048
MAX_NAMES_BYTES = 128 << 10
"""Of all names of one stream together: a workload may have many streams, and names that mean nothing are kept too."""
MAX_DETAIL = 2000
NOTE_BYTES = 256
"""What remembering one name takes beside its letters."""

M = TypeVar("M", bound=Message)


class ResourceState(StrEnum):
    """How far a resource got."""

    SENT = "SENT"
    ACKED = "ACKED"
    NACKED = "NACKED"
    UNKNOWN = "UNKNOWN"


@dataclass(slots=True, kw_only=True)
class ResourceStatus:
    """What the operator is shown about one name on one stream. `detail`: a NACK's words, or why it is unknown.
    `note`: what is said of it besides, as long as it is not refused. `accepted`: the version of the answers that the
    client took it over from last; empty where it took none over on this stream."""

    name: str
    state: ResourceState
    version: str = ""
    sent_at: datetime | None = None
    answered_at: datetime | None = None
    detail: str = ""
    note: str = ""
    accepted: str = ""


@dataclass(slots=True, kw_only=True)
class Subscriber(ABC):
    """One stream's state. Feed it what comes in (`take_in`), and after that and each change ask it to `respond`.

    `everything`: it asked for whatever there is. `statuses` holds every name that was asked for or sent. `room` is
    where answers may be kept that are made for its choice of names. With `ttl_seconds` the client drops what it was
    sent after so long without a word, unless a heartbeat comes.
    """

    room: Room | None = None
    ttl_seconds: float = 0.0
    names: SecretNames = field(default_factory=SecretNames)
    validator: Form = Form.SPIFFE
    node_id: str = ""
    user_agent: str = ""
    form: Form = Form.SPIFFE
    subscribed: frozenset[str] = frozenset()
    everything: bool = False
    statuses: dict[str, ResourceStatus] = field(default_factory=dict)
    type_url: str = ""
    seen: Answers | None = None
    """What it was last looked at with: `statuses` tell of these answers."""
    _begun: bool = False

    @abstractmethod
    def take_in(self, raw: bytes, now: datetime) -> None:
        """Take in a serialized request. Raises InvalidArgument when it is malformed or out of bounds."""

    @abstractmethod
    def respond(self, answers: Answers, now: datetime) -> bytes | None:
        """The serialized response that is due now, or None."""

    @abstractmethod
    def heartbeat(self) -> bytes | None:
        """A serialized response that keeps what the client holds from being dropped; None where it holds nothing."""

    @abstractmethod
    def held_bytes(self) -> int:
        """About how much memory its state takes."""

    def _basic_bytes(self) -> int:
        asked = sum(len(name) for name in self.subscribed) + NOTE_BYTES * len(self.subscribed)
        known = sum(len(status.name) + len(status.detail) + len(status.note) for status in self.statuses.values())
        answers = self.seen.held_bytes if self.seen is not None else 0
        return asked + known + answers + NOTE_BYTES * len(self.statuses) + len(self.type_url)

    @property
    def roots_only(self) -> bool:
        """Whether it carries trust bundles alone: such streams are told of a change before those with leaves."""
        return not self.everything and all(is_root_name(name, self.names) for name in self.subscribed)

    def _read_node(self, node: messages.base_pb2.Node) -> None:
        version = node.user_agent_build_version.version
        self.node_id = node.id[:256]
        self.user_agent = node.user_agent_name[:64]
        if node.HasField("user_agent_build_version"):
            self.user_agent += f" {version.major_number}.{version.minor_number}.{version.patch}"
        self.form = self.validator if _has_validator(node) else Form.TRUSTED_CA

    def _note_answer(self, names: Iterable[str], error: status_pb2.Status | None, now: datetime) -> None:
        """The client took over what it was sent under these names, or rejected it with `error`."""
        for name in names:
            status = self.statuses.get(name)
            if status is not None and status.state is ResourceState.SENT:
                status.state = ResourceState.ACKED if error is None else ResourceState.NACKED
                status.detail = status.note if error is None else error.message[:MAX_DETAIL]
                status.answered_at = now

    def _note_sent(self, name: str, version: str, now: datetime, note: str = "") -> None:
        known = self.statuses.get(name)
        self.statuses[name] = ResourceStatus(
            name=name,
            state=ResourceState.SENT,
            version=version,
            sent_at=now,
            detail=note,
            note=note,
            accepted="" if known is None else known.accepted,
        )

    def _resolve(self, answers: Answers, now: datetime) -> tuple[dict[str, Found], dict[str, Missing]]:
        """What the names stand for now, in the order in which it is sent, and which stand for nothing."""
        if self.seen is not None and self.seen is not answers:
            for status in self.statuses.values():
                if status.state is ResourceState.ACKED:
                    status.accepted = self.seen.version
        self.seen = answers
        asked = [*answers.every_name(), *sorted(self.subscribed)] if self.everything else sorted(self.subscribed)
        found: dict[str, Found] = {}
        missing: dict[str, Missing] = {}
        for name in asked:
            answer = answers.find(name)
            if isinstance(answer, Missing):
                missing[name] = answer
                self._note_missing(name, answer, now)
            else:
                found[name] = answer
        for name in self.statuses.keys() - found.keys() - missing.keys():
            del self.statuses[name]
        return dict(sorted(found.items(), key=lambda item: (item[1].rank, item[0]))), missing

    def _note_missing(self, name: str, missing: Missing, now: datetime) -> None:
        known = self.statuses.get(name)
        if known is not None and known.state is not ResourceState.UNKNOWN:
            # It was sent once and its entry or SVID has gone: Envoy keeps it until it expires; say so.
            known.detail = f"no longer given: {missing.detail}"
        else:
            self.statuses[name] = ResourceStatus(
                name=name, state=ResourceState.UNKNOWN, detail=missing.detail, answered_at=now
            )


def parse(kind: type[M], raw: bytes) -> M:
    """A request of this kind. Raises InvalidArgument (REQUEST_MALFORMED)."""
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise InvalidArgument("the request is malformed", reason="REQUEST_MALFORMED") from error


def check_bounds(names: Collection[str]) -> None:
    """Raises InvalidArgument (SDS_TOO_MANY_NAMES) for more or longer names than one stream may ask for."""
    sizes = [len(name.encode()) for name in names]
    if len(sizes) > MAX_NAMES or max(sizes, default=0) > MAX_NAME_BYTES or sum(sizes) > MAX_NAMES_BYTES:
        raise InvalidArgument(
            f"at most {MAX_NAMES} resource names of {MAX_NAME_BYTES} bytes each, {MAX_NAMES_BYTES} bytes together",
            reason="SDS_TOO_MANY_NAMES",
        )


def _has_validator(node: messages.base_pb2.Node) -> bool:
    """False for an Envoy before 1.18 and where the node's metadata says so, as SPIRE's agent reads them."""
    switch = node.metadata.fields.get("disable_spiffe_cert_validation")
    if switch is not None and (switch.bool_value or switch.string_value.lower() == "true"):
        return False
    if not node.HasField("user_agent_build_version"):
        return True
    version = node.user_agent_build_version.version
    return (version.major_number, version.minor_number) >= (1, 18)
