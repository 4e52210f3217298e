"""Several of Envoy's HTTP filters as one resource, so that a proxy takes a revision over in one step.

Envoy's `filter_chain` filter (since 1.39) puts them into the request's own chain one by one: a request is decided by
the filters of one resource, those that it began with, however many come meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable

from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from google.protobuf.any_pb2 import Any as AnyMessage

from policy.envoy_wire import numbered, raw_of

CHAIN = "type.googleapis.com/envoy.extensions.filters.http.filter_chain.v3.FilterChainConfig"
"""No package of Envoy's messages has it yet."""
_default_filter_chain, _filters = numbered(1), numbered(1)


def chained(filters: Iterable[tuple[str, AnyMessage]]) -> AnyMessage:
    """Filters by name, in their order, as one. An empty chain would let everything through."""
    raw = b"".join(_filters(raw_of(TypedExtensionConfig(name=name, typed_config=made))) for name, made in filters)
    if not raw:
        raise ValueError("a chain has at least one filter")
    return AnyMessage(type_url=CHAIN, value=_default_filter_chain(raw))
