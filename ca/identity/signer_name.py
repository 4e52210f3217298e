"""Names of signers in Kubernetes: `example.com/svid`, and what bundles of theirs are called."""

from __future__ import annotations

import re

DEFAULT_SIGNER = "burgee.dev/svid"
MAX_CHARACTERS = 253

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"(?P<domain>{_LABEL}(\.{_LABEL})+)/(?P<path>{_LABEL}(\.{_LABEL})*)")


def check_signer_name(text: str) -> str:
    """Raises ValueError. The domain has a dot; `kubernetes.io` and what is below it belong to Kubernetes."""
    found = _NAME.fullmatch(text)
    if found is None or len(text) > MAX_CHARACTERS:
        raise ValueError("must be `domain/path`, such as `example.com/svid`, in lower case")
    if f".{found['domain']}".endswith((".kubernetes.io", ".k8s.io")):
        raise ValueError("signers of that domain are Kubernetes' own")
    return text


def bundle_prefix(signer: str) -> str:
    """With what the names of its ClusterTrustBundles begin: `example.com:svid:`."""
    return signer.replace("/", ":") + ":"
