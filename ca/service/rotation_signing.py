"""What signs now: the active authorities with their keys, ready for use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from ca.authority.state import Authority, AuthorityKind, AuthorityState, find
from ca.errors import Unavailable
from ca.issuing.issuer import IssuerTemplate
from ca.issuing.jwt_token import JwtKey
from ca.ports import Clock, Signer
from ca.service.signing import JwtSigning, X509Signing

CLOCK_TOLERANCE = timedelta(seconds=60)


class SigningNow:
    """Implements ca.service.signing.Authority. `take_up` is to be told of every change."""

    def __init__(self, *, clock: Clock, remote: bool) -> None:
        self._clock = clock
        self._remote = remote
        self._active: dict[AuthorityKind, Authority] = {}
        self._x509: X509Signing | None = None
        self._jwt: JwtSigning | None = None

    def take_up(self, own: Sequence[Authority], signers: Mapping[str, Signer]) -> None:
        """The active ones of these, as far as their keys are at hand. One that goes on stays the same object: much is
        remembered by it."""
        for kind in AuthorityKind:
            active = find(own, AuthorityState.ACTIVE, kind)
            if active is None or active.key_id not in signers:
                self._active.pop(kind, None)
            elif self._active.get(kind) != active:
                self._build(active, signers[active.key_id])
                self._active[kind] = active

    def x509(self) -> X509Signing:
        """Raises Unavailable: NO_ACTIVE_AUTHORITY, AUTHORITY_TAINTED, CLOCK_BEHIND."""
        self._check(AuthorityKind.X509)
        if self._x509 is None:
            raise _nothing_active(AuthorityKind.X509)
        return self._x509

    def jwt(self) -> JwtSigning:
        """Raises like `x509`."""
        self._check(AuthorityKind.JWT)
        if self._jwt is None:
            raise _nothing_active(AuthorityKind.JWT)
        return self._jwt

    def _build(self, active: Authority, signer: Signer) -> None:
        if active.kind == AuthorityKind.JWT:
            self._jwt = JwtSigning(
                key=JwtKey(kid=active.authority_id, key_type=active.key_type, public_key_der=active.public_key),
                signer=signer,
                remote=self._remote,
                not_after=active.not_after,
            )
            return
        issuer = IssuerTemplate.from_certificate(active.certificate)
        if active.not_after < issuer.not_after:  # a certificate above it ends first
            issuer = replace(issuer, not_after=active.not_after)
        below_root = (active.certificate, *active.chain) if active.upstream_authority_id else ()
        self._x509 = X509Signing(issuer=issuer, signer=signer, remote=self._remote, chain=below_root)

    def _check(self, kind: AuthorityKind) -> None:
        active, now = self._active.get(kind), self._clock.now()
        if active is None or now >= active.not_after:
            raise _nothing_active(kind)
        if active.tainted:
            raise Unavailable(
                f"the active {kind} authority is tainted, and nothing is signed with it",
                reason="AUTHORITY_TAINTED",
                hint="a new one is being made; the server's log says what keeps it",
            )
        _refuse_before(active, now)


def _refuse_before(active: Authority, now: datetime) -> None:
    """What is signed by a clock of before the authority's own beginning would have ended, or nearly, elsewhere."""
    if now < active.not_before - CLOCK_TOLERANCE:
        raise Unavailable(
            f"the active {active.kind} authority begins at {active.not_before.isoformat()}, this server's clock says "
            f"{now.isoformat(timespec='seconds')}",
            reason="CLOCK_BEHIND",
            hint="set this server's clock",
        )


def _nothing_active(kind: AuthorityKind) -> Unavailable:
    return Unavailable(
        f"there is no active {kind} authority", reason="NO_ACTIVE_AUTHORITY", hint="see the server's log"
    )
