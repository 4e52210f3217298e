"""How many connections a gate bears, from whom, and what those may do who show no certificate."""

from __future__ import annotations

import ipaddress
import os
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

FILES_PER_CONNECTION = 4
"""The client's socket, its pidfd, our socket to grpcio and grpcio's end of that."""

RESERVED_FILES = 128
RESERVED_PLACES = 32
"""Places that only root and our own user can take on a Unix socket: others cannot lock the administrator out."""

_IPV6_SITE_BITS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLimits:
    """What one gate bears before it refuses. Fewer than `max_connections` where the hard limit of open files is low."""

    max_connections: int = 10_000
    max_connections_per_address: int = 2_000
    max_connections_per_uid: int = 4_000
    max_connections_per_share: int = 1_500
    """Of one share of a Unix listener that tells its callers apart, and never more than half of all places."""

    calls_per_second_per_share: float | None = None
    """How fast a share may begin calls, after twice as many at once; what comes faster is read more slowly."""

    files_per_connection: int = FILES_PER_CONNECTION
    reserved_files: int = RESERVED_FILES
    """Open files that are for everything else; half of what there is, where there is little."""

    max_anonymous_connections: int = 1_000
    """TLS connections without a client certificate: whoever has one is not crowded out by them."""

    max_anonymous_bytes: int = 1 << 20
    """What such a connection may send in all; an attestation takes some ten thousand."""

    max_anonymous_seconds: float = 300.0
    """How long it may last; then GOAWAY."""

    handshake_timeout_seconds: float = 10.0
    first_bytes_timeout_seconds: float = 10.0
    stall_timeout_seconds: float = 60.0
    """A connection whose client takes no byte of what waits for it for so long is ended."""

    expiry_grace_seconds: float = 30.0
    """From a client certificate's notAfter to GOAWAY."""


class Places:
    """Counts a gate's connections. An origin is one network address, or one uid."""

    def __init__(self, limits: GateLimits, open_files: int) -> None:
        self._limits = limits
        reserved = min(limits.reserved_files, open_files // 2)
        self._most = min(limits.max_connections, max(1, (open_files - reserved) // limits.files_per_connection))
        self._reserved = min(RESERVED_PLACES, self._most // 8)
        self._by_origin: Counter[object] = Counter()
        self._taken = 0
        self.anonymous = 0

    def refusal_of_address(self, host: str) -> str:
        """Why nobody more can come from there; empty when somebody can."""
        return self._refusal(origin_of_address(host), self._limits.max_connections_per_address, self._reserved)

    def refusal_of_uid(self, uid: int) -> str:
        """The same for a local user."""
        reserved = 0 if uid in (0, os.geteuid()) else self._reserved
        return self._refusal(("uid", uid), self._limits.max_connections_per_uid, reserved)

    def refusal_of_share(self, share: object) -> str:
        """The same for a share of a Unix listener."""
        allowed = min(self._limits.max_connections_per_share, max(1, self._most // 2))
        return "CONNECTION_LIMIT_OF_CALLER" if self._by_origin[share] >= allowed else ""

    def take(self, *origins: object) -> None:
        """One place, which counts for each of these origins."""
        self._taken += 1
        self._by_origin.update(origins)

    def give_back(self, *origins: object) -> None:
        self._taken -= 1
        for origin in origins:
            self._by_origin[origin] -= 1
            if not self._by_origin[origin]:
                del self._by_origin[origin]

    def _refusal(self, origin: object, allowed: int, reserved: int) -> str:
        if self._taken >= self._most - reserved:
            return "CONNECTION_LIMIT"
        return "CONNECTION_LIMIT_OF_CALLER" if self._by_origin[origin] >= allowed else ""


@lru_cache(maxsize=4096)
def origin_of_address(host: str) -> object:
    """One IPv4 address, or one IPv6 /64: a host has as many addresses of that as it likes."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return ("address", int(address) >> _IPV6_SITE_BITS)
        address = address.ipv4_mapped
    return ("address", str(address))
