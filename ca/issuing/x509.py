"""Certificates: prepare (build from a profile, lint), then sign and check what came out. No clock, no randomness.

Between the two the caller writes the issuance record; a token holds all that goes into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from cryptography import x509

from ca.errors import BurgeeError, Internal, InvalidArgument
from ca.identity.dns_name import check_dns_name
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.issuing import der
from ca.issuing import extensions as ext
from ca.issuing.issuer import IssuerTemplate
from ca.issuing.lifetime import Lifetime
from ca.issuing.names import (
    COMMON_NAME,
    ORGANIZATIONAL_UNIT,
    SERIAL_NUMBER,
    UPPER_BOUNDS,
    Attribute,
    encode_attribute,
    encode_name,
    relative_names,
)
from ca.issuing.profile import LeafProfile, authority_subject, check_identity
from ca.issuing.rules import Expected
from ca.issuing.signature import BY_KEY_TYPE, check_signature
from ca.issuing.spki import PublicKeyInfo, load_authority_key, read_public_key
from ca.issuing.template import Template
from ca.issuing.token import IssuanceToken
from ca.ports import BatchSigner, KeyType, Signer


def prepare_leaf(
    *,
    profile: LeafProfile,
    spiffe_id: SpiffeId,
    dns_names: Sequence[str],
    public_key: PublicKeyInfo,
    lifetime: Lifetime,
    serial: int,
    issuer: IssuerTemplate,
) -> IssuanceToken:
    """An X.509-SVID for a key whose possession was proven (`Csr.key`), ready to be recorded and signed.

    The first DNS name also becomes the common name, as SPIRE has it, if it fits the 64 characters of one. Raises
    InvalidArgument for an ID or a DNS name that the profile or the trust domain does not admit.
    """
    check_identity(profile, spiffe_id, issuer.trust_domain)
    for name in dns_names:
        check_dns_name(name)
    template = leaf_template(profile, issuer, public_key.kind)
    names = tuple(dns_names)
    subject = template.subject
    if names and len(names[0]) <= UPPER_BOUNDS[COMMON_NAME]:
        subject = template.subject_with(names[0])
    identifier = public_key.identifier
    tbs = template.fill(
        serial=serial,
        lifetime=lifetime,
        key_der=public_key.der,
        key_identifier=identifier,
        names=ext.alternative_names(str(spiffe_id), names),
        subject=subject,
    )
    want = Expected("leaf", issuer, serial, subject, spiffe_id, names, lifetime, public_key, identifier)
    return IssuanceToken(tbs=tbs, want=want, template=template)


@lru_cache(maxsize=128)
def leaf_template(profile: LeafProfile, issuer: IssuerTemplate, kind: ext.KeyKind) -> Template:
    """The template of a kind of leaf from one issuer; remembered, together with its having passed the lint."""
    return Template(
        algorithm=issuer.algorithm,
        issuer_name=issuer.name,
        subject=encode_name(profile.subject),
        leading_extensions=ext.leaf_extensions(kind),
        authority_key=ext.authority_key(issuer.key_id),
    )


def prepare_root(
    *, trust_domain: TrustDomain, public_key_der: bytes, key_type: KeyType, lifetime: Lifetime, serial: int
) -> IssuanceToken:
    """A self-signed root, itself an SVID of its trust domain: SPIFFE-ID §3.1 (A19, A20), X509-SVID §3.2 (B5)."""
    key = read_public_key(public_key_der)
    name = encode_name(authority_subject(serial))
    itself = IssuerTemplate(
        trust_domain=trust_domain,
        name=name,
        key_id=key.identifier,
        key_type=key_type,
        public_key_der=public_key_der,
        algorithm=BY_KEY_TYPE[key_type].identifier,
        not_after=lifetime.not_after,
        self_signed=True,
    )
    return _prepare_authority(itself, name, key, lifetime, serial)


def prepare_intermediate(
    *, public_key_der: bytes, lifetime: Lifetime, serial: int, issuer: IssuerTemplate
) -> IssuanceToken:
    """A signing certificate of this trust domain's own server under `issuer`, with a subject of its own."""
    name = encode_name(authority_subject(serial))
    return _prepare_authority(issuer, name, read_public_key(public_key_der), lifetime, serial)


def prepare_downstream(
    *, public_key_der: bytes, lifetime: Lifetime, serial: int, issuer: IssuerTemplate, chain_length: int
) -> IssuanceToken:
    """A signing certificate for a server below this one (NewDownstreamX509CA).

    Its subject is the issuer's with OU=DOWNSTREAM-<chain_length> before the serialNumber, as SPIRE's;
    `chain_length` counts the certificates from the issuer up to the root, 1 under a self-signed root.
    """
    unit = encode_attribute(Attribute(ORGANIZATIONAL_UNIT, f"DOWNSTREAM-{chain_length}"))
    rdns = relative_names(issuer.name)
    numbers = [at for at, rdn in enumerate(rdns) if SERIAL_NUMBER in rdn]
    rdns.insert(numbers[0] if numbers else len(rdns), unit)
    name = der.tlv(der.SEQUENCE, b"".join(rdns))
    return _prepare_authority(issuer, name, read_public_key(public_key_der), lifetime, serial)


