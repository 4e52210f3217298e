"""How policies decide at the demo's Envoys: the sidecar is given them, the gateway asks about each request.

Both are parts that `caadmin policy envoy-snippet` writes for any Envoy. Only the log is told differently: each entry at
once, rather than all of a second.
"""

from __future__ import annotations

from typing import Any

from ca.up.envoy_config import AGENT

PUSHED, ASKED = "pushed", "ext_authz"
"""As the decision log calls the two ways."""


def load() -> None:
    """Import what the others need, which takes a moment: while nobody waits for it."""
    import policy.envoy_snippet  # noqa: F401


def sidecar(name: str) -> dict[str, Any]:
    """By the filter that the agent gives it; what that cannot say is asked. Without a filter all is refused."""
    return _manager(name)


def gateway(name: str) -> dict[str, Any]:
    """By asking the agent about every request."""
    from google.protobuf.json_format import MessageToDict

    from policy.envoy_snippet import ask_filter

    ask = MessageToDict(ask_filter(AGENT, prefix=name, marked=False), preserving_proto_field_name=True)
    return _manager(name) | {"http_filters": [{"name": "burgee.http.ask", "typed_config": ask}]}


def _manager(name: str) -> dict[str, Any]:
    from policy.envoy import Proxy
    from policy.envoy_snippet import http_snippet

    found: dict[str, Any] = http_snippet(Proxy(ext_authz=True), AGENT, "", prefix=name)["http_connection_manager"]
    for log in found["access_log"]:
        log["typed_config"]["common_config"]["buffer_size_bytes"] = 0
    return found
