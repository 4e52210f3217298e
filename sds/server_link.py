"""A gRPC channel to the server through its own relay, with the agent's SVID or without."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ca.errors import BurgeeError, Code, Unavailable
from ca.identity.bundle_pem import certificate_pem
from ca.ports import Clock
from ca.runtime.rpc import error_of
from ca.runtime.tls import TlsMaterial
from ca.runtime.tls_relay import TlsRelay
from sds.config import AgentConfig
from sds.first_trust import ServerTrust
from sds.state import AgentSvid

MAX_RECEIVE_BYTES = 64 << 20
"""A snapshot for a large node is one message."""

KEEPALIVE_SECONDS = 12
KEEPALIVE_TIMEOUT_SECONDS = 8
"""A server that says nothing for 12 s is asked, and given up 8 s later: one that hangs, or lies behind a proxy that
swallows everything, is left for another within 20 s. Our servers bear a ping every 5 s, more than twice as many:
an agent that was sent away for its pings would ask half as often from then on, and notice nothing in time."""

_OPTIONS = [
    # Channels to one address share a connection unless told not to; each of ours has its own identity.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 3000),
    ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
    # Without this one an unanswered ping is waited for for a minute, whatever the line above says.
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
    ("grpc.http2.max_pings_without_data", 0),
]


class ServerLink:
    """Channel and relay live and end together."""

    def __init__(self, relay: TlsRelay, trust: ServerTrust) -> None:
        self.relay = relay
        self.channel = _channel(relay)
        self._trust = trust

    @classmethod
    async def open(
        cls, *, config: AgentConfig, trust: ServerTrust, clock: Clock, svid: AgentSvid | None, first: bool = False
    ) -> ServerLink:
        """Returns at once: a server is dialled when the first call is made.

        `first`: nothing but the first bundle is asked for, which `insecure_bootstrap` takes from any server.
        """
        relay = TlsRelay(
            servers=config.servers,
            verify=partial(trust.verify_server, first=first),
            material=None if svid is None else _material(svid),
            directory=relay_directory(config),
            clock=clock,
            fit=lambda: None if svid is None else expiry(svid, clock),
        )
        await relay.start()
        trust.on_change(relay.recheck)
        return cls(relay, trust)

    def redial(self) -> grpc.aio.Channel:
        """From now on a new channel, which dials at its first call: one that failed pauses first, for seconds. Returns
        the old one, which is to be closed."""
        old, self.channel = self.channel, _channel(self.relay)
        return old

    async def explain(self, error: grpc.aio.AioRpcError) -> BurgeeError:
        """What the server answered; where none did, why the relay let none through, and what helps.

        A stale bundle is healed here, if the configuration allows it: the next try then succeeds.
        """
        found = error_of(error)
        refusal = self.relay.refusal
        if refusal is None and found.code is Code.UNAVAILABLE and found.reason == Unavailable.reason:
            # Not the server's word but gRPC's own: the connection broke, or nobody answered on it.
            return Unavailable(
                f"lost the connection to the server: {found.detail}",
                reason="SERVER_CONNECTION_LOST",
                hint="the agent connects again by itself",
            )
        if refusal is None or found.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
            return found
        await self._trust.heal(refusal.error, refusal.chain)
        return self._trust.explain(refusal.error)

    async def close(self, *, grace_seconds: float | None = None) -> None:
        """Calls in flight get `grace_seconds` to end."""
        self._trust.off_change(self.relay.recheck)
        try:
            await self.channel.close(grace_seconds)
        finally:
            await self.relay.close()


def _channel(relay: TlsRelay) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"unix:{relay.path}", options=[*_OPTIONS, relay.patience])


def expiry(svid: AgentSvid, clock: Clock) -> Unavailable | None:
    """Why no server is asked with this SVID: each would end the connection over it. A clock can be set back."""
    if svid.not_after > clock.now():
        return None
    return Unavailable(
        f"this agent's SVID expired at {svid.not_after:%Y-%m-%d %H:%M:%SZ}; no server is asked before there is "
        "a new one",
        reason="AGENT_EXPIRED",
        hint="the agent attests again by itself, if its node attestor has something to prove this node with",
    )


def relay_directory(config: AgentConfig) -> Path:
    return config.data_dir / "relay"


def _material(svid: AgentSvid) -> TlsMaterial:
    key = svid.private_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return TlsMaterial(chain_pem="".join(certificate_pem(der) for der in svid.chain).encode(), key_pem=key)
