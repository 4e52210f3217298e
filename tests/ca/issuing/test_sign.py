"""Tokens sign once, with their issuer's key alone, and what comes out is checked."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.errors import Internal, InvalidArgument, Unavailable
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.issuing.profile import AGENT, WORKLOAD
from ca.issuing.signature import ECDSA_SHA384
from ca.issuing.token import IssuanceToken
from ca.issuing.x509 import prepare_leaf, recheck, sign, sign_all
from ca.ports import KeyType
from tests.ca.issuing.support import ISSUER_TYPES, NOW, TD, issuer, lifetime, root, signer, subject_key

TIMES = lifetime(NOW, NOW + timedelta(hours=1))


def prepare(serial: int = 7, key_type: KeyType = KeyType.EC_P256, dns_names: tuple[str, ...] = ()) -> IssuanceToken:
    return prepare_leaf(
        profile=WORKLOAD,
        spiffe_id=SpiffeId.of(TD, "/w"),
        dns_names=dns_names,
        public_key=subject_key(),
        lifetime=TIMES,
        serial=serial,
        issuer=issuer(key_type),
    )


class Signing:
    """A Signer that answers what it is told; counts its calls."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer
        self.calls = 0
        self.key_id = "fake"
        self.key_type = KeyType.EC_P256
        self.public_key_der = signer().public_key_der

    def sign(self, data: bytes) -> bytes:
        self.calls += 1
        return self._answer(data)


@pytest.mark.parametrize("key_type", ISSUER_TYPES)
@pytest.mark.parametrize("remote", [True, False])
def test_a_signed_certificate_verifies_under_its_issuer(key_type: KeyType, remote: bool) -> None:
    token = prepare(key_type=key_type, dns_names=("a.example.org",))
    made = x509.load_der_x509_certificate(sign(token, signer(key_type), remote=remote))
    made.verify_directly_issued_by(x509.load_der_x509_certificate(root(key_type)))


def test_the_token_holds_what_the_record_needs() -> None:
    token = prepare()
    assert token.tbs_sha256 == hashlib.sha256(token.tbs).digest()
    assert token.key_sha256 == hashlib.sha256(subject_key().der).digest()
    assert (token.serial, token.spiffe_id, token.not_after) == (7, SpiffeId.of(TD, "/w"), TIMES.not_after)
    assert (token.not_before, token.lifetime) == (TIMES.not_before, TIMES)
    ski = x509.load_der_x509_certificate(root()).extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert token.authority_id == ski.value.digest.hex()


def test_a_token_signs_once() -> None:
    token = prepare()
    sign(token, signer(), remote=False)
    with pytest.raises(Internal) as caught:
        sign(token, signer(), remote=False)
    assert caught.value.reason == "TOKEN_USED"


def test_a_batch_answers_for_each_token() -> None:
    used = prepare(1)
    sign(used, signer(), remote=False)
    wrong_issuer = prepare(2, KeyType.EC_P384)
    good = [prepare(3), prepare(4, dns_names=("a.example.org",))]
    answers = sign_all([good[0], used, wrong_issuer, good[1]], signer(), remote=True)
    assert [getattr(answer, "reason", "signed") for answer in answers] == [
        "signed",
        "TOKEN_USED",
        "SIGNER_MISMATCH",
        "signed",
    ]
    for answer, serial in ((answers[0], 3), (answers[3], 4)):
        assert isinstance(answer, bytes)
        made = x509.load_der_x509_certificate(answer)
        made.verify_directly_issued_by(x509.load_der_x509_certificate(root()))
        assert made.serial_number == serial


def test_a_batch_is_rechecked() -> None:
    answers = sign_all([prepare(), prepare(8)], Signing(lambda data: signer().sign(data + b"x")), remote=True)
    assert [getattr(answer, "reason", "signed") for answer in answers] == ["RECHECK", "RECHECK"]


def test_of_many_threads_one_signs() -> None:
    token, counting = prepare(), Signing(signer().sign)
    outcomes: list[str] = []
    start = threading.Barrier(8)

    def run() -> None:
        start.wait()
        try:
            sign(token, counting, remote=False)
            outcomes.append("signed")
        except Internal as error:
            outcomes.append(error.reason)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["TOKEN_USED"] * 7 + ["signed"]
    assert counting.calls == 1


def test_a_failed_signature_uses_the_token_up_too() -> None:
    def fail(data: bytes) -> bytes:
        raise Unavailable("key is away")

    token = prepare()
    with pytest.raises(Unavailable):
        sign(token, Signing(fail), remote=True)
    with pytest.raises(Internal, match="once"):
        sign(token, signer(), remote=False)


def test_bytes_that_fail_the_lint_get_no_token() -> None:
    token = prepare()
    with pytest.raises(Internal) as caught:
        IssuanceToken(tbs=prepare(8).tbs, want=token.want, template=token.template)
    assert caught.value.reason == "LINT"
    with pytest.raises(Internal):
        replace(token, tbs=b"")


def test_a_token_cannot_be_changed() -> None:
    token = prepare()
    with pytest.raises(AttributeError):
        token.tbs = b""  # type: ignore[misc]  # the assignment is what must fail


