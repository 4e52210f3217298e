"""The rules of one SDS stream (xDS, state of the world), without any I/O: requests and contents in, answers out."""

from __future__ import annotations

import secrets as randomness
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2

from ca.errors import InvalidArgument
from sds.secrets import TYPE_URL, Form, Found, Missing, SecretNames, every_name, is_root_name, resolve
from sds.views import Content

MAX_NAMES = 1000
MAX_NAME_BYTES = 2048
MAX_DETAIL = 2000


class ResourceState(StrEnum):
    """How far a secret got."""

    SENT = "SENT"
    ACKED = "ACKED"
    NACKED = "NACKED"
    UNKNOWN = "UNKNOWN"


@dataclass(slots=True, kw_only=True)
class ResourceStatus:
    """What the operator is shown about one name on one stream. `detail`: a NACK's words, or why it is unknown."""

    name: str
    state: ResourceState
    version: str = ""
    sent_at: datetime | None = None
    answered_at: datetime | None = None
    detail: str = ""


@dataclass(slots=True, kw_only=True)
class SdsStream:
    """State of one stream. Feed it `request`s, and after each of them and each change ask it to `respond`."""

    names: SecretNames = field(default_factory=SecretNames)
    validator: Form = Form.SPIFFE
    node_id: str = ""
    user_agent: str = ""
    form: Form = Form.SPIFFE
    subscribed: frozenset[str] = frozenset()
    everything: bool = False
    statuses: dict[str, ResourceStatus] = field(default_factory=dict)
    nonce: str = ""
    type_url: str = ""
    _begun: bool = False
    _must_answer: bool = False
    _sent: dict[str, bytes] = field(default_factory=dict)

    @property
    def roots_only(self) -> bool:
        """Whether it carries trust bundles alone: such streams are told of a change before those with leaves."""
        return not self.everything and all(is_root_name(name, self.names) for name in self.subscribed)

    def request(self, request: discovery_pb2.DiscoveryRequest, now: datetime) -> None:
        """Take in a request. Raises InvalidArgument when it is out of bounds."""
        if self._begun and self.nonce and request.response_nonce not in ("", self.nonce):
            return  # a stale nonce: the client has not seen our last answer yet and will speak again
        self._check_bounds(request.resource_names)
        if not self._begun or request.HasField("node"):
            self._read_node(request.node)
        self.type_url = request.type_url
        answered = bool(request.response_nonce) and request.response_nonce == self.nonce
        if answered:
            self._note_answer(request, now)
        self._subscribe(request.resource_names, answered=answered)
        self._begun = True

    def respond(self, content: Content, *, settled: bool, now: datetime) -> bytes | None:
        """The serialized DiscoveryResponse that is due now, or None.

        A new subscription is answered even when nothing changed since an earlier stream; names without a secret are
        passed over in silence (an empty answer would make Envoy reject it) and get theirs when there is one. What a
        client rejected is not sent again until it differs.
        """
        if not self._begun:
            return None
        found = self._resolve(content, settled=settled, now=now)
        resources = {name: hit.resource for name, hit in found.items()}
        must, self._must_answer = self._must_answer, False
        if not resources:
            self._must_answer = must
            return None
        if not must and (resources == self._sent or self._only_lost(resources)):
            return None
        self._sent = resources
        self.nonce = randomness.token_hex(8)
        for name in found:
            self.statuses[name] = ResourceStatus(
                name=name, state=ResourceState.SENT, version=content.version, sent_at=now
            )
        body = self.body(content, found, version=content.version)
        # Fields of a message may be concatenated: the shared body once, then this stream's own nonce.
        own: bytes = discovery_pb2.DiscoveryResponse(nonce=self.nonce).SerializeToString()
        return body + own

    def body(self, content: Content, found: dict[str, Found], *, version: str) -> bytes:
        """A response without its nonce, made once for all streams that ask for the same names in the same form."""

        def make() -> bytes:
            resources = [any_pb2.Any.FromString(hit.resource) for hit in found.values()]
            response = discovery_pb2.DiscoveryResponse(
                version_info=version, type_url=self.type_url, resources=resources
            )
            serialized: bytes = response.SerializeToString()
            return serialized

        if self.type_url not in ("", TYPE_URL):
            return make()
        return content.once(("response", tuple(found), self.form, self.type_url, version), make)

    def resolve_now(self, content: Content, *, settled: bool, now: datetime) -> dict[str, Found]:
        """What the subscribed names stand for now, in the order in which it is sent."""
        return self._resolve(content, settled=settled, now=now)

    def _check_bounds(self, names: Iterable[str]) -> None:
        names = list(names)
        if len(names) > MAX_NAMES or any(len(name.encode()) > MAX_NAME_BYTES for name in names):
            raise InvalidArgument(
                f"at most {MAX_NAMES} resource names of {MAX_NAME_BYTES} bytes each", reason="SDS_TOO_MANY_NAMES"
            )

    def _read_node(self, node: base_pb2.Node) -> None:
        version = node.user_agent_build_version.version
        self.node_id = node.id[:256]
        self.user_agent = node.user_agent_name[:64]
        if node.HasField("user_agent_build_version"):
            self.user_agent += f" {version.major_number}.{version.minor_number}.{version.patch}"
        self.form = self.validator if _has_validator(node) else Form.TRUSTED_CA

    def _note_answer(self, request: discovery_pb2.DiscoveryRequest, now: datetime) -> None:
        """A NACK is a request with `error_detail` (never told from the version); anything else accepts."""
        rejected = request.HasField("error_detail")
        for name in self._sent:
            status = self.statuses.get(name)
            if status is not None and status.state is ResourceState.SENT:
                status.state = ResourceState.NACKED if rejected else ResourceState.ACKED
                status.detail = request.error_detail.message[:MAX_DETAIL] if rejected else ""
                status.answered_at = now

    def _subscribe(self, names: Iterable[str], *, answered: bool) -> None:
        wanted = frozenset(name for name in names if name)
        everything = not wanted
        changed = wanted != self.subscribed or everything != self.everything
        # Without our nonce it is a subscription made anew, also when a nonce is left from an earlier stream.
        self._must_answer = self._must_answer or changed or not answered
        self.subscribed, self.everything = wanted, everything
        if changed:
            self.statuses = {name: s for name, s in self.statuses.items() if everything or name in wanted}

    def _resolve(self, content: Content, *, settled: bool, now: datetime) -> dict[str, Found]:
        asked = every_name(content) if self.everything else sorted(self.subscribed)
        found: dict[str, Found] = {}
        for name in asked:
            answer = resolve(name, content, settled=settled, names=self.names, form=self.form)
            if isinstance(answer, Missing):
                self._note_missing(name, answer, now)
            else:
                found[name] = answer
        if self.everything:
            for name in self.statuses.keys() - found.keys():
                del self.statuses[name]
        return dict(sorted(found.items(), key=lambda item: (item[1].rank, item[0])))

    def _note_missing(self, name: str, missing: Missing, now: datetime) -> None:
        known = self.statuses.get(name)
        if known is not None and known.state is not ResourceState.UNKNOWN:
            # It was sent once and its entry or SVID has gone: Envoy keeps it until it expires; say so.
            known.detail = f"no longer given: {missing.detail}"
        else:
            self.statuses[name] = ResourceStatus(
                name=name, state=ResourceState.UNKNOWN, detail=missing.detail, answered_at=now
            )

    def _only_lost(self, resources: dict[str, bytes]) -> bool:
        """SDS cannot take a named secret back: when all that is left was sent already, there is nothing to say."""
        if self.everything:
            return False
        return all(self._sent.get(name) == resource for name, resource in resources.items())


def _has_validator(node: base_pb2.Node) -> bool:
    """False for an Envoy before 1.18 and where the node's metadata says so, as SPIRE's agent reads them."""
    switch = node.metadata.fields.get("disable_spiffe_cert_validation")
    if switch is not None and (switch.bool_value or switch.string_value.lower() == "true"):
        return False
    if not node.HasField("user_agent_build_version"):
        return True
    version = node.user_agent_build_version.version
    return (version.major_number, version.minor_number) >= (1, 18)