def _prepare_authority(
    issuer: IssuerTemplate, name: bytes, key: PublicKeyInfo, lifetime: Lifetime, serial: int
) -> IssuanceToken:
    template = Template(
        algorithm=issuer.algorithm,
        issuer_name=issuer.name,
        subject=name,
        leading_extensions=ext.authority_extensions(),
        authority_key=b"" if issuer.self_signed else ext.authority_key(issuer.key_id),
    )
    spiffe_id = issuer.trust_domain.id  # SPIFFE-ID §3.1 (A21, A22), X509-SVID §3.2 (B6, B7): its own, without a path
    identifier = key.identifier
    tbs = template.fill(
        serial=serial,
        lifetime=lifetime,
        key_der=key.der,
        key_identifier=identifier,
        names=ext.alternative_names(str(spiffe_id), ()),
        subject=name,
    )
    want = Expected("authority", issuer, serial, name, spiffe_id, (), lifetime, key, identifier)
    return IssuanceToken(tbs=tbs, want=want, template=template)


def sign(token: IssuanceToken, signer: Signer, *, remote: bool) -> bytes:
    """Signs, re-checks and returns the certificate (DER). Blocks; `remote` is the key manager's.

    Uses the token up, also when it fails. Raises Internal with reason TOKEN_USED, SIGNER_MISMATCH (the key is not
    the issuer's) or RECHECK, and whatever the signer raises.
    """
    return _finish(token, _signature(token, signer), remote=remote)


def sign_all(tokens: Sequence[IssuanceToken], signer: Signer, *, remote: bool) -> list[bytes | BurgeeError]:
    """`sign` for a batch: a certificate or an error for each token, in order. Blocks.

    All signatures first and all checks afterwards: signing runs without the interpreter's lock, checking with it, and
    two threads that do the one and the other by turns wait for each other (a fifth of the CPU, measured).
    """
    return finish_all(tokens, [_signed(token, signer) for token in tokens], remote=remote)


def sign_many(tokens: Sequence[IssuanceToken], signer: BatchSigner) -> Sequence[bytes | BurgeeError]:
    """The signatures alone, by as few requests as the signer needs; `finish_all` makes certificates of them. Blocks.

    Uses the tokens up, also when it fails. Raises what concerns all of them.
    """
    for token in tokens:
        _take(token, signer)
    signatures = signer.sign_many([token.tbs for token in tokens])
    if len(signatures) != len(tokens):
        raise Internal("the signer answered with another number of signatures", reason="RECHECK")
    return signatures


def finish_all(
    tokens: Sequence[IssuanceToken], signatures: Sequence[bytes | BurgeeError], *, remote: bool
) -> list[bytes | BurgeeError]:
    """A certificate, re-checked, or an error for each token, in order."""
    return [_finished(token, signature, remote=remote) for token, signature in zip(tokens, signatures, strict=True)]


def _signed(token: IssuanceToken, signer: Signer) -> bytes | BurgeeError:
    try:
        return _signature(token, signer)
    except BurgeeError as error:
        return error


def _finished(token: IssuanceToken, signature: bytes | BurgeeError, *, remote: bool) -> bytes | BurgeeError:
    if isinstance(signature, BurgeeError):
        return signature
    try:
        return _finish(token, signature, remote=remote)
    except BurgeeError as error:
        return error


def _signature(token: IssuanceToken, signer: Signer) -> bytes:
    _take(token, signer)
    return signer.sign(token.tbs)


def _take(token: IssuanceToken, signer: Signer) -> None:
    """Uses the token up, for this signer."""
    token.use()
    if signer.public_key_der != token.want.issuer.public_key_der:
        raise Internal("the signing key is not the issuer's", reason="SIGNER_MISMATCH")


def _finish(token: IssuanceToken, signature: bytes, *, remote: bool) -> bytes:
    algorithm = token.want.issuer.algorithm
    certificate = der.tlv(der.SEQUENCE, token.tbs + algorithm + der.tlv(der.BIT_STRING, b"\x00" + signature))
    sampled = token.sampled
    recheck(token, certificate, verify_signature=remote or sampled, read_names=sampled)
    return certificate


def recheck(token: IssuanceToken, certificate: bytes, *, verify_signature: bool, read_names: bool = True) -> None:
    """Checks finished bytes against what was linted. Raises Internal (reason RECHECK).

    Always: cryptography can parse them, and they are the token's to-be-signed bytes (and with them the SAN), the
    same algorithm again (RFC 5280 §4.1.1.2) and one signature. With `verify_signature` also the signature, and with
    `read_names` the names as cryptography reads them: a second opinion on what the lint has read.
    """
    want = token.want
    try:
        parsed = x509.load_der_x509_certificate(certificate)
        _recheck_layout(certificate, token)
        if read_names:
            _recheck_names(parsed, want)
        if verify_signature:
            key = load_authority_key(want.issuer.public_key_der)
            algorithm = BY_KEY_TYPE[want.issuer.key_type]
            check_signature(key, algorithm, parsed.signature, parsed.tbs_certificate_bytes)
    except (ValueError, InvalidArgument) as error:
        raise Internal("what came out of the signer is no certificate of ours", reason="RECHECK") from error


def _recheck_layout(certificate: bytes, token: IssuanceToken) -> None:
    end = len(certificate)
    start, stop = der.read(certificate, 0, end, der.SEQUENCE)
    if stop != end or not certificate.startswith(token.tbs, start):
        raise Internal("signed bytes are not those that passed the lint", reason="RECHECK")
    algorithm_at = start + len(token.tbs)
    algorithm = token.want.issuer.algorithm
    if not certificate.startswith(algorithm, algorithm_at):
        raise Internal("certificate names another signature algorithm than was signed with", reason="RECHECK")
    _, stop = der.read(certificate, algorithm_at + len(algorithm), end, der.BIT_STRING)
    if stop != end:
        raise Internal("there are bytes behind the signature", reason="RECHECK")


def _recheck_names(parsed: x509.Certificate, want: Expected) -> None:
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if uris != [str(want.spiffe_id)] or tuple(names.get_values_for_type(x509.DNSName)) != want.dns_names:
        raise Internal("signed names are not those that were decided on", reason="RECHECK")
