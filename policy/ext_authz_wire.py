"""What ext_authz adds around a decision: metadata of the call in, and the answer with the decision's id out."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from google.protobuf.message import DecodeError

from policy.ext_authz import Said, Verdict

DECISION_HEADER = "x-burgee-decision"
"""Of every answer to a client; of a call from a proxy, the id that it gives to the request."""
TARGET = "x-burgee-target"
REMOTE_IP = "x-burgee-remote-ip"
TOKENS = "x-burgee-tokens"
LEFT = "x-burgee-metadata"
"""Metadata of a call, from the proxy's own configuration. All but the decision's id change only what is looked at."""

PERMISSION_DENIED = 7
FORBIDDEN = 403
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_FILTERS = 64


def said_by(metadata: Iterable[tuple[str, str | bytes]]) -> tuple[Said, str]:
    """What a call's metadata says, and for which of the caller's identities it asks (empty: it has but one).

    Raises ValueError where a value is said twice or is none.
    """
    found: dict[str, str] = {}
    for name, value in metadata:
        if name.startswith("x-burgee-"):
            if name in found or isinstance(value, bytes):
                raise ValueError(f"`{name}` is said twice")
            found[name] = value
    if not found:
        return _NOTHING
    decision, remote_ip = found.get(DECISION_HEADER, ""), found.get(REMOTE_IP)
    if remote_ip is not None:
        remote_ip = _address(remote_ip)
    left = found.get(LEFT, "")
    said = Said(
        decision=decision if _ID.fullmatch(decision) else "",
        remote_ip=remote_ip,
        jwt=TOKENS in found,
        metadata=frozenset(left.split(",")[:_MAX_FILTERS]) if left else frozenset(),
    )
    return said, found.get(TARGET, "")


def parsed(raw: bytes, metadata: Iterable[tuple[str, str | bytes]]) -> tuple[Any, Said, str]:
    """A CheckRequest, and what `said_by` gives. Raises ValueError."""
    said, wanted = said_by(metadata)
    try:
        return CheckRequest.FromString(raw), said, wanted
    except DecodeError:
        raise ValueError("not a CheckRequest") from None


@lru_cache(maxsize=4096)
def _address(text: str) -> str:
    return str(ipaddress.ip_address(text))


_NOTHING = (Said(), "")


def is_decision_id(text: str) -> bool:
    """Whether a text can be the id of a decision: it goes into headers and files."""
    return _ID.fullmatch(text) is not None


def answer(verdict: Verdict, id: str, *, revision: int | None) -> Any:
    """The CheckResponse. A client is told the decision's id and nothing else; the rest is for the proxy's log."""
    made = CheckResponse()
    if verdict.allowed:
        header = made.ok_response.response_headers_to_add.add()
    else:
        made.status.code = PERMISSION_DENIED
        made.denied_response.status.code = FORBIDDEN
        made.denied_response.body = json.dumps({"error": "refused by policy", "decision": id})
        header = made.denied_response.headers.add()
        kind = made.denied_response.headers.add()
        kind.header.key, kind.header.value = "content-type", "application/json"
        kind.append_action = _OVERWRITE
    header.header.key, header.header.value = DECISION_HEADER, id
    header.append_action = _OVERWRITE
    _tell(made.dynamic_metadata.fields, verdict, id, revision)
    return made


_OVERWRITE = 2
"""OVERWRITE_IF_EXISTS_OR_ADD."""


def _tell(fields: Any, verdict: Verdict, id: str, revision: int | None) -> None:
    fields["decision"].string_value = id
    fields["allowed"].bool_value = verdict.allowed
    fields["reason"].string_value = verdict.reason
    decision = verdict.decision
    if decision is not None and decision.policy is not None:
        fields["policy"].string_value = f"{decision.policy}#{decision.rule}"
    if decision is not None and decision.shadow is not None:
        fields["shadow"].bool_value = decision.shadow.allowed
    if revision is not None:
        fields["revision"].number_value = revision
