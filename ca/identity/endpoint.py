"""Addresses of a Workload Endpoint: `unix:///absolute/path` or `tcp://IP:port` (SPIFFE Workload Endpoint §4)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from ca.errors import InvalidArgument
from ca.identity.text import quote

ENVIRONMENT_VARIABLE = "SPIFFE_ENDPOINT_SOCKET"
DEFAULT_SOCKET = "/run/burgee/workload.sock"
"""Where our agent serves the Workload API unless it is configured otherwise."""

# The characters of a URI path (RFC 3986 §3.3); `?` and `#` would begin other parts.
_URI_PATH = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
_AUTHORITY = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<v4>[0-9.]+)):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class UnixEndpoint:
    """A Unix domain socket at an absolute path."""

    path: str

    def __str__(self) -> str:
        return f"unix://{self.path}"


@dataclass(frozen=True, slots=True)
class TcpEndpoint:
    """A TCP address: an IP, never a name, and a port."""

    ip: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int

    def __str__(self) -> str:
        return f"tcp://[{self.ip}]:{self.port}" if self.ip.version == 6 else f"tcp://{self.ip}:{self.port}"


def endpoint_address(environment: Mapping[str, str], explicit: str | None = None) -> UnixEndpoint | TcpEndpoint:
    """The address given, else that of SPIFFE_ENDPOINT_SOCKET. Raises InvalidArgument when there is neither."""
    text = explicit or environment.get(ENVIRONMENT_VARIABLE)  # SPIFFE Workload Endpoint §4 (E11)
    if not text:
        raise InvalidArgument(
            "no workload endpoint address",
            reason="ENDPOINT_MISSING",
            hint=f"set {ENVIRONMENT_VARIABLE}, for example to `unix://{DEFAULT_SOCKET}`",
        )
    return parse_endpoint(text)


def parse_endpoint(text: str) -> UnixEndpoint | TcpEndpoint:
    """Raises InvalidArgument (reason ENDPOINT_MALFORMED) unless the address has one of the two forms."""
    scheme, colon, rest = text.partition(":")
    if colon and scheme.lower() == "unix":
        return _parse_unix(text, rest)
    if colon and scheme.lower() == "tcp":
        return _parse_tcp(text, rest)
    raise _malformed(text, "scheme is not `unix` or `tcp`")  # SPIFFE Workload Endpoint §4 (E12)


def _parse_unix(text: str, rest: str) -> UnixEndpoint:
    if rest.startswith("//"):
        rest = rest[2:]
        if not rest.startswith("/"):  # SPIFFE Workload Endpoint §4 (E13)
            raise _malformed(text, "a unix address has no authority: write three slashes")
    if not rest.startswith("/") or rest == "/":  # SPIFFE Workload Endpoint §4 (E14)
        raise _malformed(text, "a unix address needs an absolute path")
    if _URI_PATH.fullmatch(rest) is None:
        raise _malformed(text, "a unix address is a path and nothing else")
    path = unquote_to_bytes(rest)
    if b"\x00" in path:
        raise _malformed(text, "the path holds a NUL")
    return UnixEndpoint(path.decode("utf-8", "surrogateescape"))


def _parse_tcp(text: str, rest: str) -> TcpEndpoint:
    # The host is an IP and no name, SPIFFE Workload Endpoint §4 (E15); there is a port, and no path, query, fragment
    # or user information, SPIFFE Workload Endpoint §4 (E16).
    match = _AUTHORITY.fullmatch(rest[2:]) if rest.startswith("//") else None
    if match is None:
        raise _malformed(text, "a tcp address is an IP, a port and nothing else")
    try:
        ip = ipaddress.IPv6Address(match["v6"]) if match["v6"] else ipaddress.IPv4Address(match["v4"])
    except ValueError as error:
        raise _malformed(text, "the host is no IP address") from error
    port = int(match["port"])
    if not 1 <= port <= 65535:
        raise _malformed(text, "the port is not between 1 and 65535")
    return TcpEndpoint(ip, port)


def _malformed(text: str, detail: str) -> InvalidArgument:
    return InvalidArgument(f"malformed endpoint address {quote(text)}: {detail}", reason="ENDPOINT_MALFORMED")
