"""DNS names as registration entries may carry them: ASCII, by label, one leading wildcard."""

from __future__ import annotations

import re

from ca.errors import InvalidArgument
from ca.identity.text import quote

MAX_NAME_BYTES = 253  # RFC 1035 §2.3.4: 255 octets on the wire
MAX_LABEL_BYTES = 63  # RFC 1035 §2.3.4

# Letters, digits, hyphens (RFC 5890 §2.3.1), and the underscore that SPIRE lets through; no hyphen at either end.
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?")


def check_dns_name(name: str) -> None:
    """Raises InvalidArgument (reason DNS_NAME) unless `name` may stand in a dNSName SAN. The case is kept."""
    problem = _problem(name)
    if problem:
        raise InvalidArgument(f"invalid DNS name: {problem}", reason="DNS_NAME")


def _problem(name: str) -> str:
    if not name.strip():
        return "empty or only whitespace"
    if not name.isascii():
        return f"name must be ascii: {quote(name)}"
    if len(name) > MAX_NAME_BYTES:
        return f"longer than {MAX_NAME_BYTES} bytes: {quote(name)}"
    rest = name.removeprefix("*.")
    if "*" in rest:
        return f"wildcard must be first label: {quote(name)}"
    for label in rest.split("."):
        if len(label) > MAX_LABEL_BYTES or _LABEL.fullmatch(label) is None:
            return f"invalid label {quote(label)} in {quote(name)}"
    return ""
