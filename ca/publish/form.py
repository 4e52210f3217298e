"""In which forms a bundle is published, and how a copy is known as ours."""

from __future__ import annotations

from enum import StrEnum

from ca.errors import FailedPrecondition
from ca.identity.bundle import TrustBundle
from ca.identity.bundle_format import format_spiffe_bundle
from ca.identity.bundle_pem import format_pem


class Form(StrEnum):
    """`pem`: X.509 authorities, one block after the other; `spiffe`: the SPIFFE bundle document, JWT keys as well."""

    PEM = "pem"
    SPIFFE = "spiffe"


def text_of(bundle: TrustBundle, form: Form) -> str:
    """The bundle in that form."""
    return format_pem(bundle) if form is Form.PEM else format_spiffe_bundle(bundle)


def foreign(where: str, hint: str) -> FailedPrecondition:
    """What is there belongs to somebody else."""
    return FailedPrecondition(f"{where} is not this trust domain's copy", reason="PUBLISH_FOREIGN", hint=hint)
