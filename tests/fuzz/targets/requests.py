"""The path of a certification request: reader of DER, request, leaf, and what is to be signed."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca.errors import Internal, InvalidArgument
from ca.identity.bundle import TrustBundle, X509Authority
from ca.identity.dns_name import check_dns_name
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.identity.svid import verify_x509_svid
from ca.issuing import der, lint
from ca.issuing.csr import Csr, parse_csr
from ca.issuing.issuer import IssuerTemplate
from ca.issuing.lifetime import plan_lifetime
from ca.issuing.parts import parse_tbs
from ca.issuing.profile import WORKLOAD, minted
from ca.issuing.spki import read_public_key
from ca.issuing.token import IssuanceToken
from ca.issuing.x509 import prepare_leaf, prepare_root, sign
from ca.ports import KeyType
from tests.fuzz import keys
from tests.fuzz.harness import Mutate, Target, outcome
from tests.fuzz.mutators import mutate_der, resigning, structured

NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
TD = TrustDomain("example.org")
ID = SpiffeId(TD, "/web")
SERIAL = 0x1234567890ABCDEF


@cache
def root() -> bytes:
    token = prepare_root(
        trust_domain=TD,
        public_key_der=keys.public_der("root"),
        key_type=KeyType.EC_P256,
        lifetime=plan_lifetime(NOW, 86400 * 365, 0, None),
        serial=SERIAL,
    )
    return sign(token, keys.signer("root"), remote=True)


def leaf(csr: Csr | None = None, dns_names: tuple[str, ...] = (), *, of_its_own: bool = False) -> IssuanceToken:
    """A workload's certificate for the request's key (or the one named `leaf`), up to the signature."""
    issuer = IssuerTemplate.from_certificate(root())
    return prepare_leaf(
        profile=minted(csr.subject) if of_its_own and csr is not None else WORKLOAD,
        spiffe_id=ID,
        dns_names=dns_names,
        public_key=csr.key if csr is not None else read_public_key(keys.public_der("leaf")),
        lifetime=plan_lifetime(NOW, 3600, 0, issuer.not_after),
        serial=SERIAL,
        issuer=issuer,
    )


def check_certificate(certificate: bytes, public_key: bytes, dns_names: tuple[str, ...]) -> None:
    """What cryptography and the verifier see in a certificate of ours."""
    seen = x509.load_der_x509_certificate(certificate)
    seen.verify_directly_issued_by(x509.load_der_x509_certificate(root()))
    names = seen.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [str(ID)]
    assert names.get_values_for_type(x509.DNSName) == list(dns_names)
    assert seen.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == public_key
    _ = seen.subject
    bundle = TrustBundle(trust_domain=TD, x509_authorities=(X509Authority(certificate=root()),))
    svid = verify_x509_svid([certificate], {TD: bundle}, now=NOW + timedelta(minutes=1))
    assert svid.id == ID


def run_csr(data: bytes) -> None:
    csr = outcome(parse_csr, data, refusal=InvalidArgument)
    if csr is None:
        return
    _compare_with_cryptography(csr, data)
    names = outcome(lambda: (csr.uri_sans, csr.dns_names), refusal=InvalidArgument) or ((), ())
    subject = outcome(lambda: csr.subject, refusal=InvalidArgument)
    usable = tuple(dict.fromkeys(name for name in names[1] if _is_dns_name(name)))
    for of_its_own in (False, True) if subject is not None else (False,):
        token = outcome(leaf, csr, usable, of_its_own=of_its_own, refusal=InvalidArgument)
        if token is not None:
            certificate = sign(token, keys.signer("root"), remote=True)
            check_certificate(certificate, csr.public_key_der, usable)


def _compare_with_cryptography(csr: Csr, data: bytes) -> None:
    """It reads a subject and attributes that we pass over, more strictly; what both read must be the same."""
    try:
        seen = x509.load_der_x509_csr(data)
    except ValueError:
        return
    assert seen.is_signature_valid
    assert seen.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == csr.public_key_der
    try:
        names = seen.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return
    uris = outcome(lambda: csr.uri_sans, refusal=InvalidArgument)
    assert uris is None or uris == tuple(names.get_values_for_type(x509.UniformResourceIdentifier))
    dns_names = outcome(lambda: csr.dns_names, refusal=InvalidArgument)
    assert dns_names is None or dns_names == tuple(names.get_values_for_type(x509.DNSName))


def _is_dns_name(name: str) -> bool:
    return outcome(lambda: check_dns_name(name) or True, refusal=InvalidArgument) is True


def run_tbs(data: bytes) -> None:
    """The lint on bytes that nobody of ours has written: by the full reader, and against a template that has passed."""
    for dns_names in (("web.example.org",), ()):
        _lint_as(data, leaf(dns_names=dns_names))


def _lint_as(data: bytes, token: IssuanceToken) -> None:
    template, want = token.template, token.want
    template.linted = parse_tbs(token.tbs)  # anew each time: a stranger's bytes that pass leave theirs there
    template.outlines.clear()
    lint.lint(token.tbs, want, template)
    parts = outcome(parse_tbs, data, refusal=InvalidArgument)
    found = outcome(lint.findings, data, want, refusal=InvalidArgument)
    cut = outcome(template.cut, data, want, refusal=InvalidArgument)
    assert cut is None or cut == parts, "the quick reader and the full one differ"
    passed = outcome(lambda: lint.lint(data, want, template) or True, refusal=Internal)
    assert passed is None or found == [], "the quick lint passes what the full one does not"
    if passed:
        check_certificate(keys.signed("root", data), want.key.der, want.dns_names)


def run_der(data: bytes) -> None:
    read = outcome(_walk, data, refusal=InvalidArgument)
    slow = _slow_walk(data)
    assert read == slow, f"read as {read!r}, should be {slow!r}"
    if read is not None:
        assert b"".join(der.tlv(tag, content) for tag, content in read) == data
    reader = der.Reader(data)
    outcome(lambda: [reader.enter(reader.peek() & 0xFF) for _ in range(8)], refusal=InvalidArgument)
    number = outcome(der.unsigned, data, refusal=InvalidArgument)
    if number is not None:
        assert der.integer(number) == der.tlv(der.INTEGER, data)


def _walk(data: bytes) -> list[tuple[int, bytes]]:
    reader, found = der.Reader(data), []
    while reader.more:
        tag = reader.peek()
        found.append((tag, reader.take(tag)))
    reader.close()
    return found


def _slow_walk(data: bytes) -> list[tuple[int, bytes]] | None:
    """X.690 §8.1, §10.1 once more, by slices."""
    found: list[tuple[int, bytes]] = []
    rest = data
    while rest:
        tag, rest = rest[:1], rest[1:]
        first, rest = rest[:1], rest[1:]
        if not first:
            return None
        size = first[0]
        if size & 0x80:
            octets, rest = rest[: size & 0x7F], rest[size & 0x7F :]
            size = int.from_bytes(octets, "big")
            if not 1 <= len(octets) <= 4 or len(octets) != first[0] & 0x7F or octets[0] == 0 or size < 0x80:
                return None
        content, rest = rest[:size], rest[size:]
        if len(content) != size:
            return None
        found.append((tag[0], content))
    return found


def mutate_tbs(data: bytes, max_bytes: int, seed: int, default: Mutate) -> bytes:
    return mutate_der(data, max_bytes, random.Random(seed), default)


_OIDS = tuple(
    der.object_identifier(dotted)
    for dotted in ("2.5.29.17", "2.5.29.15", "2.5.29.19", "2.5.29.37", "1.2.840.113549.1.9.14", "2.5.4.3", "2.5.4.6")
)

TARGETS = (
    Target(name="csr", run=run_csr, mutate=resigning("leaf"), words=(*_OIDS, b"example.org"), max_bytes=20_000),
    Target(name="tbs", run=run_tbs, mutate=mutate_tbs, words=_OIDS),
    Target(name="der", run=run_der, mutate=structured, words=_OIDS, max_bytes=1024),
)
