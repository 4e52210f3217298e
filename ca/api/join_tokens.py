"""What it takes to make a join token: for SPIRE's call, which knows tokens of one use, and for ours."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from ca.api.convert.ids import seconds
from ca.errors import InvalidArgument
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.identity.text import quote
from ca.ports import Clock
from ca.proto.burgee import admin_pb2 as pb
from ca.service.follower import Follower
from ca.store.store import Store
from ca.store.token_rows import ID_DIGITS
from ca.store.values import StoredToken

MAX_TTL_SECONDS = 7 * 24 * 3600
MIN_CHARACTERS = 16
MAX_USES = 10_000

_VALUE = re.compile(r"[a-zA-Z0-9._-]{1,255}")
_NAME = re.compile(r"[a-z0-9._-]{1,64}")
_ID = re.compile(rf"[0-9a-f]{{{ID_DIGITS}}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeToken:
    """The only place where the value is told."""

    value: str
    id: str
    expires_at: datetime


class JoinTokens:
    """Makes and revokes join tokens."""

    def __init__(self, *, trust_domain: TrustDomain, store: Store, follower: Follower, clock: Clock) -> None:
        self._trust_domain = trust_domain
        self._store = store
        self._follower = follower
        self._clock = clock

    async def create(
        self, *, ttl_seconds: int, value: str = "", alias: SpiffeId | None = None, name: str = "", uses: int = 1
    ) -> MadeToken:
        """Raises InvalidArgument for what cannot be, AlreadyExists for a value or name that is in use."""
        _check_ttl(ttl_seconds)
        _check_uses(uses, value)
        if name:
            _check_name(name)
        value = value or str(uuid.uuid4())
        _check_value(value)
        expires_at = self._clock.now() + timedelta(seconds=ttl_seconds)
        await self._store.tokens.create(value, expires_at, agent_id=alias, name=name, uses=uses)
        if alias is not None:
            await self._follower.catch_up()
        return MadeToken(value=value, id=self._store.tokens.id_of(value), expires_at=expires_at)

    async def revoke(self, name: str) -> pb.JoinTokenInfo:
        """By name or ID. Raises NotFound JOIN_TOKEN_NOT_FOUND."""
        if _NAME.fullmatch(name) is None:
            raise _bad_name(name)
        now = self._clock.now()
        revoked = await self._store.tokens.revoke(name, now)
        if revoked.agent_id is not None:
            await self._follower.catch_up()
        return self.info(revoked, now)

    def info(self, token: StoredToken, now: datetime) -> pb.JoinTokenInfo:
        return pb.JoinTokenInfo(
            id=token.id,
            name=token.name,
            spiffe_id="" if token.agent_id is None else str(token.agent_id),
            expires_at=seconds(token.expires_at),
            used_at=0 if token.used_at is None else seconds(token.used_at),
            used_by=str(SpiffeId.of(self._trust_domain, token.used_by)) if token.used_by else "",
            uses=token.uses,
            used=token.used,
            state=_state(token, now),
        )


def _state(token: StoredToken, now: datetime) -> str:
    if token.revoked:
        return "revoked"
    if token.used >= token.uses:
        return "used"
    if token.expires_at < now:
        return "expired"
    return "in use" if token.used else "unused"


def _check_ttl(ttl_seconds: int) -> None:
    if ttl_seconds <= 0:
        raise InvalidArgument("ttl is required, you must provide one", reason="TTL_REQUIRED")
    if ttl_seconds > MAX_TTL_SECONDS:
        raise InvalidArgument(f"ttl is longer than {MAX_TTL_SECONDS} seconds", reason="TTL_OUT_OF_RANGE")


def _check_uses(uses: int, value: str) -> None:
    if not 1 <= uses <= MAX_USES:
        raise InvalidArgument(f"a join token serves 1 to {MAX_USES} agents", reason="JOIN_TOKEN_USES")
    if uses > 1 and value:
        raise InvalidArgument(
            "a join token of several uses cannot be chosen",
            reason="JOIN_TOKEN_USES",
            hint="it stays a secret after its first use: leave it to the server, which makes a random one",
        )


def _check_name(name: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise _bad_name(name)
    if _ID.fullmatch(name):
        raise InvalidArgument(f"{quote(name)} looks like a token's ID", reason="JOIN_TOKEN_NAME", hint="another name")


def _bad_name(name: str) -> InvalidArgument:
    return InvalidArgument(
        f"{quote(name[:80])} is no join token's name",
        reason="JOIN_TOKEN_NAME",
        hint="1 to 64 small letters, digits, dots, dashes and underscores",
    )


def _check_value(token: str) -> None:
    """A token becomes the last segment of its agent's ID; it is a secret and never repeated in a message."""
    if len(token) < MIN_CHARACTERS:
        raise InvalidArgument(
            f"token is shorter than {MIN_CHARACTERS} characters",
            reason="JOIN_TOKEN_TOO_SHORT",
            hint="it is a secret that can be guessed over the network: leave it to the server, or make it random",
        )
    if _VALUE.fullmatch(token) is None or token in (".", ".."):
        raise InvalidArgument(
            "token cannot be part of an agent ID",
            reason="JOIN_TOKEN_CHARACTERS",
            hint="use up to 255 letters, digits, dots, dashes and underscores, or leave it to the server",
        )
