"""One decision as it is kept: who asked for what of whom, what was decided, and enough to decide it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from policy.decision import Decision

if TYPE_CHECKING:
    from policy.model import Request

MASK = "***"
"""Stands for a value that is not kept."""
MAX_LINE_BYTES = 256 * 1024
"""No record is longer: requests are bounded before they are decided."""


class Source(StrEnum):
    """Who decided: our code on a check, a proxy by what was pushed to it, or our code on a question."""

    EXT_AUTHZ = "ext_authz"
    PUSHED = "pushed"
    AUTHZEN = "authzen"
    EVALUATE = "evaluate"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRecord:
    """What is None or empty was not known, or is not there. Of a pushed decision less is known than of one of ours.

    `target` has `spiffe://`, `principal` has not, as in a Request. `policy` and `rule` (from 0) are the decisive ones,
    `shadow…` those that would decide with shadow policies enforced. `masked` names what of the request was replaced
    (`headers.authorization`) before it was written: a decision on that cannot be repeated exactly.
    """

    id: str
    at: datetime
    source: Source
    target: str
    allowed: bool
    reason: str
    principal: str | None = None
    http: bool = True
    method: str | None = None
    path: str | None = None
    """As rules saw it: normalized, without query."""
    host: str | None = None
    port: int | None = None
    """Of the destination."""
    source_ip: str | None = None
    remote_ip: str | None = None
    destination_ip: str | None = None
    sni: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    claims: Mapping[str, Any] | None = None
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    policy: str | None = None
    rule: int | None = None
    providers: tuple[str, ...] = ()
    shadow: bool | None = None
    shadow_policy: str | None = None
    shadow_rule: int | None = None
    revision: int | None = None
    """Of the policies by which it was decided; None where a proxy decided and did not say."""
    agent: str = ""
    proxy: str = ""
    """Envoy's node id, for a pushed decision."""
    detail: str = ""
    """More about the reason, in words."""
    masked: tuple[str, ...] = ()

    @property
    def request(self) -> Request:
        """What was decided, to be decided again."""
        from policy.model import Request  # an agent that decides nothing is without the model

        return Request(
            principal=self.principal,
            source_ip=self.source_ip,
            remote_ip=self.remote_ip,
            destination_ip=self.destination_ip,
            destination_port=self.port,
            sni=self.sni,
            http=self.http,
            method=self.method,
            path=self.path,
            host=self.host,
            headers=self.headers,
            claims=self.claims,
            metadata=self.metadata,
        )

    def document(self) -> dict[str, Any]:
        """As JSON values, without what is as it is by default; `at` is RFC 3339 in UTC, with microseconds."""
        found = {name: value for name, absent in _ABSENT.items() if (value := getattr(self, name)) != absent}
        found["at"] = self.at.astimezone(UTC).isoformat(timespec="microseconds")
        return found

    def json_line(self) -> str:
        """One line, without its end."""
        return _encoded(self.document())

    @classmethod
    def from_json(cls, text: str | bytes) -> DecisionRecord:
        """Reads what `json_line` wrote; names that are not known are passed over. Raises ValueError."""
        if len(text) > MAX_LINE_BYTES:
            raise ValueError("a record is too long")
        try:
            found = json.loads(text)
        except RecursionError:
            raise ValueError("too deep to be a record") from None
        if not isinstance(found, dict):
            raise ValueError("a record is a JSON object")
        return cls.from_document(found)

    @classmethod
    def from_document(cls, found: Mapping[str, Any]) -> DecisionRecord:
        """The same from JSON values. Raises ValueError."""
        values = {name: found[name] for name in _NAMES if name in found}
        for name, kinds in _KINDS.items():
            value = values.get(name)
            if name in values and not (isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))):
                raise ValueError(f"`{name}` of a record is ill-typed")
        if missing := [name for name in _REQUIRED if name not in values]:
            raise ValueError(f"`{missing[0]}` of a record is missing")
        values["at"] = datetime.fromisoformat(values["at"])
        if values["at"].tzinfo is None:
            raise ValueError("`at` of a record has no time zone")
        values["source"] = Source(values["source"])
        for name in _LISTS & values.keys():
            if not all(isinstance(item, str) for item in values[name]):
                raise ValueError(f"`{name}` of a record is ill-typed")
            values[name] = tuple(values[name])
        if not all(isinstance(value, str) for value in values.get("headers", {}).values()):
            raise ValueError("`headers` of a record is ill-typed")
        if not all(isinstance(value, dict) for value in values.get("metadata", {}).values()):
            raise ValueError("`metadata` of a record is ill-typed")
        return cls(**values)


_encoded = json.JSONEncoder(separators=(",", ":")).encode
_NAMES = tuple(found.name for found in fields(DecisionRecord))
_REQUIRED = ("id", "at", "source", "target", "allowed", "reason")
_ABSENT: dict[str, Any] = {
    one.name: one.default if one.default_factory is MISSING else one.default_factory() for one in fields(DecisionRecord)
}
_LISTS = frozenset({"providers", "masked"})
_INTEGERS = frozenset({"port", "rule", "shadow_rule", "revision"})
_BOOLEANS = frozenset({"allowed", "http", "shadow"})
_MAPPINGS = frozenset({"headers", "claims", "metadata"})


def _kinds(name: str) -> tuple[type, ...]:
    for names, kind in ((_INTEGERS, int), (_BOOLEANS, bool), (_MAPPINGS, dict), (_LISTS, list)):
        if name in names:
            return (kind,)
    return (str,)


_KINDS = {name: _kinds(name) for name in _NAMES}


def record_of(
    decision: Decision, request: Request, *, id: str, at: datetime, source: Source, target: str, **more: Any
) -> DecisionRecord:
    """The record of a decision of ours; `more` are further fields of a DecisionRecord: `revision`, `agent`, …"""
    shadow = decision.shadow
    if shadow is not None:
        more = {"shadow": shadow.allowed, "shadow_policy": shadow.policy, "shadow_rule": shadow.rule, **more}
    more.setdefault("allowed", decision.allowed)
    more.setdefault("reason", str(decision.reason))
    return _record(
        request,
        id=id,
        at=at,
        source=source,
        target=target,
        policy=decision.policy,
        rule=decision.rule,
        providers=decision.providers,
        **more,
    )


def refused_record(
    reason: str, request: Request, *, id: str, at: datetime, source: Source, target: str, **more: Any
) -> DecisionRecord:
    """The record of a request that was refused before any rule was asked, with what had been read of it."""
    return _record(request, id=id, at=at, source=source, target=target, allowed=False, reason=str(reason), **more)


def _record(request: Request, **known: Any) -> DecisionRecord:
    return DecisionRecord(
        principal=request.principal,
        http=request.http,
        method=request.method,
        path=request.path,
        host=request.host,
        port=request.destination_port,
        source_ip=request.source_ip,
        remote_ip=request.remote_ip,
        destination_ip=request.destination_ip,
        sni=request.sni,
        headers=request.headers,
        claims=request.claims,
        metadata=request.metadata,
        **known,
    )
