"""Micro figures of the issuing path, one process, no wire: `python -m tests.bench.bench_signing [--json]`.

Each line is the best of several rounds, in microseconds of wall time per call, beside cryptography's own way where
there is one. The last lines run the whole path over many requests, in one thread and in a pool, in CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import timeit
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.issuing.csr import Csr, parse_csr
from ca.issuing.issuer import IssuerTemplate
from ca.issuing.jwt import prepare_jwt, sign_jwt
from ca.issuing.jwt_token import JwtKey
from ca.issuing.lifetime import plan_lifetime
from ca.issuing.lint import findings, lint
from ca.issuing.profile import WORKLOAD
from ca.issuing.serial import new_serial
from ca.issuing.token import IssuanceToken
from ca.issuing.x509 import prepare_leaf, prepare_root, recheck, sign, sign_all
from ca.keys.signer import LocalSigner, generate_private_key
from ca.ports import KeyType

NOW = datetime(2026, 11, 1, tzinfo=UTC)
TD = TrustDomain("example.org")
ID = SpiffeId.of(TD, "/ns/default/sa/web")


class Bench:
    """An authority, a request, and everything that happens between them."""

    def __init__(self) -> None:
        self.key = LocalSigner("bench", generate_private_key(KeyType.EC_P256))
        root = prepare_root(
            trust_domain=TD,
            public_key_der=self.key.public_key_der,
            key_type=KeyType.EC_P256,
            lifetime=plan_lifetime(NOW, 86400, 0, None),
            serial=new_serial(os.urandom(16)),
        )
        self.issuer = IssuerTemplate.from_certificate(sign(root, self.key, remote=True))
        self.private = ec.generate_private_key(ec.SECP256R1())
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        self.request = builder.sign(self.private, hashes.SHA256()).public_bytes(Encoding.DER)
        self.csr = parse_csr(self.request)
        self.jwt_key = JwtKey(kid="k" * 32, key_type=KeyType.EC_P256, public_key_der=self.key.public_key_der)

    def prepare(self, csr: Csr) -> IssuanceToken:
        return prepare_leaf(
            profile=WORKLOAD,
            spiffe_id=ID,
            dns_names=(),
            public_key=csr.key,
            lifetime=plan_lifetime(NOW, 3600, 0, self.issuer.not_after),
            serial=new_serial(os.urandom(16)),
            issuer=self.issuer,
        )

    def whole(self, count: int = 1) -> None:
        """Request in, certificate out, with what the record needs."""
        for _ in range(count):
            token = self.prepare(parse_csr(self.request))
            assert token.tbs_sha256
            assert token.key_sha256
            sign(token, self.key, remote=False)

    def batches(self, count: int, size: int = 250) -> None:
        """The same in batches, each step for all requests of one before the next step, as the server goes."""
        for _ in range(count // size):
            requests = [parse_csr(self.request) for _ in range(size)]
            tokens = [self.prepare(request) for request in requests]
            assert all(token.tbs_sha256 and token.key_sha256 for token in tokens)
            sign_all(tokens, self.key, remote=False)

    def jwt(self) -> None:
        lifetime = plan_lifetime(NOW, 300, 0, self.issuer.not_after, backdate_seconds=0)
        token = prepare_jwt(spiffe_id=ID, audience=("api",), lifetime=lifetime, key=self.jwt_key)
        sign_jwt(token, self.key, remote=False)

    def pieces(self) -> dict[str, Callable[[], object]]:
        token = self.prepare(self.csr)
        certificate = sign(self.prepare(self.csr), self.key, remote=False)
        good = sign(token, self.key, remote=False)
        assert len(certificate) > len(token.tbs)
        return {
            "csr: cryptography load + is_signature_valid": lambda: (
                x509.load_der_x509_csr(self.request).is_signature_valid
            ),
            "csr: parse_csr (cut, load key, verify)": lambda: parse_csr(self.request),
            "plan lifetime": lambda: plan_lifetime(NOW, 3600, 0, self.issuer.not_after),
            "prepare (plan, fill, lint, token)": lambda: self.prepare(self.csr),
            "  of it the lint, fast": lambda: lint(token.tbs, token.want, token.template),
            "  the same lint in full": lambda: findings(token.tbs, token.want),
            "raw P-256 signature": lambda: self.key.sign(token.tbs),
            "re-check, without the signature": lambda: recheck(token, good, verify_signature=False, read_names=False),
            "re-check, with it": lambda: recheck(token, good, verify_signature=True),
            "prepare + sign + re-check": lambda: sign(self.prepare(self.csr), self.key, remote=False),
            "whole X.509-SVID from its CSR": self.whole,
            "whole JWT-SVID": self.jwt,
        }


def best_us(call: Callable[[], object], number: int, rounds: int) -> float:
    return min(timeit.repeat(call, number=number, repeat=rounds)) / number * 1e6


def pool_us(work: Callable[[int], None], threads: int, count: int) -> tuple[float, float]:
    """CPU and wall microseconds per SVID in a pool of `threads`."""
    with ThreadPoolExecutor(threads) as pool:
        wall, cpu = time.perf_counter(), time.process_time()
        list(pool.map(work, [count // threads] * threads))
        return (time.process_time() - cpu) / count * 1e6, (time.perf_counter() - wall) / count * 1e6


def measure(number: int, rounds: int) -> dict[str, float]:
    """Name of each figure → microseconds."""
    bench = Bench()
    figures = {name: best_us(call, number, rounds) for name, call in bench.pieces().items()}
    for way, work in (("one by one", bench.whole), ("in batches", bench.batches)):
        for threads in (1, 2):
            cpu, wall = pool_us(work, threads, number * rounds)
            figures[f"{way}, {threads} thread(s): CPU"] = cpu
            figures[f"{way}, {threads} thread(s): wall"] = wall
    raw = figures["raw P-256 signature"] + figures["csr: parse_csr (cut, load key, verify)"]
    figures["ours beyond raw signature and CSR"] = figures["whole X.509-SVID from its CSR"] - raw
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--number", type=int, default=2000, help="calls per round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the best counts")
    options = parser.parse_args()
    figures = measure(options.number, options.rounds)
    if options.json:
        print(json.dumps({name.strip(): round(value, 2) for name, value in figures.items()}))
        return
    for name, value in figures.items():
        print(f"{name:<48}{value:>9.1f} µs")


if __name__ == "__main__":
    main()
