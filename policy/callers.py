"""A caller's name from its certificate, as Envoy sends it: URL-encoded PEM, of which the chain was verified already."""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from cryptography import x509

MAX_CERTIFICATE_BYTES = 32 * 1024
CERTIFICATES_KEPT = 1024
"""Of those seen last: a proxy's callers come again and again with the same."""

_SPIFFE_ID = re.compile(r"spiffe://[a-z0-9._-]{1,255}(?:/[A-Za-z0-9._-]+)*")
"""SPIFFE-ID §2.1, §2.2. That no segment is `.` or `..` was for its issuer to see to."""


class NotNamed(ValueError):
    """Why a certificate names nobody."""


@lru_cache(maxsize=CERTIFICATES_KEPT)
def spiffe_id_of(encoded: str) -> str:
    """The one SPIFFE ID, with `spiffe://`. Raises NotNamed: an X.509-SVID has exactly one URI name (X509-SVID §2)."""
    if len(encoded) > MAX_CERTIFICATE_BYTES:
        raise NotNamed("the caller's certificate is too long")
    try:
        certificate = x509.load_pem_x509_certificate(unquote_to_bytes(encoded))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    except ValueError:  # of which UnsupportedGeneralNameType and DuplicateExtension are not
        raise NotNamed("the caller's certificate cannot be read") from None
    except (x509.UnsupportedGeneralNameType, x509.DuplicateExtension):
        raise NotNamed("the caller's certificate cannot be read") from None
    if len(uris) != 1:
        raise NotNamed(f"the caller's certificate has {len(uris)} URI names instead of one")
    if len(uris[0]) > 2048 or not _SPIFFE_ID.fullmatch(uris[0]):
        raise NotNamed("the caller's certificate has no SPIFFE ID")
    return uris[0]
