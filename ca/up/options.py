"""What `burgee up` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ca.identity.spiffe_id import SpiffeId, TrustDomain

DEFAULT_TRUST_DOMAIN = "burgee.demo"
DEFAULT_PORT = 8081
DEFAULT_DIRECTORY = Path(".burgee")
DEMO_SVID_SECONDS = 60
"""Short, so that a person sees a rotation."""

SERVICES = ("web", "api", "gateway")


@dataclass(frozen=True, kw_only=True)
class Options:
    """`port` 0 means any free one."""

    trust_domain: TrustDomain
    directory: Path = DEFAULT_DIRECTORY
    port: int = DEFAULT_PORT
    once: bool = False
    demo: bool = True
    output: Literal["text", "json"] = "text"

    def service_id(self, name: str) -> SpiffeId:
        """The SPIFFE ID of a demo service."""
        return SpiffeId.of(self.trust_domain, f"/{name}")
