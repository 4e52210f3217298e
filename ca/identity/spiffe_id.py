"""SPIFFE IDs and trust domains, parsed strictly (SPIFFE-ID)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class TrustDomain:
    """A trust domain's name: lower case, 1 to 255 characters of [a-z0-9.-_] (SPIFFE-ID §2.1)."""

    name: str

    @classmethod
    def parse(cls, text: str) -> TrustDomain:
        """From a bare name or `spiffe://name`; upper case is folded. Raises InvalidArgument."""
        raise NotImplementedError

    @property
    def id(self) -> SpiffeId: ...  # type: ignore[empty-body]

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """`spiffe://<trust domain><path>`; the path is empty or begins with a slash. At most 2048 bytes (§2.3)."""

    trust_domain: TrustDomain
    path: str

    @classmethod
    def parse(cls, text: str) -> SpiffeId: ...  # type: ignore[empty-body]

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain.name}{self.path}"
