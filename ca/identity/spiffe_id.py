"""SPIFFE IDs and trust domains, parsed strictly (SPIFFE-ID).

Both types check themselves on construction, so that an invalid one cannot exist.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ca.errors import InvalidArgument
from ca.identity.text import quote

SCHEME = "spiffe://"
MAX_ID_BYTES = 2048
"""What everyone must support (§2.3, A17) and the most that we make or accept (A18)."""

MAX_TRUST_DOMAIN_BYTES = 255
AGENT_PREFIX = "/spire/agent/"
SERVER_PATH = "/spire/server"

# A class of its own for each part, always with fullmatch: `$` would let a trailing line feed through.
# Neither class holds `%`, so percent-encoding is refused with everything else (SPIFFE-ID §2.1 A10, §2.2 A12).
# Nothing knows of DNS or IP addresses: a trust domain is a string of allowed characters, SPIFFE-ID §2.1 (A11).
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+")  # SPIFFE-ID §2.1 (A9)
_SEGMENT = re.compile(r"[a-zA-Z0-9._-]+")  # SPIFFE-ID §2.2 (A16)
_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[a-zA-Z0-9._-]+)+")
_UPPER_TO_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")


@dataclass(frozen=True, slots=True, order=True)
class TrustDomain:
    """A trust domain's name: lower case, 1 to 255 characters of [a-z0-9.-_] (SPIFFE-ID §2.1).

    Raises InvalidArgument when made from anything else; `parse` folds upper case first.
    """

    name: str

    def __post_init__(self) -> None:
        _check_trust_domain(self.name)

    @classmethod
    def parse(cls, text: str) -> TrustDomain:
        """From a bare name or `spiffe://name`; upper case is folded. Raises InvalidArgument."""
        if "://" in text:
            identity = SpiffeId.parse(text)
            if identity.path:
                raise InvalidArgument(
                    f"{quote(text)} is not a trust domain: it has a path",
                    reason="TRUST_DOMAIN_HAS_PATH",
                    hint=f"use `{identity.trust_domain}`",
                )
            return identity.trust_domain
        return cls(text.translate(_UPPER_TO_LOWER))  # SPIFFE-ID §2.1, §2.4 (A8)

    @property
    def id(self) -> SpiffeId:
        """The trust domain's own SPIFFE ID, `spiffe://name`, which signing authorities carry (SPIFFE-ID §3.1)."""
        return SpiffeId(self, "")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """`spiffe://<trust domain><path>`; the path is empty or begins with a slash. At most 2048 bytes (§2.3).

    Never equal to a string: compare IDs with IDs. Raises InvalidArgument when made from an invalid path.
    """

    trust_domain: TrustDomain
    path: str

    def __hash__(self) -> int:
        """By the path alone, which tells most IDs apart, and whose hash a string remembers."""
        return hash(self.path)

    def __post_init__(self) -> None:
        path = self.path
        if path and _PATH.fullmatch(path) is None:
            _explain_path(path)
        if len(SCHEME) + len(self.trust_domain.name) + len(path) > MAX_ID_BYTES:  # SPIFFE-ID §2.3 (A17, A18)
            raise InvalidArgument(
                f"SPIFFE ID is longer than {MAX_ID_BYTES} bytes: {quote(str(self))}", reason="SPIFFE_ID_TOO_LONG"
            )

    @classmethod
    def of(cls, trust_domain: TrustDomain, path: str) -> SpiffeId:
        """The ID with this path in this trust domain. Raises InvalidArgument."""
        return cls(trust_domain, path)

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """From a URI. Scheme and trust domain may come in any case and are folded (SPIFFE-ID §2.4); the path is
        kept byte for byte. Raises InvalidArgument with a SPIFFE_ID_* reason."""
        if not text:
            raise InvalidArgument("SPIFFE ID is empty", reason="SPIFFE_ID_EMPTY")
        if text[: len(SCHEME)].translate(_UPPER_TO_LOWER) != SCHEME:  # SPIFFE-ID §2 (A1)
            raise InvalidArgument(
                f"scheme is missing or is not `spiffe`: {quote(text)}",
                reason="SPIFFE_ID_SCHEME",
                hint="a SPIFFE ID looks like `spiffe://example.org/path`",
            )
        authority, slash, path = text[len(SCHEME) :].partition("/")
        _check_no_extras(authority, path, text)
        return cls(TrustDomain(authority.translate(_UPPER_TO_LOWER)), slash + path)

    @property
    def is_trust_domain_id(self) -> bool:
        """True for `spiffe://name` without a path."""
        return not self.path

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain.name}{self.path}"


