"""Entries of Envoy's access log, v3, as the decisions that a proxy made by what was pushed to it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.json_format import Error, MessageToDict

from policy import envoy
from policy.decision_record import DecisionRecord, Source
from policy.envoy_predicates import JWT_FILTER
from policy.paths import without_query
from policy.tokens import left_claims

LOG_NAME = re.compile(r"burgee/([a-z0-9-]{1,32})")
"""As the snippet names the log: with the proxy's prefix."""
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""As Envoy makes ids of requests and of connections. Of a client's own id nothing is believed."""
_DENIED = re.compile(r"rbac_access_denied_matched_policy\[(.*)\]")
_RULE = re.compile(r"(.+)#([0-9]{1,9})")
_ENFORCED = f"{envoy.PREFIX}enforced_effective_policy_id"
_ENFORCED_RESULT = f"{envoy.PREFIX}enforced_engine_result"
_SHADOW = f"{envoy.PREFIX}shadow_effective_policy_id"
_SHADOW_RESULT = f"{envoy.PREFIX}shadow_engine_result"
_MAX_TEXT = 16 * 1024
_MAX_SKEW = timedelta(hours=1)

REASONS = {
    envoy.DEFAULT: "NOTHING_ALLOWS",
    envoy.OPEN: "NAMESPACE_IS_OPEN",
    envoy.SEVERAL_NAMES: "CERTIFICATE_NAMES",
    envoy.NOT_NORMAL: "PATH_NOT_NORMAL",
    envoy.NOT_DELIVERED: "POLICY_NOT_DELIVERED",
    envoy.CANNOT_ASK: "CANNOT_ASK",
}
"""Of verdicts that are no rule's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """Whose log it is. `target` is the attested caller's identity."""

    target: str
    prefix: str
    node: str = ""
    revision: int | None = None


@dataclass(frozen=True, slots=True)
class _Verdict:
    allowed: bool
    name: str
    reason: str = ""


def http_record(entry: Any, proxy: Proxy, *, now: datetime) -> DecisionRecord | None:
    """The decision on a request; None where the entry tells of none, or of one that was asked for and so is known."""
    common, request = entry.common_properties, entry.request
    marks = _marks(common, envoy.HTTP_METADATA)
    verdict = _http_verdict(marks, entry.response.response_code_details)
    name = request.request_id or common.stream_id
    if verdict is None or not _UUID.fullmatch(name):
        return None
    path = request.original_path or request.path
    method = _METHODS.get(request.request_method)
    return _record(
        common,
        proxy,
        verdict,
        marks,
        now,
        id=f"{proxy.prefix}-{name}",
        method=method,
        path=without_query(path)[:_MAX_TEXT] or None,
        host=request.authority[:_MAX_TEXT] or None,
        claims=_claims(common),
        masked=("headers", "metadata") if method else ("headers", "metadata", "method"),
    )


def tcp_record(entry: Any, proxy: Proxy, *, now: datetime) -> DecisionRecord | None:
    """The same of a connection; its filter tells only whom it refused, and by which rule."""
    common = entry.common_properties
    if not _UUID.fullmatch(common.stream_id):
        return None
    marks = _marks(common, envoy.NETWORK_METADATA)
    found = _DENIED.search(common.connection_termination_details)
    if found is not None:
        verdict = _Verdict(False, found[1])
    elif marks.get(_SHADOW) == envoy.ASK:
        return None
    else:
        verdict = _Verdict(True, "")
    return _record(
        common, proxy, verdict, marks, now, id=f"{proxy.prefix}-{common.stream_id}", http=False, masked=("metadata",)
    )


_METHODS = dict(enumerate(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"), start=1))
"""envoy.config.core.v3.RequestMethod; others are not told."""


def _marks(common: Any, filter_name: str) -> dict[str, str]:
    found = common.metadata.filter_metadata
    if filter_name not in found:
        return {}
    return {name: value.string_value for name, value in found[filter_name].fields.items()}


def _http_verdict(marks: dict[str, str], details: str) -> _Verdict | None:
    if details.startswith("jwt_authn_access_denied"):
        return _Verdict(False, "", reason="TOKEN_INVALID")
    name, result = marks.get(_ENFORCED, ""), marks.get(_ENFORCED_RESULT, "")
    if not result:
        return None
    if name == envoy.ASK:
        # Who was asked has written it down, unless nobody could be asked, or not in time.
        return _Verdict(False, "", reason="ASK_FAILED") if details.startswith("ext_authz_error") else None
    return _Verdict(result == "allowed", name)


def _record(
    common: Any, proxy: Proxy, verdict: _Verdict, marks: dict[str, str], now: datetime, **more: Any
) -> DecisionRecord:
    rule = _RULE.fullmatch(verdict.name)
    by_rule = "ALLOWED_BY_RULE" if verdict.allowed else "DENIED_BY_RULE"
    reason = verdict.reason or (by_rule if rule else REASONS.get(verdict.name, ""))
    if not reason:
        reason = "ALLOWED_BY_RULE" if verdict.allowed else "NOTHING_ALLOWS"
    shadow, shadow_rule = marks.get(_SHADOW_RESULT), _RULE.fullmatch(marks.get(_SHADOW, ""))
    tls = common.tls_properties
    names = [name.uri for name in tls.peer_certificate_properties.subject_alt_name if name.uri]
    local = common.downstream_local_address.socket_address
    return DecisionRecord(
        at=_time(common, now),
        source=Source.PUSHED,
        target=proxy.target,
        allowed=verdict.allowed,
        reason=reason,
        principal=names[0].removeprefix("spiffe://")[:_MAX_TEXT] if len(names) == 1 else None,
        port=local.port_value or None,
        destination_ip=local.address or None,
        source_ip=common.downstream_direct_remote_address.socket_address.address or None,
        remote_ip=common.downstream_remote_address.socket_address.address or None,
        sni=tls.tls_sni_hostname[:_MAX_TEXT] or None,
        policy=rule[1] if rule else None,
        rule=int(rule[2]) if rule else None,
        shadow=None if not shadow else shadow == "allowed",
        shadow_policy=shadow_rule[1] if shadow and shadow_rule else None,
        shadow_rule=int(shadow_rule[2]) if shadow and shadow_rule else None,
        revision=proxy.revision,
        proxy=proxy.node,
        detail=f"the caller's certificate has {len(names)} URI names" if len(names) > 1 else "",
        **more,
    )


def _time(common: Any, now: datetime) -> datetime:
    """When the request began, by the proxy's clock, if that is to be believed."""
    if common.HasField("start_time"):
        try:
            found: datetime = common.start_time.ToDatetime(tzinfo=UTC)
        except (ValueError, OverflowError):
            return now
        if abs(found - now) < _MAX_SKEW:
            return found
    return now


def _claims(common: Any) -> Mapping[str, Any] | None:
    found = common.metadata.filter_metadata
    if JWT_FILTER not in found:
        return None
    try:
        return left_claims(MessageToDict(found[JWT_FILTER]))
    except (Error, ValueError, RecursionError):  # a number that is none, or too deep
        return None
