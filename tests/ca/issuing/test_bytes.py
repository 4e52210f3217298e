"""The template's bytes are those of cryptography's builder, for thousands of generated certificates."""

from __future__ import annotations

import random
import string
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from ca.identity.spiffe_id import SpiffeId
from ca.issuing.parts import parse_tbs
from ca.issuing.profile import AGENT, SERVER, WORKLOAD
from ca.issuing.x509 import prepare_leaf, sign
from ca.ports import KeyType
from tests.ca.issuing.support import (
    ISSUER_TYPES,
    TD,
    builder_leaf,
    digest_of,
    issuer,
    lifetime,
    private_key,
    root,
    signer,
    subject_key,
    svid_name,
)

SEGMENT = string.ascii_letters + string.digits + "_-"
LABEL = string.ascii_letters + string.digits
SUBJECT_KEYS = [("ec-p256", 0), ("ec-p256", 1), ("ec-p384", 0), ("rsa-2048", 0), ("rsa-3072", 0)]
CASES = {KeyType.EC_P256: 2000, KeyType.EC_P384: 700, KeyType.RSA_2048: 500}


def random_path(rng: random.Random) -> str:
    """Often short, now and then as long as an ID may be (2048 bytes)."""
    room = 2048 - len(str(TD.id))
    length = rng.choice([rng.randint(2, 60), rng.randint(90, 300), rng.randint(2, room), room])
    path = ""
    while len(path) < length:
        path += "/" + "".join(rng.choices(SEGMENT, k=min(rng.randint(1, 64), length - len(path))))
    return path[:length].rstrip("/") or "/a"


def random_dns_names(rng: random.Random) -> tuple[str, ...]:
    names = []
    for _ in range(rng.choice([0, 0, 0, 1, 2, 5])):
        labels = ["".join(rng.choices(LABEL, k=rng.choice([1, 5, 63]))) for _ in range(rng.randint(1, 3))]
        if rng.random() < 0.2:
            labels[0] = "*"
            labels.append("org")
        elif rng.random() < 0.1:
            labels[0] = "_" + labels[0][:60]
        names.append(".".join(labels))
    return tuple(names)


def random_times(rng: random.Random) -> tuple[datetime, datetime]:
    """Around today, around the change of encodings at 2050, and at the ends."""
    start = datetime(rng.choice([1950, 1999, 2000, 2026, 2049, 2050, 2100, 9000]), 1, 1, tzinfo=UTC)
    begin = start + timedelta(seconds=rng.randrange(366 * 86400))
    return begin, begin + timedelta(seconds=rng.choice([10, 3610, 86400, rng.randrange(1, 2**31)]))


@pytest.mark.parametrize("issuer_type", ISSUER_TYPES)
def test_leaves_are_byte_for_byte_those_of_the_builder(issuer_type: KeyType) -> None:
    rng = random.Random(f"leaves {issuer_type}")
    for _ in range(CASES[issuer_type]):
        key = subject_key(*rng.choice(SUBJECT_KEYS))
        serial = rng.choice([1, 127, 128, 255, 256, 2**127, 2**128 - 1, rng.getrandbits(128) or 1])
        times = lifetime(*random_times(rng))
        path, names = random_path(rng), random_dns_names(rng)
        token = prepare_leaf(
            profile=WORKLOAD,
            spiffe_id=SpiffeId.of(TD, path),
            dns_names=names,
            public_key=key,
            lifetime=times,
            serial=serial,
            issuer=issuer(issuer_type),
        )
        common_name = names[0] if names and len(names[0]) <= 64 else ""
        oracle = builder_leaf(
            issuer_der=root(issuer_type),
            key=key,
            serial=serial,
            times=times,
            uri=f"spiffe://example.org{path}",
            dns_names=names,
            subject=svid_name(common_name),
        ).sign(private_key(signer(issuer_type)), digest_of(issuer_type))
        assert token.tbs == oracle.tbs_certificate_bytes
        # The fast taking apart sees what the full one sees, which is what makes the fast lint equal to the full one.
        assert token.template.cut(token.tbs, token.want) == parse_tbs(token.tbs)


def test_an_rsa_signed_certificate_is_equal_as_a_whole() -> None:
    """PKCS#1 v1.5 is deterministic, so that signature and wrapping can be compared too."""
    times = lifetime(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))
    key = subject_key("ec-p384")
    token = prepare_leaf(
        profile=AGENT,
        spiffe_id=SpiffeId.of(TD, "/spire/agent/join_token/x"),
        dns_names=(),
        public_key=key,
        lifetime=times,
        serial=5,
        issuer=issuer(KeyType.RSA_2048),
    )
    oracle = builder_leaf(
        issuer_der=root(KeyType.RSA_2048),
        key=key,
        serial=5,
        times=times,
        uri="spiffe://example.org/spire/agent/join_token/x",
        dns_names=(),
        subject=svid_name(),
    ).sign(private_key(signer(KeyType.RSA_2048)), digest_of(KeyType.RSA_2048))
    made = sign(token, signer(KeyType.RSA_2048), remote=True)
    assert x509.load_der_x509_certificate(made) == oracle


def test_the_servers_profile_differs_in_nothing_but_the_id() -> None:
    times = lifetime(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))

    def tbs(profile: object, path: str) -> bytes:
        return prepare_leaf(
            profile=profile,  # type: ignore[arg-type]  # one of three LeafProfiles
            spiffe_id=SpiffeId.of(TD, path),
            dns_names=(),
            public_key=subject_key(),
            lifetime=times,
            serial=7,
            issuer=issuer(),
        ).tbs

    assert tbs(SERVER, "/spire/server") == tbs(WORKLOAD, "/spirx/server").replace(b"/spirx/", b"/spire/")