def test_another_authoritys_key_never_signs() -> None:
    other = Signing(signer(name="other").sign)
    other.public_key_der = signer(name="other").public_key_der
    with pytest.raises(Internal) as caught:
        sign(prepare(), other, remote=False)
    assert caught.value.reason == "SIGNER_MISMATCH"
    assert other.calls == 0


def test_a_remote_keys_wrong_signature_is_found() -> None:
    wrong = Signing(lambda data: signer().sign(data + b"x"))
    with pytest.raises(Internal) as caught:
        sign(prepare(), wrong, remote=True)
    assert caught.value.reason == "RECHECK"


@pytest.mark.parametrize("answer", [b"", b"\x30\x00", bytes(64)])
def test_a_remote_keys_garbage_is_found(answer: bytes) -> None:
    with pytest.raises(Internal) as caught:
        sign(prepare(), Signing(lambda data: answer), remote=True)
    assert caught.value.reason == "RECHECK"


def test_a_local_keys_signatures_are_sampled() -> None:
    """About one of 256; which ones hangs on the hash of the bytes, hence on the serial's randomness."""
    tokens = [prepare(serial=number) for number in range(1, 4000)]
    sampled = [token for token in tokens if token.sampled]
    assert 3 < len(sampled) < 50
    wrong = Signing(lambda data: signer().sign(data + b"x"))
    with pytest.raises(Internal, match="no certificate of ours"):
        sign(sampled[0], wrong, remote=False)
    sign(next(token for token in tokens if not token.sampled), wrong, remote=False)


def certificate_of(token: IssuanceToken) -> bytes:
    return sign(prepare(token.serial), signer(), remote=True)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda good: good + b"\x00",
        lambda good: good[:-1],
        lambda good: b"",
        lambda good: sign(prepare(8), signer(), remote=True),
        lambda good: good.replace(b"\x04\x03\x02\x03", b"\x04\x03\x03\x03"),
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_the_recheck_refuses_other_bytes(spoil: Callable[[bytes], bytes], verify: bool) -> None:
    token = prepare()
    recheck(token, certificate_of(token), verify_signature=True)
    with pytest.raises(Internal) as caught:
        recheck(token, spoil(certificate_of(token)), verify_signature=verify)
    assert caught.value.reason == "RECHECK"


def test_the_recheck_compares_the_outer_algorithm() -> None:
    """cryptography compares both too, but only when it verifies."""
    token = prepare()
    good = certificate_of(token)
    at = good.rindex(issuer().algorithm)
    changed = good[:at] + ECDSA_SHA384.identifier + good[at + len(issuer().algorithm) :]
    with pytest.raises(Internal, match="another signature algorithm"):
        recheck(token, changed, verify_signature=False)


def test_the_recheck_reads_the_names_with_another_parser() -> None:
    token = prepare()
    good = certificate_of(token)
    for other in (
        token.want._replace(spiffe_id=SpiffeId.of(TD, "/x")),
        token.want._replace(dns_names=("a.example.org",)),
    ):
        mistaken = prepare()
        object.__setattr__(mistaken, "want", other)
        with pytest.raises(Internal, match="signed names"):
            recheck(mistaken, good, verify_signature=True)


@pytest.mark.parametrize(
    ("trust_domain", "path", "dns_names", "reason"),
    [
        (TD, "", (), "SPIFFE_ID_NO_PATH"),
        (TrustDomain("other.org"), "/w", (), "SPIFFE_ID_FOREIGN"),
        (TD, "/spire/server", (), "SPIFFE_ID_RESERVED"),
        (TD, "/w", ("ä.example.org",), "DNS_NAME"),
        (TD, "/w", ("ok.example.org", "not ok"), "DNS_NAME"),
    ],
)
def test_what_may_not_be_certified(
    trust_domain: TrustDomain, path: str, dns_names: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        prepare_leaf(
            profile=WORKLOAD,
            spiffe_id=SpiffeId.of(trust_domain, path),
            dns_names=dns_names,
            public_key=subject_key(),
            lifetime=TIMES,
            serial=7,
            issuer=issuer(),
        )
    assert caught.value.reason == reason


def test_a_leaf_may_not_outlive_its_issuer() -> None:
    """The planner cuts it; should a caller plan otherwise, the lint refuses."""
    long = replace(TIMES, not_after=issuer().not_after + timedelta(seconds=0))
    short = replace(issuer(), not_after=NOW + timedelta(minutes=1))
    for planned in (long, TIMES):
        with pytest.raises(Internal, match="outlive"):
            prepare_leaf(
                profile=AGENT,
                spiffe_id=SpiffeId.of(TD, "/spire/agent/x/y"),
                dns_names=(),
                public_key=subject_key(),
                lifetime=planned,
                serial=7,
                issuer=short,
            )


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 2**128 - 1), st.integers(1, 2000))
def test_any_serial_and_any_length_of_id(serial: int, length: int) -> None:
    token = prepare_leaf(
        profile=WORKLOAD,
        spiffe_id=SpiffeId.of(TD, "/" + "a" * length),
        dns_names=(),
        public_key=subject_key("ec-p384"),
        lifetime=TIMES,
        serial=serial,
        issuer=issuer(),
    )
    made = x509.load_der_x509_certificate(sign(token, signer(), remote=True))
    assert made.serial_number == serial
