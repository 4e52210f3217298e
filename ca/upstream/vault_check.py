"""What a check looks at in Vault besides the signature: the token's life, its rights, the mount's limit, what stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ca.errors import BurgeeError, Denied
from ca.ports import Finding, FindingLevel
from ca.upstream.rehearsal import span
from ca.vault.client import VaultClient

TOLERANCE_SECONDS = 60

_TOO_MUCH = ("sign-verbatim", "root/sign-self-issued")
"""Who may do these can make whatever certificate it likes."""

OK, WARNING = FindingLevel.OK, FindingLevel.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """What the last authority was to be given, and what it got."""

    asked_seconds: int
    got_seconds: int


async def token(client: VaultClient, *, by_file: bool) -> Finding:
    """How long we are let in, and whether that goes on by itself. Raises what the way to Vault raises, but Denied."""
    try:
        data = await client.read("auth/token/lookup-self") or {}
    except Denied:
        detail = "logged in; how long the token lasts is not shown to it"
        return Finding(what="log-in", level=OK, detail=detail)
    left, explicit = _seconds(data, "ttl"), _seconds(data, "explicit_max_ttl")
    if not left:
        detail = "logged in with a token that never ends"
        return Finding(
            what="log-in", level=WARNING, detail=detail, hint="use a log-in that can be taken back by itself"
        )
    ends = f"logged in, the token lasts {span(timedelta(seconds=left))}"
    if not by_file:
        return Finding(what="log-in", level=OK, detail=f"{ends}; it is renewed, and replaced before its longest life")
    if data.get("renewable") and not explicit:
        return Finding(what="log-in", level=OK, detail=f"{ends} and is renewed")
    detail = f"{ends}, and then cannot be renewed" if not explicit else f"{ends}, and {explicit} s in all at most"
    hint = "let something put a new token into the file in time, or use another way to log in"
    return Finding(what="log-in", level=WARNING, detail=detail, hint=hint)


async def rights(client: VaultClient, mount: str) -> list[Finding]:
    """A warning for a token that could do more than it needs; nothing where Vault does not tell."""
    paths = [f"{mount}/{path}" for path in _TOO_MUCH]
    try:
        data = await client.write("sys/capabilities-self", {"paths": paths})
    except BurgeeError:
        return []
    allowed = [path for path in paths if set(_texts(data.get(path))) & {"update", "create", "root", "sudo"}]
    if not allowed:
        return []
    listed = " and ".join(f"`{path}`" for path in allowed)
    hint = "narrow its policy: whoever has the token can make any certificate of this root"
    return [Finding(what="rights", level=WARNING, detail=f"the token may use {listed}", hint=hint)]


async def limit_of_mount(client: VaultClient, mount: str, *, ttl_seconds: int, granted: Granted | None) -> Finding:
    """Whether the mount's longest lease cuts an authority short, before it does so for the first time."""
    path = f"sys/mounts/{mount}/tune"
    try:
        data = await client.read(path) or {}
    except BurgeeError:
        data = {}
    most = _seconds(data, "max_lease_ttl")
    hint = f"vault secrets tune -max-lease-ttl=… {mount}; or let the server ask for less (`ca_ttl_seconds`)"
    if most and most < ttl_seconds:
        detail = f"the mount signs for {most} s at most, the server asks for {ttl_seconds} s"
        return Finding(what="mount limit", level=WARNING, detail=detail, hint=hint)
    if granted is not None and granted.got_seconds < granted.asked_seconds - TOLERANCE_SECONDS:
        detail = f"the last authority was to last {granted.asked_seconds} s and got {granted.got_seconds} s"
        return Finding(what="mount limit", level=WARNING, detail=detail, hint=hint)
    if most:
        detail = f"the mount signs for up to {span(timedelta(seconds=most))}"
        return Finding(what="mount limit", level=OK, detail=detail)
    detail = f"not shown: our policy lacks `read` on `{path}`"
    return Finding(what="mount limit", level=OK, detail=detail)


async def left_behind(client: VaultClient, mount: str, serials: Sequence[str]) -> Finding:
    """The mount stores what it signs: the rehearsal's is revoked, where we may."""
    if not serials:
        return Finding(what="left behind", level=OK, detail="nothing: nothing was signed")
    try:
        for serial in serials:
            await client.write(f"{mount}/revoke", {"serial_number": serial})
    except BurgeeError as error:
        return Finding(
            what="left behind",
            level=WARNING,
            detail=f"a certificate of a minute, whose key is gone: it could not be revoked ({error.reason})",
            hint=f"allow `update` on `{mount}/revoke`, or let `{mount}/tidy` sweep",
        )
    return Finding(
        what="left behind", level=OK, detail="one revoked certificate, whose key is gone, until the mount is tidied"
    )


def _seconds(data: dict[str, Any], name: str) -> int:
    value = data.get(name)
    return value if isinstance(value, int) else 0


def _texts(value: object) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []
