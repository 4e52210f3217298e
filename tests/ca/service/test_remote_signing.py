"""A batch signed by a key that is elsewhere: few requests, each signature verified, one item's failure its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from cryptography import x509

from ca.errors import BurgeeError, Internal, InvalidArgument, Unavailable
from ca.identity.entry import RegistrationEntry
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.issuing.issuer import IssuerTemplate
from ca.issuing.lifetime import plan_lifetime
from ca.issuing.x509 import prepare_root, sign
from ca.keys.signer import LocalSigner, generate_private_key
from ca.ports import KeyType
from ca.service.issuance import REMOTE_CHUNK, Issuer, IssueSettings, WorkloadRequest
from ca.service.issuance_jobs import IssuedX509
from ca.service.signing import JwtSigning, X509Signing
from ca.store.issuance import IssuanceLog
from tests.support.clock import FakeClock
from tests.support.server import broken_csr, make_csr

TD = TrustDomain("example.org")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
AGENT = SpiffeId(TD, "/spire/agent/join_token/a")
Answer = Callable[[Sequence[bytes]], Sequence[bytes | BurgeeError]]


class Elsewhere(LocalSigner):
    """Implements BatchSigner and RemoteSigner; `answer` is what comes back for a batch, `known` the known problem."""

    __slots__ = ("answer", "batches", "known")

    def __init__(self) -> None:
        super().__init__("k", generate_private_key(KeyType.EC_P256))
        self.batches: list[int] = []
        self.known: BurgeeError | None = None
        self.answer: Answer = lambda batch: [super(Elsewhere, self).sign(data) for data in batch]

    def sign(self, data: bytes) -> bytes:
        raise AssertionError("one by one")

    def sign_many(self, batch: Sequence[bytes]) -> Sequence[bytes | BurgeeError]:
        assert threading.current_thread().name.startswith("remote-signer"), "none of those that compute"
        self.batches.append(len(batch))
        return self.answer(batch)

    def problem(self) -> BurgeeError | None:
        return self.known


class Records:
    """Counts what was put on record."""

    def __init__(self) -> None:
        self.count = 0

    async def append(self, records: Sequence[Any]) -> None:
        self.count += len(records)


class Bench:
    """Implements ca.service.signing.Authority over one such key, with an issuer on top."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.signer, self.records = Elsewhere(), Records()
        self.root = self._root()
        self.issuer = Issuer(
            settings=IssueSettings(
                trust_domain=TD,
                server="s1",
                x509_svid_ttl_seconds=3600,
                jwt_svid_ttl_seconds=300,
                agent_ttl_seconds=3600,
                backdate_seconds=10,
            ),
            authority=self,
            records=cast(IssuanceLog, self.records),
            clock=FakeClock(NOW),
            pool=pool,
        )

    def x509(self) -> X509Signing:
        return X509Signing(issuer=IssuerTemplate.from_certificate(self.root), signer=self.signer, remote=True)

    def jwt(self) -> JwtSigning:
        raise AssertionError

    async def issue(self, csrs: Sequence[bytes]) -> list[IssuedX509 | BurgeeError]:
        entry = RegistrationEntry(id="e", spiffe_id=SpiffeId(TD, "/w"), parent_id=AGENT, selectors=frozenset())
        return await self.issuer.for_workloads(AGENT, [WorkloadRequest(entry, csr) for csr in csrs])

    def _root(self) -> bytes:
        token = prepare_root(
            trust_domain=TD,
            public_key_der=self.signer.public_key_der,
            key_type=self.signer.key_type,
            lifetime=plan_lifetime(NOW, 86_400, 86_400, None, 10),
            serial=7,
        )
        return sign(token, _Plain(self.signer), remote=False)


class _Plain:
    """The same key, used in the ordinary way."""

    def __init__(self, signer: Elsewhere) -> None:
        self.key_id, self.key_type, self.public_key_der = signer.key_id, signer.key_type, signer.public_key_der
        self._signer = signer

    def sign(self, data: bytes) -> bytes:
        return LocalSigner.sign(self._signer, data)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with ThreadPoolExecutor(2, thread_name_prefix="crypto") as pool:
        yield Bench(pool)


CSR = make_csr()


async def test_a_batch_takes_few_requests_of_bounded_size(bench: Bench) -> None:
    outcomes = await bench.issue([CSR] * 500)
    root = x509.load_der_x509_certificate(bench.root)
    for outcome in outcomes:
        assert isinstance(outcome, IssuedX509)
        x509.load_der_x509_certificate(outcome.chain[0]).verify_directly_issued_by(root)
    assert bench.signer.batches == [REMOTE_CHUNK] * (500 // REMOTE_CHUNK)
    assert bench.records.count == 500


async def test_what_fails_alone_fails_alone(bench: Bench) -> None:
    """A CSR without proof is not signed; of two that are, one is refused elsewhere and one answered with rubbish."""

    def answer(batch: Sequence[bytes]) -> Sequence[bytes | BurgeeError]:
        good, _, third = (LocalSigner.sign(bench.signer, data) for data in batch)
        return [good, Unavailable("no", reason="VAULT_REFUSED"), third[:-1] + bytes([third[-1] ^ 1])]

    bench.signer.answer = answer
    first, second, third, fourth = await bench.issue([CSR, broken_csr(), CSR, CSR])
    assert isinstance(first, IssuedX509)
    assert isinstance(second, InvalidArgument)
    assert isinstance(third, Unavailable)
    assert third.reason == "VAULT_REFUSED"
    assert isinstance(fourth, Internal)
    assert (fourth.reason, fourth.detail) == ("RECHECK", "internal error")


async def test_signatures_in_another_order_are_not_believed(bench: Bench) -> None:
    bench.signer.answer = lambda batch: [LocalSigner.sign(bench.signer, data) for data in reversed(batch)]
    outcomes = await bench.issue([CSR] * 2)
    assert [getattr(outcome, "reason", "") for outcome in outcomes] == ["RECHECK", "RECHECK"]


@pytest.mark.parametrize("count", [1, 3])
async def test_another_number_of_signatures_is_none(bench: Bench, count: int) -> None:
    bench.signer.answer = lambda batch: [b"s"] * count
    with pytest.raises(Internal):
        await bench.issue([CSR] * 2)


async def test_a_key_out_of_reach_is_everybodys_failure(bench: Bench) -> None:
    def away(_: Sequence[bytes]) -> Sequence[bytes]:
        raise Unavailable("vault is sealed", reason="VAULT_SEALED")

    bench.signer.answer = away
    with pytest.raises(Unavailable) as caught:
        await bench.issue([CSR] * 300)
    assert caught.value.reason == "VAULT_SEALED"


async def test_what_is_known_to_be_in_vain_is_not_put_on_record(bench: Bench) -> None:
    bench.signer.known = Unavailable("vault is sealed", reason="VAULT_SEALED", hint="unseal it")
    with pytest.raises(Unavailable) as caught:
        await bench.issue([CSR] * 3)
    assert (caught.value.reason, caught.value.hint) == ("VAULT_SEALED", "unseal it")
    assert (bench.records.count, bench.signer.batches) == (0, [])
