"""Arguments that need more than a type: durations, points in time, SPIFFE IDs, selectors."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ca.errors import InvalidArgument
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.runtime.durations import parse_duration

if TYPE_CHECKING:
    from ca.proto.spire import types_pb2

DURATION_HELP = "Seconds, or a duration such as 90s, 10m, 1h30m or 7d."


def duration(text: str) -> int:
    """Seconds. Raises InvalidArgument (reason DURATION)."""
    seconds = parse_duration(text)
    if seconds is None:
        raise InvalidArgument(f"`{text}` is not a duration", reason="DURATION", hint=DURATION_HELP)
    return seconds


def waiting(text: str) -> int:
    """Seconds to wait: at least one. Raises InvalidArgument (reason DURATION)."""
    seconds = duration(text)
    if seconds < 1:
        raise InvalidArgument("there must be some time to wait", reason="DURATION", hint=DURATION_HELP)
    return seconds


def instant(text: str) -> int:
    """Unix seconds from themselves or from RFC 3339; a time without a zone is taken as UTC. Raises InvalidArgument."""
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        hint = "RFC 3339, such as 2030-01-31T12:00:00Z, or Unix seconds"
        raise InvalidArgument(f"`{text}` is not a point in time", reason="TIME", hint=hint) from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def instant_or_ago(text: str) -> int:
    """Unix seconds of a point in time, or of how long ago it was: a duration has a unit, else digits are Unix seconds.
    Raises InvalidArgument."""
    if text[-1:] in "dhms" and text[:1].isdigit():
        return int(time.time()) - duration(text)
    return instant(text)


def wire_id(text: str) -> types_pb2.SPIFFEID:
    """A SPIFFE ID as the wire has it. Raises InvalidArgument."""
    from ca.proto.spire import types_pb2

    parsed = SpiffeId.parse(text)
    return types_pb2.SPIFFEID(trust_domain=parsed.trust_domain.name, path=parsed.path)


def wire_selectors(texts: Iterable[str]) -> list[types_pb2.Selector]:
    """`type:value` texts as the wire has them. Raises InvalidArgument."""
    from ca.proto.spire import types_pb2

    return [types_pb2.Selector(type=s.type, value=s.value) for s in map(Selector.parse, texts)]


def trust_domain_names(texts: Iterable[str]) -> list[str]:
    """Names or `spiffe://` IDs of trust domains. Raises InvalidArgument."""
    return [TrustDomain.parse(text).name for text in texts]
