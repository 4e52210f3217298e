"""What a server would lend to its key manager or upstream authority."""

from __future__ import annotations

from pathlib import Path

from ca.identity.spiffe_id import TrustDomain
from ca.ports import AuthorityHost, Clock
from ca.runtime.clock import SystemClock


def authority_host(
    directory: Path, *, trust_domain: str = "example.org", server: str = "s1", clock: Clock | None = None
) -> AuthorityHost:
    """Of a server that keeps its files in `directory`."""
    return AuthorityHost(
        trust_domain=TrustDomain(trust_domain),
        server=server,
        data_directory=str(directory),
        clock=clock or SystemClock(),
    )
