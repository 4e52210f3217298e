"""The proof of an upstream's answer: good chains and bad ones, and OpenSSL's opinion of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ca.errors import FailedPrecondition
from ca.issuing.issuer import IssuerTemplate
from ca.ports import FindingLevel, UpstreamCa
from ca.upstream.proof import Need, ProvedCa, prove
from tests.ca.identity.forge import (
    HOUR,
    NOW,
    TD,
    Authority,
    Cert,
    intermediate,
    issue,
    key,
    root,
    spki,
    uri,
    usage,
)
from tests.ca.upstream.openssl import need_openssl, verify

NEED = Need(ttl_seconds=24 * 3600, longest_svid_seconds=3600, margin_seconds=60)
CA = x509.BasicConstraints(ca=True, path_length=None)


def limited(length: int) -> x509.BasicConstraints:
    return x509.BasicConstraints(ca=True, path_length=length)


def constraints(*permitted: x509.GeneralName, excluded: list[x509.GeneralName] | None = None) -> list[Any]:
    return [(x509.NameConstraints(list(permitted) or None, excluded), True)]


def directory(organization: str) -> x509.DirectoryName:
    return x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)]))


def proved(chain: list[Authority], *roots: Authority, key_of: Authority | None = None, **changes: Any) -> ProvedCa:
    """`chain` goes from the new authority up, without the root."""
    return prove(
        UpstreamCa(chain=tuple(a.der for a in chain), roots=tuple(r.der for r in roots)),
        trust_domain=TD,
        public_key_der=spki((key_of or chain[0]).key),
        need=dataclasses.replace(NEED, **changes),
        now=NOW,
    )


def openssl_says(directory: Path, chain: list[Authority], *roots: Authority, strict: bool = False) -> str:
    leaf = chain[0].sign(Cert(not_after=NOW + HOUR))
    return verify(directory, leaf, [a.der for a in chain], [r.der for r in roots], at=NOW, strict=strict)


def below(*changes: dict[str, Any], top: dict[str, Any] | None = None) -> tuple[list[Authority], Authority]:
    """A root and the authorities below it in order from the top; the last one is the new one."""
    first = parent = root(**(top or {}))
    chain: list[Authority] = []
    for depth, change in enumerate(changes):
        parent = intermediate(parent, f"ca-{depth}", **change)
        chain.insert(0, parent)
    return chain, first


GOOD: dict[str, Callable[[], tuple[list[Authority], Authority]]] = {
    "right below the root": lambda: below({}),
    "two between": lambda: below({}, {}, {}),
    "path lengths that just fit": lambda: below(
        {"constraints": limited(1)}, {"constraints": limited(0)}, top={"constraints": limited(2)}
    ),
    "constraints that permit": lambda: below({}, {}, top={"extra": constraints(uri("example.org"))}),
    "constraints on our own": lambda: below({"extra": constraints(uri("example.org"), uri("other.org"))}),
    "constraints that exclude others": lambda: below({}, top={"extra": constraints(excluded=[uri("other.org")])}),
    "purposes for TLS": lambda: below({"purposes": [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]}),
    "an RSA root": lambda: below({}, top={"key": key("RSA-2048", "root")}),
    "a P-384 issuer": lambda: below({"key": key("P-384", "between")}, {}),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_chain_is_proved_and_openssl_agrees(name: str, tmp_path: Path) -> None:
    need_openssl()
    chain, top = GOOD[name]()
    found = proved(chain, top)
    assert found.chain == tuple(a.der for a in chain)
    assert found.root == top.der
    assert found.not_after == NOW + 24 * HOUR
    assert IssuerTemplate.from_certificate(found.chain[0]).public_key_der == spki(chain[0].key)
    assert openssl_says(tmp_path, chain, top, strict=True) == ""


Bad = tuple[str, Callable[[], tuple[list[Authority], Authority]], bool]


def bad(reason: str, make: Callable[[], tuple[list[Authority], Authority]], *, beyond: bool = False) -> Bad:
    """`beyond`: what OpenSSL lets pass, since only an authority of a trust domain, for our key, must be so."""
    return reason, make, beyond


def broken_link() -> tuple[list[Authority], Authority]:
    """The one between has the name of the signer and another key."""
    chain, top = below({}, {})
    return [chain[0], intermediate(top, "ca-0", key=key("P-256", "impostor"))], top


def other_root() -> tuple[list[Authority], Authority]:
    chain, _ = below({}, {})
    return chain, root("another")


def same_name_root() -> tuple[list[Authority], Authority]:
    chain, _ = below({}, {})
    return chain, root("root", key=key("P-256", "impostor"))


def cross_signed_root() -> tuple[list[Authority], Authority]:
    """What is offered as a root is signed by somebody else."""
    chain, _ = below({}, {})
    return [chain[0]], chain[1]


def missing_link() -> tuple[list[Authority], Authority]:
    chain, top = below({}, {}, {})
    return [chain[0], chain[2]], top


def wrong_order() -> tuple[list[Authority], Authority]:
    chain, top = below({}, {}, {})
    return [chain[0], chain[2], chain[1]], top


def root_in_the_chain() -> tuple[list[Authority], Authority]:
    chain, top = below({})
    return [*chain, top], top


def identifiers_of_another(depth: int) -> tuple[list[Authority], Authority]:
    """The signature is good, the authority key identifier is another key's."""
    stranger = x509.AuthorityKeyIdentifier.from_issuer_public_key(key("P-256", "stranger").public_key())
    changes: list[dict[str, Any]] = [{}, {}]
    own = x509.SubjectKeyIdentifier.from_public_key(key("P-256", f"ca-{depth}").public_key())
    changes[depth] = {"key_identifiers": False, "extra": [(stranger, False), (own, False)]}
    return below(*changes)


