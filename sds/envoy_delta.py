"""The rules of one xDS stream (incremental), without any I/O: requests and what names stand for in, answers out."""

from __future__ import annotations

import secrets as randomness
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from google.protobuf import any_pb2, duration_pb2

from sds import envoy_messages as messages
from sds.envoy_answers import Answers, Found, Missing
from sds.envoy_subscriber import NOTE_BYTES, ResourceState, Subscriber, check_bounds, parse

EVERYTHING = "*"
MAX_OUTSTANDING = 64
"""Answers without an acknowledgement that are remembered; a client that never acknowledges is no reason to grow."""


@dataclass(slots=True, kw_only=True)
class DeltaStream(Subscriber):
    """State of one stream such as DeltaSecrets: requests add and drop names, answers hold what the client lacks."""

    _client_has: dict[str, str] = field(default_factory=dict)
    """Name → version of what the client holds or was sent; empty: it was told that there is no such secret."""
    _outstanding: dict[str, dict[str, str]] = field(default_factory=dict)
    """Nonce → names and versions of an answer that has not been acknowledged yet, oldest first."""
    _accepted: dict[str, str] = field(default_factory=dict)
    """Name → version of what the client took over, where it ends by itself."""

    def take_in(self, raw: bytes, now: datetime) -> None:
        self.request(parse(messages.discovery_pb2.DeltaDiscoveryRequest, raw), now)

    def request(self, request: messages.discovery_pb2.DeltaDiscoveryRequest, now: datetime) -> None:
        """Take in a request. Raises InvalidArgument when it is out of bounds.

        Unlike in state of the world no nonce is stale: each answer is acknowledged by itself, and names count always.
        """
        wanted, unwanted = request.resource_names_subscribe, request.resource_names_unsubscribe
        check_bounds(self.subscribed.union(wanted))
        check_bounds(request.initial_resource_versions)
        if not self._begun or request.HasField("node"):
            self._read_node(request.node)
        self.type_url = request.type_url
        if request.response_nonce:
            self._acknowledge(request, now)
        first, self._begun = not self._begun, True
        self._subscribe(wanted, first=first)
        self._unsubscribe(unwanted)
        if first:
            self._resume(request.initial_resource_versions)

    def respond(self, answers: Answers, now: datetime) -> bytes | None:
        """The serialized DeltaDiscoveryResponse that is due now, or None.

        Names that mean nothing here are in `removed_resources`, and are sent when they come to mean something; of
        those whose SVID is on its way nothing is said. What a client rejected is not sent again until it differs.
        """
        if not self._begun:
            return None
        found, missing = self._resolve(answers, now)
        versions = {name: hit.version for name, hit in found.items()}
        changed = {name: found[name] for name, version in versions.items() if self._differs(name, found[name], now)}
        removed = self._removed(found, missing)
        if not changed and not removed:
            return None
        nonce = randomness.token_hex(8)
        self._remember(nonce, {name: versions[name] for name in changed})
        for name in changed:
            self._client_has[name] = versions[name]
            self._note_sent(name, versions[name], now, changed[name].note)
        # Fields of a message may be concatenated: the shared body once, then what is this stream's own.
        own = messages.discovery_pb2.DeltaDiscoveryResponse(nonce=nonce, removed_resources=removed)
        tail: bytes = own.SerializeToString()
        return self._body(answers, changed) + tail

    def heartbeat(self) -> bytes | None:
        """A resource without its body, at the version that the client holds (xDS, TTL). Of one that was sent and not
        acknowledged yet nothing is said: the client may hold it already."""
        beats = [
            self._lasting(messages.discovery_pb2.Resource(name=name, version=version))
            for name, version in self._accepted.items()
            if name in self.statuses and self.statuses[name].state in (ResourceState.ACKED, ResourceState.NACKED)
        ]
        if not beats or not self.ttl_seconds:
            return None
        response = messages.discovery_pb2.DeltaDiscoveryResponse(
            type_url=self.type_url, nonce=randomness.token_hex(8), resources=beats
        )
        serialized: bytes = response.SerializeToString()
        return serialized

    def held_bytes(self) -> int:
        client = sum(len(name) + len(version) + NOTE_BYTES for name, version in self._client_has.items())
        accepted = NOTE_BYTES * len(self._accepted)
        return self._basic_bytes() + client + accepted + NOTE_BYTES * sum(map(len, self._outstanding.values()))

    def _body(self, answers: Answers, changed: dict[str, Found]) -> bytes:
        """An answer without its nonce, made once for all streams that lack the same secrets in the same form."""

        def make() -> bytes:
            resources = [
                self._lasting(
                    messages.discovery_pb2.Resource(
                        name=name, version=hit.version, resource=any_pb2.Any.FromString(hit.resource)
                    )
                )
                for name, hit in changed.items()
            ]
            response = messages.discovery_pb2.DeltaDiscoveryResponse(
                system_version_info=answers.version, type_url=self.type_url, resources=resources
            )
            serialized: bytes = response.SerializeToString()
            return serialized

        if self.type_url not in ("", answers.type_url):
            return make()
        return answers.once_for(self.room, ("delta", tuple(changed), self.type_url), make)

    def _lasting(self, resource: messages.discovery_pb2.Resource) -> messages.discovery_pb2.Resource:
        if self.ttl_seconds:
            ttl = duration_pb2.Duration()
            ttl.FromMilliseconds(round(self.ttl_seconds * 1000))
            resource.ttl.CopyFrom(ttl)
        return resource

    def _subscribe(self, names: Iterable[str], *, first: bool) -> None:
        """A first request without names asks for everything, as does `*` at any time (xDS, wildcards).

        A name is answered each time it is asked for, also at a version that was sent: the client may have dropped it.
        """
        named = frozenset(name for name in names if name and name != EVERYTHING)
        if EVERYTHING in names or (first and not named):
            self.everything = True
        self.subscribed |= named
        for name in named:
            self._client_has.pop(name, None)

    def _unsubscribe(self, names: Iterable[str]) -> None:
        gone = frozenset(names)
        if EVERYTHING in gone:
            self.everything = False
        self.subscribed -= gone
        for name in [*self._client_has]:
            if self.everything and name in gone:
                # Still part of everything, and perhaps dropped by the client: sent again, or said to be removed.
                self._client_has[name] = "dropped"
            elif not self.everything and name not in self.subscribed:
                del self._client_has[name]
                self._accepted.pop(name, None)

    def _resume(self, versions: Mapping[str, str]) -> None:
        """Take the client's word for what it holds from an earlier stream."""
        for name, version in versions.items():
            if self.everything or name in self.subscribed:
                self._client_has[name] = version

    def _acknowledge(self, request: messages.discovery_pb2.DeltaDiscoveryRequest, now: datetime) -> None:
        answer = self._outstanding.pop(request.response_nonce, None)
        if answer is not None:
            # What was sent anew meanwhile has a later answer to be acknowledged with.
            current = [n for n, version in answer.items() if n in self.statuses and self.statuses[n].version == version]
            refused = request.HasField("error_detail")
            self._note_answer(current, request.error_detail if refused else None, now)
            if not refused and self.ttl_seconds:
                self._accepted.update((name, v) for name, v in answer.items() if name in self._client_has)

    def _differs(self, name: str, hit: Found, now: datetime) -> bool:
        """Whether the client has not got this version of a resource that there is."""
        version = hit.version
        if self._client_has.get(name) != version:
            return True
        status = self.statuses.get(name)
        if status is None or status.state is ResourceState.UNKNOWN:  # it holds it from an earlier stream
            self._note_sent(name, version, now, hit.note)
            self._note_answer([name], None, now)
            self.statuses[name].sent_at = None
            if self.ttl_seconds:
                self._accepted[name] = version
        return False

    def _removed(self, found: dict[str, Found], missing: dict[str, Missing]) -> list[str]:
        """Names to tell the client that there is no such secret, each once."""
        unknown = [name for name, why in missing.items() if not why.pending and self._client_has.get(name) != ""]
        for name in unknown:
            self._client_has[name] = ""
        lost = [name for name in self._client_has if name not in found and name not in missing]
        for name in lost:
            del self._client_has[name]
        for name in (*unknown, *lost):
            self._accepted.pop(name, None)
        return [*unknown, *lost]

    def _remember(self, nonce: str, answer: dict[str, str]) -> None:
        self._outstanding[nonce] = answer
        if len(self._outstanding) > MAX_OUTSTANDING:
            del self._outstanding[next(iter(self._outstanding))]
