"""Which addresses a server may be sent to by a name that a stranger gave: resolved once, judged, and dialled as judged.

A name can mean another address a moment later (DNS rebinding): nobody resolves it again between judging and dialling.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from ca.runtime.threads import to_thread

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str], Awaitable[Sequence[Address]]]
"""A name's addresses. Raises OSError."""

MAX_ADDRESSES = 8

_LOCAL = [
    ("loopback", "127.0.0.0/8"),
    ("loopback", "::1/128"),
    ("link-local", "169.254.0.0/16"),
    ("link-local", "fe80::/10"),
]
_NEVER = [
    ("unspecified", "0.0.0.0/8"),
    ("unspecified", "::/128"),
    ("multicast", "224.0.0.0/4"),
    ("multicast", "ff00::/8"),
    ("reserved", "240.0.0.0/4"),
    ("IPv4-mapped", "::ffff:0.0.0.0/96"),
    # These hold an IPv4 address too, which a router may send anywhere.
    ("translated", "::/96"),
    ("translated", "::ffff:0:0:0/96"),
    ("translated", "64:ff9b::/96"),
    ("translated", "64:ff9b:1::/48"),
    ("translated", "2001::/32"),
    ("translated", "2002::/16"),
]
_LOCAL_NETWORKS = [(kind, ip_network(text)) for kind, text in _LOCAL]
_NEVER_NETWORKS = [(kind, ip_network(text)) for kind, text in _NEVER]


async def system_resolve(name: str) -> Sequence[Address]:
    """As the machine resolves it: /etc/hosts, DNS. Raises OSError."""
    found = await to_thread(socket.getaddrinfo, name, None, type=socket.SOCK_STREAM)
    return [ip_address(str(address[0]).partition("%")[0]) for *_, address in found]


async def resolve_once(name: str, resolve: Resolve, *, seconds: float) -> list[Address]:
    """In the resolver's order, each once. Raises OSError (TimeoutError too)."""
    async with asyncio.timeout(seconds):
        found = list(dict.fromkeys(await resolve(name)))
    if not found:
        raise OSError("no address")
    return found[:MAX_ADDRESSES]


def refusal(address: Address, *, allowed: Sequence[Network], denied: Sequence[Network]) -> str:
    """Why this address is not dialled, or empty.

    `allowed` is every range there is where it names none. Loopback and link-local addresses are admitted only by a
    range that lies inside of them: `0.0.0.0/0` means the network, not this machine.
    """
    for kind, network in _LOCAL_NETWORKS:
        if _within(address, network):
            meant = [one for one in allowed if one.version == network.version and one.subnet_of(network)]  # type: ignore[arg-type]
            if not any(_within(address, one) for one in meant):
                return f"a {kind} address"
            return "in a denied range" if any(_within(address, one) for one in denied) else ""
    for kind, network in _NEVER_NETWORKS:
        if _within(address, network):
            return f"a {kind} address"
    if any(_within(address, one) for one in denied):
        return "in a denied range"
    if allowed and not any(_within(address, one) for one in allowed):
        return "in none of the allowed ranges"
    return ""


def dial(addresses: Sequence[Address], port: int, seconds: float) -> socket.socket:
    """The first of them that answers. Blocks. Raises OSError."""
    failed: OSError | None = None
    for address in addresses:
        try:
            return socket.create_connection((str(address), port), timeout=seconds / len(addresses))
        except OSError as error:
            failed = error
    raise failed or OSError("no address")


def _within(address: Address, network: Network) -> bool:
    return address.version == network.version and address in network
