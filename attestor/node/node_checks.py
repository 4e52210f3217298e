"""What `caadmin doctor` finds about evidence of nodes: whether it can be had, who vouches for it, and how long."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

from cryptography import x509

from ca.errors import BurgeeError
from ca.identity.text import quote
from ca.ports import Finding
from ca.runtime.findings import failed, ok, warning

SOON_FRACTION = 0.1
"""What is left of a certificate's life when it is time to renew it."""


async def attempted(what: str, work: Callable[[], Awaitable[str]], *, mend: str) -> Finding:
    """What `work` tells of what is well, or what it raises; `mend` where that says nothing of a way out."""
    try:
        return ok(what, await work())
    except BurgeeError as error:
        return failed(what, f"{error.detail} ({error.reason})", error.hint or mend)


def authorities(what: str, certificates: Sequence[x509.Certificate], *, now: datetime, mend: str) -> Finding:
    """Of those who vouch for nodes. One that is over vouches for nobody, and lies there mostly by mistake."""
    over = [one for one in certificates if not one.not_valid_before_utc <= now <= one.not_valid_after_utc]
    if len(over) == len(certificates):
        return failed(what, f"none of {len(certificates)} is valid now" if certificates else "there is none", mend)
    if over:
        named = quote(over[0].subject.rfc4514_string())
        return warning(what, f"{len(over)} of {len(certificates)} are not valid now, such as {named}", mend)
    return ok(what, f"{len(certificates)}, all of them valid now")


def validity(what: str, begins: datetime, ends: datetime, *, now: datetime) -> Finding:
    """Of the certificate that a node proves itself with."""
    if not begins <= now <= ends:
        detail = (
            f"it is valid from {begins:%Y-%m-%d %H:%M:%SZ} to {ends:%Y-%m-%d %H:%M:%SZ}, and now is {now:%H:%M:%SZ}"
        )
        return failed(what, detail, "let its issuer renew it, and compare the clocks")
    detail = f"it is valid until {ends:%Y-%m-%d %H:%M:%SZ}"
    if (ends - now) < (ends - begins) * SOON_FRACTION:
        return warning(what, detail, "let its issuer renew it soon")
    return ok(what, detail)
