"""What kinds of certificates there are and how their bytes differ: subject, paths they may name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ca.errors import InvalidArgument
from ca.identity.spiffe_id import SERVER_PATH, SpiffeId, TrustDomain, is_agent_path, is_reserved
from ca.identity.text import quote
from ca.issuing.names import COUNTRY, ORGANIZATION, SERIAL_NUMBER, Attribute, requested_subject

_ISTIO_PATH = re.compile(r"/ns/[^/]+/sa/[^/]+")
SVID_SUBJECT = (Attribute(COUNTRY, "US"), Attribute(ORGANIZATION, "SPIRE"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LeafProfile:
    """A kind of X.509-SVID that proves an identity and signs nothing.

    Key usage follows from the subject's key: digitalSignature alone for EC (RFC 8813 §3), with keyEncipherment for
    RSA; extended key usage is serverAuth and clientAuth. Profiles are compared by identity: keep them.
    """

    name: str
    subject: tuple[Attribute, ...]
    admits: Callable[[str], bool]
    admitted: str


WORKLOAD = LeafProfile(
    name="workload",
    subject=SVID_SUBJECT,
    admits=lambda path: not is_reserved(path),
    admitted="a path outside of `/spire`",
)
AGENT = LeafProfile(name="agent", subject=SVID_SUBJECT, admits=is_agent_path, admitted="a path below `/spire/agent`")
SERVER = LeafProfile(
    name="server", subject=SVID_SUBJECT, admits=lambda path: path == SERVER_PATH, admitted=f"the path `{SERVER_PATH}`"
)

ISTIO = LeafProfile(
    name="istio",
    subject=(),  # as Istio's own: the alternative name is critical then (RFC 5280 §4.2.1.6)
    admits=lambda path: _ISTIO_PATH.fullmatch(path) is not None,
    admitted="a path `/ns/<namespace>/sa/<service account>`",
)


def minted(requested: Sequence[Attribute]) -> LeafProfile:
    """The profile of MintX509SVID: a workload's, with the subject of the CSR where that names anything."""
    subject = requested_subject(requested)
    if not subject:
        return WORKLOAD
    return LeafProfile(name="minted", subject=subject, admits=WORKLOAD.admits, admitted=WORKLOAD.admitted)


def check_identity(profile: LeafProfile, spiffe_id: SpiffeId, trust_domain: TrustDomain) -> None:
    """Raises InvalidArgument unless a certificate of this profile from this trust domain may carry the ID."""
    if spiffe_id.trust_domain.name != trust_domain.name:
        raise InvalidArgument(
            f"{quote(str(spiffe_id))} is not in trust domain `{trust_domain}`", reason="SPIFFE_ID_FOREIGN"
        )
    if not spiffe_id.path:  # X509-SVID §3.1 (B3)
        raise InvalidArgument(f"`{spiffe_id}` names no workload: its path is empty", reason="SPIFFE_ID_NO_PATH")
    if not profile.admits(spiffe_id.path):
        raise InvalidArgument(
            f"{quote(str(spiffe_id))} cannot be a {profile.name}'s: that has {profile.admitted}",
            reason="SPIFFE_ID_RESERVED",
        )


def authority_subject(serial: int) -> tuple[Attribute, ...]:
    """Subject of a root or an intermediate: C=US, O=SPIFFE, serialNumber=<decimal>, so that each one is unique."""
    return (Attribute(COUNTRY, "US"), Attribute(ORGANIZATION, "SPIFFE"), Attribute(SERIAL_NUMBER, str(serial)))
