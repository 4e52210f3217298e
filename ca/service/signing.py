"""What issuing asks of the authority: whose key signs now."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from ca.errors import Unavailable
from ca.issuing.issuer import IssuerTemplate
from ca.issuing.jwt_token import JwtKey
from ca.ports import RemoteSigner, Signer


@dataclass(frozen=True, slots=True, kw_only=True)
class X509Signing:
    """The active X.509 authority. `chain` is what follows a leaf: intermediates, never the root."""

    issuer: IssuerTemplate
    signer: Signer
    remote: bool
    chain: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtSigning:
    """The active JWT authority; tokens may not outlive `not_after`."""

    key: JwtKey
    signer: Signer
    remote: bool
    not_after: datetime


def refuse_in_vain(signing: X509Signing | JwtSigning) -> None:
    """Before anything is recorded: raises what would keep a key that is elsewhere from signing now, if it is known."""
    signer = signing.signer
    problem = signer.problem() if signing.remote and isinstance(signer, RemoteSigner) else None
    if problem is not None:
        raise Unavailable(problem.detail, reason=problem.reason, hint=problem.hint)


class Authority(Protocol):
    """Both raise Unavailable (NO_ACTIVE_AUTHORITY) while there is nothing to sign with."""

    def x509(self) -> X509Signing: ...

    def jwt(self) -> JwtSigning: ...
