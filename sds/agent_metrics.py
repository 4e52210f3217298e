"""The agent's own numbers, read when somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial

from ca.ports import Clock
from ca.runtime.metrics import gauge
from sds.cache import Cache
from sds.condition import Condition, State
from sds.follower import Follower
from sds.jwt_cache import JwtCache

SVID_EXPIRY = gauge("agent_svid_not_after_seconds", "When the agent's own SVID expires, Unix time; 0 without one")
FIRST_EXPIRY = gauge("agent_workload_svid_not_after_seconds", "When the first workload SVID expires; 0: none")
LAST_SYNC = gauge(
    "agent_last_sync_timestamp_seconds", "When the server's word was last taken over, Unix time; 0: never"
)
ENTRIES = gauge("agent_entries", "Registration entries held")
X509_SVIDS = gauge("agent_x509_svids", "Workload X.509-SVIDs held")
JWT_SVIDS = gauge("agent_jwt_svids", "JWT-SVIDs held")
CONNECTED = gauge("agent_connected", "1 while the push stream to a server stands, or polling it succeeds")
STATE = gauge("agent_state", "1 for the state the agent is in", ["state"])


def expose(
    *,
    cache: Cache,
    jwts: JwtCache,
    follower: Follower,
    condition: Condition,
    clock: Clock,
    svid_not_after: Callable[[], datetime | None],
    connected: Callable[[], bool],
) -> None:
    """Have the gauges read these objects from now on; the last call counts."""
    SVID_EXPIRY.set_function(lambda: _seconds(svid_not_after()))
    FIRST_EXPIRY.set_function(
        lambda: _seconds(min((s.not_after for s in cache.svids() if s.not_after > clock.now()), default=None))
    )
    LAST_SYNC.set_function(lambda: _seconds(follower.last_sync_at))
    ENTRIES.set_function(lambda: len(cache.entries()))
    X509_SVIDS.set_function(lambda: len(cache.svids()))
    JWT_SVIDS.set_function(lambda: len(jwts))
    CONNECTED.set_function(lambda: float(connected()))
    for state in State:
        STATE.labels(state.value).set_function(partial(_is, condition, state))


def _is(condition: Condition, state: State) -> float:
    return float(condition.state is state)


def _seconds(moment: datetime | None) -> float:
    return moment.timestamp() if moment else 0.0