def named_like_its_issuer() -> tuple[list[Authority], Authority]:
    top = root("same", key=key("P-256", "above"))
    return [intermediate(top, "same", key=key("P-256", "beneath"))], top


UNKNOWN = [(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00"), True)]
CODE = [ExtendedKeyUsageOID.CODE_SIGNING]
EXPIRED = {"not_before": NOW - 9 * HOUR, "not_after": NOW - HOUR}
FUTURE = {"not_before": NOW + HOUR, "not_after": NOW + 24 * HOUR}
LEAF = x509.BasicConstraints(ca=False, path_length=None)

BAD: dict[str, Bad] = {
    "no ca": bad("UPSTREAM_NOT_CA", lambda: below({"constraints": LEAF})),
    "no basic constraints": bad("UPSTREAM_NOT_CA", lambda: below({"constraints": None})),
    "cannot sign": bad("UPSTREAM_NOT_CA", lambda: below({"key_usage": usage("digital_signature")})),
    "no key usage": bad("UPSTREAM_NOT_CA", lambda: below({"key_usage": None}), beyond=True),
    "usage is not critical": bad("UPSTREAM_NOT_CA", lambda: below({"key_usage_critical": False}), beyond=True),
    "its issuer is no ca": bad("UPSTREAM_NOT_CA", lambda: below({"constraints": LEAF}, {})),
    "its issuer cannot sign": bad("UPSTREAM_NOT_CA", lambda: below({"key_usage": usage("crl_sign")}, {})),
    "the root cannot sign": bad(
        "UPSTREAM_ROOT_MISSING", lambda: below({}, top={"key_usage": usage("digital_signature")})
    ),
    "no key identifier": bad("UPSTREAM_PROFILE", lambda: below({"key_identifiers": False}), beyond=True),
    "no subject": bad("UPSTREAM_PROFILE", lambda: ([intermediate(root(), "")], root()), beyond=True),
    "named like its issuer": bad("UPSTREAM_PROFILE", named_like_its_issuer, beyond=True),
    "no spiffe id": bad("UPSTREAM_SPIFFE_ID", lambda: below({"san": []}), beyond=True),
    "a dns name for an id": bad(
        "UPSTREAM_SPIFFE_ID", lambda: below({"san": [x509.DNSName("example.org")]}), beyond=True
    ),
    "another trust domain": bad("UPSTREAM_SPIFFE_ID", lambda: below({"san": [uri("spiffe://other.org")]}), beyond=True),
    "an id with a path": bad(
        "UPSTREAM_SPIFFE_ID", lambda: below({"san": [uri("spiffe://example.org/spire/server")]}), beyond=True
    ),
    "two ids": bad(
        "UPSTREAM_SPIFFE_ID",
        lambda: below({"san": [uri("spiffe://example.org"), uri("spiffe://other.org")]}),
        beyond=True,
    ),
    "a link of another key": bad("UPSTREAM_CHAIN_BROKEN", broken_link),
    "a link is missing": bad("UPSTREAM_CHAIN_BROKEN", missing_link),
    "in the wrong order": bad("UPSTREAM_ROOT_MISSING", wrong_order, beyond=True),
    "identifiers of another key": bad("UPSTREAM_CHAIN_BROKEN", lambda: identifiers_of_another(1)),
    "identifiers of another root": bad("UPSTREAM_CHAIN_BROKEN", lambda: identifiers_of_another(0)),
    "another root": bad("UPSTREAM_ROOT_MISSING", other_root),
    "another root of that name": bad("UPSTREAM_ROOT_MISSING", same_name_root),
    "a root that is none": bad("UPSTREAM_ROOT_NOT_SELF_SIGNED", cross_signed_root),
    "the root in the chain": bad("UPSTREAM_CHAIN_HAS_ROOT", root_in_the_chain, beyond=True),
    "an unknown critical extension": bad("UPSTREAM_UNSUPPORTED", lambda: below({"extra": UNKNOWN}, {})),
    "a weak key above": bad("UPSTREAM_WEAK", lambda: below({"key": key("RSA-1024", "weak")}, {})),
    "a weak signature": bad("UPSTREAM_WEAK", lambda: below({}, {"digest": hashes.SHA224()}), beyond=True),
    "too long for the root": bad("UPSTREAM_PATH_LENGTH", lambda: below({}, top={"constraints": limited(0)})),
    "too long for one between": bad("UPSTREAM_PATH_LENGTH", lambda: below({"constraints": limited(0)}, {})),
    "much too long": bad("UPSTREAM_PATH_LENGTH", lambda: below({}, {}, {}, top={"constraints": limited(1)})),
    "not permitted": bad("UPSTREAM_NAME_CONSTRAINTS", lambda: below({}, top={"extra": constraints(uri("other.org"))})),
    "only below us permitted": bad(
        "UPSTREAM_NAME_CONSTRAINTS", lambda: below({}, top={"extra": constraints(uri(".example.org"))})
    ),
    "excluded": bad(
        "UPSTREAM_NAME_CONSTRAINTS", lambda: below({}, {}, top={"extra": constraints(excluded=[uri("example.org")])})
    ),
    "excluded by the new one": bad(
        "UPSTREAM_NAME_CONSTRAINTS", lambda: below({"extra": constraints(excluded=[uri("example.org")])})
    ),
    "nothing permitted": bad("UPSTREAM_NAME_CONSTRAINTS", lambda: below({}, top={"extra": constraints(uri(""))})),
    "subjects not permitted": bad(
        "UPSTREAM_NAME_CONSTRAINTS", lambda: below({}, top={"extra": constraints(directory("Somebody"))})
    ),
    "not for TLS": bad("UPSTREAM_EXTENDED_KEY_USAGE", lambda: below({"purposes": CODE})),
    "not for TLS above": bad("UPSTREAM_EXTENDED_KEY_USAGE", lambda: below({"purposes": CODE}, {})),
    "for servers alone": bad(
        "UPSTREAM_EXTENDED_KEY_USAGE", lambda: below({"purposes": [ExtendedKeyUsageOID.SERVER_AUTH]})
    ),
    "for anything, says it": bad(
        "UPSTREAM_EXTENDED_KEY_USAGE", lambda: below({"purposes": [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]})
    ),
    "expired": bad("UPSTREAM_EXPIRED", lambda: below(EXPIRED)),
    "expired above": bad("UPSTREAM_EXPIRED", lambda: below(EXPIRED, {})),
    "an expired root": bad("UPSTREAM_EXPIRED", lambda: below({}, top=EXPIRED)),
    "not yet valid": bad("UPSTREAM_NOT_YET_VALID", lambda: below(FUTURE)),
    "too short": bad("UPSTREAM_TOO_SHORT", lambda: below({"not_after": NOW + HOUR}), beyond=True),
    "too short above": bad("UPSTREAM_TOO_SHORT", lambda: below({"not_after": NOW + HOUR}, {}), beyond=True),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_chain_is_refused_and_openssl_agrees(name: str, tmp_path: Path) -> None:
    """With a stable reason each; OpenSSL refuses it too, unless it is about what OpenSSL knows nothing of."""
    need_openssl()
    reason, make, beyond = BAD[name]
    chain, top = make()
    with pytest.raises(FailedPrecondition) as caught:
        proved(chain, top)
    assert caught.value.reason == reason
    assert (openssl_says(tmp_path, chain, top) == "") == beyond


def test_the_key_must_be_ours() -> None:
    chain, top = below({})
    with pytest.raises(FailedPrecondition) as caught:
        proved(chain, top, key_of=top)
    assert caught.value.reason == "UPSTREAM_KEY_MISMATCH"


@pytest.mark.parametrize(
    ("chain", "roots", "reason"),
    [
        ((), (b"",), "UPSTREAM_CHAIN_EMPTY"),
        ((b"x",), (), "UPSTREAM_CHAIN_MALFORMED"),
        ((b"x",) * 10, (), "UPSTREAM_CHAIN_TOO_LONG"),
        ((below({})[0][0].der,), (b"junk",), "UPSTREAM_CHAIN_MALFORMED"),
        ((below({})[0][0].der,), (b"x",) * 101, "UPSTREAM_CHAIN_TOO_LONG"),
        ((below({})[0][0].der + b"more",), (), "UPSTREAM_CHAIN_MALFORMED"),
    ],
)
def test_what_is_no_chain_is_refused(chain: tuple[bytes, ...], roots: tuple[bytes, ...], reason: str) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        prove(
            UpstreamCa(chain=chain, roots=roots),
            trust_domain=TD,
            public_key_der=spki(key("P-256", "ca-0")),
            need=NEED,
            now=NOW,
        )
    assert caught.value.reason == reason


def test_of_two_roots_with_one_key_the_valid_one_counts() -> None:
    """A root was renewed: the old one has expired and is still in the upstream's bundle."""
    chain, new = below({})
    old = root(**EXPIRED)
    for roots in ([old, new], [new, old]):
        found = proved(chain, *roots)
        assert found.root == new.der
        assert found.roots == tuple(r.der for r in roots)


def test_the_path_ends_with_the_first_of_its_certificates() -> None:
    """The new authority itself says later."""
    chain, top = below({"not_after": NOW + 5 * HOUR}, {"not_after": NOW + 9 * HOUR})
    found = proved(chain, top)
    assert found.not_after == NOW + 5 * HOUR
    assert found.not_before == NOW - 2 * HOUR


def test_a_root_that_vouches_for_nobody_is_left_out_and_named() -> None:
    chain, top = below({})
    useless = root("useless", constraints=LEAF)
    found = proved(chain, useless, top)
    assert found.roots == (top.der,)
    assert [(w.what, w.level) for w in found.warnings] == [("roots", FindingLevel.WARNING)]
    assert "useless" in found.warnings[0].detail


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ([{}], []),
        ([{"constraints": limited(0)}], ["path length"]),
        ([{}, {"constraints": limited(1)}], []),
        ([{"constraints": limited(1)}, {}], ["path length"]),
        ([{"not_after": NOW + 12 * HOUR}], ["lifetime"]),
        ([{"not_after": NOW + 4 * HOUR}], ["lifetime", "lifetime"]),
        ([{"not_after": NOW + 24 * HOUR - timedelta(seconds=50)}], []),
        ([{"extra": constraints(x509.DNSName("example.org"))}], ["name constraints"]),
    ],
)
def test_what_will_not_do_for_ever_is_a_warning(changes: list[dict[str, Any]], what: list[str]) -> None:
    chain, top = below(*changes)
    found = proved(chain, top)
    assert [warning.what for warning in found.warnings] == what
    assert all(warning.level == FindingLevel.WARNING and warning.hint for warning in found.warnings)


@pytest.mark.parametrize(
    ("lengths", "room"), [([None], None), ([2], 2), ([None, None], None), ([3, None], 2), ([3, 1], 1), ([None, 4], 4)]
)
def test_how_many_authorities_may_follow(lengths: list[int | None], room: int | None) -> None:
    chain, top = below(*({"constraints": x509.BasicConstraints(ca=True, path_length=n)} for n in lengths))
    assert proved(chain, top).path_length == room


PLAIN = {"constraints": CA}
STEPS = st.one_of(
    st.just(PLAIN),
    st.sampled_from([0, 1, 2, 3]).map(lambda n: {"constraints": limited(n)}),
    st.sampled_from(
        [
            {"key_usage": usage("key_cert_sign")},
            {"key_usage": usage("crl_sign")},
            {"constraints": LEAF},
            {"purposes": list(CODE)},
            {"purposes": [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]},
            {"extra": constraints(directory("Somebody"))},
            {"extra": constraints(excluded=[directory("Somebody")])},
            {"extra": constraints(uri(""))},
            {"purposes": [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]},
            {"extra": constraints(uri("example.org"))},
            {"extra": constraints(uri("other.org"))},
            {"extra": constraints(uri("other.org"), uri("example.org"))},
            {"extra": constraints(excluded=[uri(".example.org")])},
            {"extra": constraints(excluded=[uri("example.org")])},
            {"extra": constraints(x509.DNSName("example.org"))},
            {"not_after": NOW - HOUR},
            {"not_before": NOW + HOUR},
            {"digest": hashes.SHA384()},
        ]
    ),
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(top=STEPS, steps=st.lists(STEPS, min_size=1, max_size=4), shuffle=st.sampled_from([None, 0, 1]))
def test_proof_and_openssl_agree(
    tmp_path: Path, top: dict[str, Any], steps: list[dict[str, Any]], shuffle: int | None
) -> None:
    """On any path of such authorities, and on one with a certificate replaced by another of its name."""
    need_openssl()
    chain, first = below(*steps, top=top)
    if shuffle is not None and shuffle < len(chain):
        forged = key("P-256", "forger")
        chain[shuffle] = dataclasses.replace(
            chain[shuffle],
            der=issue(
                Cert(
                    subject=chain[shuffle].subject,
                    key=chain[shuffle].key,
                    san=[uri("spiffe://example.org")],
                    constraints=CA,
                    key_usage=usage("key_cert_sign"),
                    purposes=None,
                    not_after=NOW + 24 * HOUR,
                ),
                "forger",
                forged,
            ),
        )
    try:
        proved(chain, first)
        refusal = ""
    except FailedPrecondition as error:
        refusal = error.reason
    assert bool(refusal) == bool(openssl_says(tmp_path, chain, first)), (refusal, top, steps)
