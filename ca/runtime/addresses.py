"""Addresses as configurations and command lines have them: `host:port`, and how long a Unix socket's path may be."""

from __future__ import annotations

from ipaddress import ip_address

MAX_SOCKET_PATH_BYTES = 107
"""Of `sun_path`, without the NUL at its end (unix(7))."""


def split_address(address: str) -> tuple[str, int]:
    """`host:port` or `[ipv6]:port` → (host, port). Raises ValueError, which a model reports as its own."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"`{address}` is not `host:port`")
    if host.startswith("[") and host.endswith("]"):
        return str(ip_address(host[1:-1])), int(port)
    if not host or ":" in host or "/" in host:
        raise ValueError(f"`{address}` is not `host:port` (an IPv6 address stands in brackets)")
    return host, int(port)
