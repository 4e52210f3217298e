"""Options of the signer of pods' certificates."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ca.identity.signer_name import DEFAULT_SIGNER
from ca.runtime.config import StrictModel
from ca.runtime.config_values import SignerName


class PodCertificatesConfig(StrictModel):
    """X.509-SVIDs for pods without an agent: who answers PodCertificateRequests, and how long they wait."""

    signer_name: SignerName = DEFAULT_SIGNER
    """The signer's name, as the volumes of pods have it. One controller for each name."""

    entry_wait_seconds: Annotated[float, Field(ge=0, le=600)] = 30.0
    """A request that no entry is for is denied after so long: its pod and its entry may be made together."""

    at_once: Annotated[int, Field(ge=1, le=256)] = 32
    """Requests that are answered at the same time; half of them for one node."""
