"""Keys that are elsewhere: a batch's wall time beside what the other side takes for the same signatures alone."""

from __future__ import annotations

import base64
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.load import Figures, wire
from tests.bench.target import UNLIMITED
from tests.support.openbao import OpenBao, shared_openbao
from tests.support.openbao_mounts import enable_secrets
from tests.support.pair import TRUST_DOMAIN, Pair, pair
from tests.support.softhsm import PIN, softhsm_token
from tests.support.transit import new_transit, token_file

BATCH = 500
REQUEST = 125
"""Signatures in one request to OpenBao, as the server puts them."""


def transit(rounds: int) -> Figures:
    """Of a server whose keys are in OpenBao's Transit."""
    bao = shared_openbao()
    with tempfile.TemporaryDirectory(prefix="bg-bench-") as scratch:
        mount, policy = new_transit(bao, TRUST_DOMAIN)
        auth = token_file(bao, Path(scratch) / "vault-token", policy)
        keys = {"plugin": "vault_transit", "config": {"address": bao.address, "mount": mount, "auth": auth}}
        return _compare("transit", keys, _transit_alone(bao), rounds)


def softhsm(rounds: int) -> Figures:
    """Of a server whose keys are in a SoftHSM token."""
    token = softhsm_token()
    with tempfile.TemporaryDirectory(prefix="bg-bench-") as scratch, _bare_loop(token.module, token.label) as alone:
        keys = {"plugin": "pkcs11", "config": token.config(Path(scratch) / "pin")}
        return _compare("softhsm", keys, alone, rounds)


def _compare(name: str, keys: dict[str, Any], alone: Callable[[], float], rounds: int) -> Figures:
    """Both in turn, so that a busy machine is busy for both."""
    walls, bare = [], []
    with pair(server={**UNLIMITED, "keys": keys}) as nodes, tempfile.TemporaryDirectory() as scratch:
        batch = _batches(nodes, scratch)
        batch()
        for _ in range(rounds):
            bare.append(alone())
            walls.append(batch())
    ratios = [wall / each for wall, each in zip(walls, bare, strict=True)]
    return {
        f"{name}_batch_ms": statistics.median(walls) * 1e3,
        f"{name}_ratio": statistics.median(ratios),
        f"{name}_worst": max(ratios),
    }


def _batches(nodes: Pair, scratch: str) -> Callable[[], float]:
    """A call gives the seconds of one BatchNewX509SVID of 500, the mean of a few in a row."""
    to = {"addr": f"127.0.0.1:{nodes.port}", "td": TRUST_DOMAIN, "dir": scratch}
    path = wire("attest", admin=nodes.admin_socket, **to)["path"]
    ids = f"{scratch}/ids"
    wire("entries", admin=nodes.admin_socket, td=TRUST_DOMAIN, parent=path, n=BATCH, ids=ids)
    load = {"ids": ids, "size": BATCH, "pid": nodes.pid("server"), "calls": 4, "callers": 1, **to}
    return lambda: float(wire("batch", **load)["wall_us_each"]) * BATCH / 1e6


def _transit_alone(bao: OpenBao) -> Callable[[], float]:
    """Seconds that OpenBao takes for 500 signatures by batch_input, from requests that were made before."""
    mount = enable_secrets(bao, "transit", "transit-alone")
    bao.call("POST", f"{mount}/keys/alone", {"type": "ecdsa-p256"})
    hashed = base64.b64encode(hashlib.sha256(b"data").digest()).decode()
    request = {
        "batch_input": [{"input": hashed}] * REQUEST,
        "prehashed": True,
        "hash_algorithm": "sha2-256",
        "marshaling_algorithm": "asn1",
    }

    def alone() -> float:
        began = time.perf_counter()
        for _ in range(BATCH // REQUEST):
            bao.call("POST", f"{mount}/sign/alone", request)
        return time.perf_counter() - began

    return alone


@contextmanager
def _bare_loop(module: Path, label: str) -> Iterator[Callable[[], float]]:
    """Seconds of 500 signatures in one session, one after the other. In a thread of its own: what a module leaves in
    libcrypto's queue of errors would fail the TLS of whatever is measured next."""
    with ThreadPoolExecutor(1) as thread:
        session, key = thread.submit(_bare_key, module, label).result()
        try:
            yield lambda: thread.submit(_signatures, key).result()
        finally:
            thread.submit(session.close).result()


def _bare_key(module: Path, label: str) -> tuple[Any, Any]:
    import pkcs11

    session = pkcs11.lib(str(module)).get_token(token_label=label).open(rw=True, user_pin=PIN)
    curve = {pkcs11.Attribute.EC_PARAMS: pkcs11.util.ec.encode_named_curve_parameters("secp256r1")}
    domain = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
    _, key = domain.generate_keypair(store=True, label=f"bare-{os.getpid()}")
    return session, key


def _signatures(key: Any) -> float:
    import pkcs11

    digest = hashlib.sha256(b"data").digest()
    began = time.perf_counter()
    for _ in range(BATCH):
        key.sign(digest, mechanism=pkcs11.Mechanism.ECDSA)
    return time.perf_counter() - began
