"""Names of our keys in a place that others use, too (a Transit engine, a token): two servers never share one, and none
is taken for ours that is somebody else's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ca.ports import AuthorityHost

DIGEST_CHARACTERS = 16
MAX_READABLE_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class SharedNames:
    """`burgee-<trust domain>-<server>-<key id>-<digest>`.

    The digest is of trust domain and server in full: the readable parts are cut, and dashes in them could be read in
    two ways. It comes last because a name in Transit ends with a letter or digit, and a key id need not.
    """

    prefix: str
    suffix: str

    @staticmethod
    def of(host: AuthorityHost) -> SharedNames:
        """The names of one server's keys."""
        domain, server = host.trust_domain.name, host.server
        digest = hashlib.sha256(f"{domain}\0{server}".encode()).hexdigest()[:DIGEST_CHARACTERS]
        readable = f"burgee-{domain[:MAX_READABLE_CHARACTERS]}-{server[:MAX_READABLE_CHARACTERS]}-"
        return SharedNames(readable, f"-{digest}")

    def name(self, key_id: str) -> str:
        """For a key id that passed `check_key_id`; at most 246 characters."""
        return f"{self.prefix}{key_id}{self.suffix}"

    def key_id(self, name: str) -> str | None:
        """None for a key of somebody else."""
        ours = name.startswith(self.prefix) and name.endswith(self.suffix)
        key_id = name[len(self.prefix) : len(name) - len(self.suffix)]
        return key_id if ours and key_id else None