def server_id(trust_domain: TrustDomain) -> SpiffeId:
    """The ID every server of the trust domain presents: `spiffe://<td>/spire/server`."""
    return SpiffeId(trust_domain, SERVER_PATH)


def is_reserved(path: str) -> bool:
    """True for the namespace that belongs to servers and agents: `/spire` and all below it."""
    return path == "/spire" or path.startswith("/spire/")


def is_agent_path(path: str) -> bool:
    """True for `/spire/agent/…`."""
    return path.startswith(AGENT_PREFIX)


def _check_trust_domain(name: str) -> None:
    if not name:  # SPIFFE-ID §2 (A2), §2.1 (A5)
        raise InvalidArgument("trust domain is missing", reason="TRUST_DOMAIN_EMPTY")
    if _TRUST_DOMAIN.fullmatch(name) is None:
        raise InvalidArgument(
            "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores: "
            + quote(name),
            reason="TRUST_DOMAIN_CHARACTERS",
        )
    if len(name) > MAX_TRUST_DOMAIN_BYTES:  # SPIFFE-ID §2.3
        raise InvalidArgument(
            f"trust domain is longer than {MAX_TRUST_DOMAIN_BYTES} bytes: {quote(name)}",
            reason="TRUST_DOMAIN_TOO_LONG",
        )


def _check_no_extras(authority: str, path: str, text: str) -> None:
    """The parts that a URI may have and a SPIFFE ID may not. They would fail as characters too; this names them."""
    rest = authority + path
    if "?" in rest:  # SPIFFE-ID §2 (A3)
        raise InvalidArgument(f"SPIFFE ID has a query: {quote(text)}", reason="SPIFFE_ID_QUERY")
    if "#" in rest:  # SPIFFE-ID §2 (A4)
        raise InvalidArgument(f"SPIFFE ID has a fragment: {quote(text)}", reason="SPIFFE_ID_FRAGMENT")
    if "@" in authority:  # SPIFFE-ID §2.1 (A6)
        raise InvalidArgument(f"SPIFFE ID has user information: {quote(text)}", reason="SPIFFE_ID_USERINFO")
    if ":" in authority:  # SPIFFE-ID §2.1 (A7); also every IPv6 literal, whose brackets are no allowed characters
        raise InvalidArgument(f"SPIFFE ID has a port: {quote(text)}", reason="SPIFFE_ID_PORT")


def _explain_path(path: str) -> None:
    """Raises the InvalidArgument that says what is wrong with this path."""
    if not path.startswith("/"):
        raise InvalidArgument(f"path must have a leading slash: {quote(path)}", reason="SPIFFE_ID_PATH_SLASH")
    if path.endswith("/"):  # SPIFFE-ID §2.2 (A15)
        raise InvalidArgument(
            f"path cannot have a trailing slash: {quote(path)}", reason="SPIFFE_ID_PATH_TRAILING_SLASH"
        )
    for segment in path[1:].split("/"):
        if not segment:  # SPIFFE-ID §2.2 (A13)
            raise InvalidArgument(
                f"path cannot contain empty segments: {quote(path)}", reason="SPIFFE_ID_PATH_EMPTY_SEGMENT"
            )
        if segment in (".", ".."):  # SPIFFE-ID §2.2 (A14)
            raise InvalidArgument(
                f"path cannot contain dot segments: {quote(path)}", reason="SPIFFE_ID_PATH_DOT_SEGMENT"
            )
        if _SEGMENT.fullmatch(segment) is None:
            break
    raise InvalidArgument(
        "path segment characters are limited to letters, numbers, dots, dashes, and underscores: " + quote(path),
        reason="SPIFFE_ID_PATH_CHARACTERS",
    )
