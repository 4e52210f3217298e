"""The rules of one xDS stream (state of the world), without any I/O: requests, and what names mean, in; answers out."""

from __future__ import annotations

import secrets as randomness
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from google.protobuf import any_pb2, duration_pb2

from sds import envoy_messages as messages
from sds.envoy_answers import Answers, Found
from sds.envoy_subscriber import NOTE_BYTES, ResourceState, Subscriber, check_bounds, parse


@dataclass(slots=True, kw_only=True)
class SdsStream(Subscriber):
    """State of one stream such as StreamSecrets: every request names all that is wanted, every answer gives all there
    is."""

    nonce: str = ""
    _must_answer: bool = False
    _sent: dict[str, str] = field(default_factory=dict)
    """Name → version of what the last answer had."""

    def take_in(self, raw: bytes, now: datetime) -> None:
        self.request(parse(messages.discovery_pb2.DiscoveryRequest, raw), now)

    def request(self, request: messages.discovery_pb2.DiscoveryRequest, now: datetime) -> None:
        """Take in a request. Raises InvalidArgument when it is out of bounds."""
        if self._begun and self.nonce and request.response_nonce not in ("", self.nonce):
            return  # a stale nonce: the client has not seen our last answer yet and will speak again
        check_bounds(request.resource_names)
        if not self._begun or request.HasField("node"):
            self._read_node(request.node)
        self.type_url = request.type_url
        answered = bool(request.response_nonce) and request.response_nonce == self.nonce
        if answered:
            # A NACK is a request with `error_detail` (never told from the version); anything else accepts.
            self._note_answer(self._sent, request.error_detail if request.HasField("error_detail") else None, now)
        self._subscribe(request.resource_names, answered=answered)
        self._begun = True

    def respond(self, answers: Answers, now: datetime) -> bytes | None:
        """The serialized DiscoveryResponse that is due now, or None.

        A new subscription is answered even when nothing changed since an earlier stream; names without a secret are
        passed over in silence (an empty answer would make Envoy reject it) and get theirs when there is one. What a
        client rejected is not sent again until it differs.
        """
        if not self._begun:
            return None
        found = self.resolve_now(answers, now)
        versions = {name: hit.version for name, hit in found.items()}
        must, self._must_answer = self._must_answer, False
        if not versions:
            self._must_answer = must
            return None
        if not must and (versions == self._sent or self._only_lost(versions)):
            return None
        self._sent = versions
        self.nonce = randomness.token_hex(8)
        for name, hit in found.items():
            self._note_sent(name, answers.version, now, hit.note)
        body = self.body(answers, found, version=answers.version)
        # Fields of a message may be concatenated: the shared body once, then this stream's own nonce.
        own: bytes = messages.discovery_pb2.DiscoveryResponse(nonce=self.nonce).SerializeToString()
        return body + own

    def heartbeat(self) -> bytes | None:
        """All of it again: Envoy does not take a resource without its body for a heartbeat here. What it rejected is
        not repeated, so that what it holds instead comes to its end."""
        accepted = all(status.state is ResourceState.ACKED for status in self.statuses.values())
        if self.seen is None or not self._sent or not accepted or not self.ttl_seconds:
            return None
        asked = self._sent.keys() & self.subscribed
        found = {name: hit for name in sorted(asked) if isinstance(hit := self.seen.find(name), Found)}
        self.nonce = randomness.token_hex(8)
        own: bytes = messages.discovery_pb2.DiscoveryResponse(nonce=self.nonce).SerializeToString()
        return self.body(self.seen, found, version=self.seen.version) + own

    def body(self, answers: Answers, found: dict[str, Found], *, version: str) -> bytes:
        """A response without its nonce, made once for all streams that ask for the same names in the same form."""

        def make() -> bytes:
            resources = [self._resource(name, hit, version) for name, hit in found.items()]
            response = messages.discovery_pb2.DiscoveryResponse(
                version_info=version, type_url=self.type_url, resources=resources
            )
            serialized: bytes = response.SerializeToString()
            return serialized

        if self.type_url not in ("", answers.type_url):
            return make()
        return answers.once_for(self.room, ("response", tuple(found), self.type_url, version), make)

    def resolve_now(self, answers: Answers, now: datetime) -> dict[str, Found]:
        """What the subscribed names stand for now, in the order in which it is sent."""
        return self._resolve(answers, now)[0]

    def _resource(self, name: str, hit: Found, version: str) -> any_pb2.Any:
        resource = any_pb2.Any.FromString(hit.resource)
        if not self.ttl_seconds:
            return resource
        return self._lasting(messages.discovery_pb2.Resource(name=name, version=version, resource=resource))

    def _lasting(self, wrapped: messages.discovery_pb2.Resource) -> any_pb2.Any:
        """What ends by itself goes in a wrapper (xDS, TTL)."""
        wrapped.ttl.CopyFrom(_duration(self.ttl_seconds))
        made = any_pb2.Any()
        made.Pack(wrapped)
        return made

    def _subscribe(self, names: Iterable[str], *, answered: bool) -> None:
        wanted = frozenset(name for name in names if name)
        everything = not wanted
        changed = wanted != self.subscribed or everything != self.everything
        # Without our nonce it is a subscription made anew, also when a nonce is left from an earlier stream.
        self._must_answer = self._must_answer or changed or not answered
        self.subscribed, self.everything = wanted, everything
        if changed:
            self.statuses = {name: s for name, s in self.statuses.items() if everything or name in wanted}

    def held_bytes(self) -> int:
        return self._basic_bytes() + NOTE_BYTES * len(self._sent)

    def _only_lost(self, versions: dict[str, str]) -> bool:
        """State of the world cannot take a secret back: when all that is left was sent, there is nothing to say."""
        if self.everything:
            return False
        return all(self._sent.get(name) == version for name, version in versions.items())


def _duration(seconds: float) -> duration_pb2.Duration:
    found = duration_pb2.Duration()
    found.FromMilliseconds(round(seconds * 1000))
    return found
