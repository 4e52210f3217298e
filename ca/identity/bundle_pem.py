"""Trust bundles as PEM (RFC 7468): the X.509 authorities, one block after the other."""

from __future__ import annotations

import base64
import binascii
import re

from ca.errors import InvalidArgument
from ca.identity.bundle import TrustBundle, X509Authority
from ca.identity.bundle_json import MAX_BUNDLE_BYTES
from ca.identity.certificate import load_authority
from ca.identity.spiffe_id import TrustDomain
from ca.identity.text import quote

_BLOCK = re.compile(r"-----BEGIN ([^\r\n-]+)-----[ \t]*\r?\n([A-Za-z0-9+/=\s]*?)-----END ([^\r\n-]+)-----")


def format_pem(bundle: TrustBundle) -> str:
    """The X.509 authorities in the bundle's order, 64 characters a line, each block with its final newline."""
    return "".join(certificate_pem(a.certificate) for a in bundle.x509_authorities)


def certificate_pem(der: bytes) -> str:
    """One certificate as PEM."""
    text = base64.b64encode(der).decode("ascii")
    lines = "\n".join(text[i : i + 64] for i in range(0, len(text), 64))
    return f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"


def parse_certificates(text: str | bytes) -> tuple[bytes, ...]:
    """DER of every certificate in order; text between blocks is passed over (RFC 7468 §5.2).

    Raises InvalidArgument (reason PEM_MALFORMED) for none, for a block that is no certificate, a broken one, or
    more than 4 MiB.
    """
    if len(text) > MAX_BUNDLE_BYTES:
        raise _malformed(f"longer than {MAX_BUNDLE_BYTES} bytes")
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")  # explanatory text may be in any encoding; blocks are ASCII
    blocks = _BLOCK.findall(text)
    if len(blocks) != text.count("-----BEGIN "):
        raise _malformed("a block is not closed or holds foreign characters")
    if not blocks:
        raise _malformed("no certificate in it")
    return tuple(_certificate(begin, body, end) for begin, body, end in blocks)


def parse_pem(text: str | bytes, trust_domain: TrustDomain) -> TrustBundle:
    """A bundle of X.509 authorities. Raises InvalidArgument as `parse_certificates` does."""
    certificates = dict.fromkeys(parse_certificates(text))
    return TrustBundle(
        trust_domain=trust_domain, x509_authorities=tuple(X509Authority(certificate=der) for der in certificates)
    )


def _certificate(begin: str, body: str, end: str) -> bytes:
    if begin != "CERTIFICATE" or end != begin:
        raise _malformed(f"a block is {quote(begin)}, not `CERTIFICATE`")
    try:
        der = base64.b64decode("".join(body.split()), validate=True)
        load_authority(der)
    except (ValueError, binascii.Error, InvalidArgument) as error:
        raise _malformed("a certificate in it is broken") from error
    return der


def _malformed(detail: str) -> InvalidArgument:
    return InvalidArgument(f"malformed PEM: {detail}", reason="PEM_MALFORMED")
