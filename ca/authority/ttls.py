"""Which lifetimes go together: an SVID must fit into what is left of an authority when the next one takes over."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from ca.authority.schedule import ACTIVATE_LIMIT
from ca.errors import ConfigError

_SHARE = 6
_LIMIT_SECONDS = int(ACTIVATE_LIMIT / timedelta(seconds=1))


def longest_svid_ttl(ca_ttl_seconds: int) -> int:
    """The longest SVID that is never cut short, in seconds: min(ca_ttl / 6, 7 days), SPIRE's rule."""
    return min(ca_ttl_seconds // _SHARE, _LIMIT_SECONDS)


def check_ttls(
    *,
    ca_ttl_seconds: int,
    x509_svid_ttl_seconds: int,
    jwt_svid_ttl_seconds: int,
    agent_ttl_seconds: int,
    others: Mapping[str, int] | None = None,
) -> None:
    """Raises ConfigError (reason TTL_IMPOSSIBLE), saying which numbers would work, unless all SVIDs fit the CA.

    `others` are those of features that are switched on, by the names of their keys.
    """
    svids = {
        "x509_svid_ttl_seconds": x509_svid_ttl_seconds,
        "jwt_svid_ttl_seconds": jwt_svid_ttl_seconds,
        "agent_ttl_seconds": agent_ttl_seconds,
        **(others or {}),
    }
    for name, seconds in {"ca_ttl_seconds": ca_ttl_seconds, **svids}.items():
        if seconds <= 0:
            raise ConfigError(f"{name} of {seconds} is not positive", reason="TTL_IMPOSSIBLE")
    longest = longest_svid_ttl(ca_ttl_seconds)
    too_long = {name: seconds for name, seconds in svids.items() if seconds > longest}
    if not too_long:
        return
    listed = " and ".join(f"{name} of {seconds}" for name, seconds in too_long.items())
    raise ConfigError(
        f"{listed} cannot be kept with ca_ttl_seconds of {ca_ttl_seconds}: "
        "an authority that is about to be replaced has a sixth of its life left, at most 7 days",
        reason="TTL_IMPOSSIBLE",
        hint=_advice(max(too_long.values()), longest, " and ".join(too_long)),
    )


def _advice(wanted: int, longest: int, names: str) -> str:
    advice = []
    if wanted <= _LIMIT_SECONDS:
        advice.append(f"set ca_ttl_seconds to {wanted * _SHARE} or more")
    if longest > 0:
        advice.append(f"set {names} to {longest} or less")
    if not advice:
        advice.append(f"set ca_ttl_seconds to at least {_SHARE}")
    return ", or ".join(advice)
