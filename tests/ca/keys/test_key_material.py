"""A signing key in Transit whose bytes are known to the test is nowhere in the server that signs with it: not in its
memory, not in its files."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ca.keys.shared_names import SharedNames
from ca.proto.spire import server_bundle_pb2, server_svid_pb2
from ca.runtime.rpc import connect
from tests.ca.keys.test_vault_transit import import_key
from tests.support.authority_host import authority_host
from tests.support.openbao import OpenBao, openbao
from tests.support.real import require
from tests.support.server import Caller, eventually, make_csr
from tests.support.transit import new_transit, token_file

pytestmark = pytest.mark.real("OpenBao")

KEY_ID = "x509-imported"
# The server as it is, but that its first X.509 authority takes a key that is there instead of having one made, and that
# it begins with a name.
SERVER = f"""
import ca.serve
import ca.server
from ca.keys.vault_transit import TransitKeyManager

generate = TransitKeyManager.generate

async def imported(self, key_id, key_type):
    if not key_id.startswith("x509"):
        return await generate(self, key_id, key_type)
    return await self.get({KEY_ID!r})

TransitKeyManager.generate = imported
ca.server.has_name = lambda _: False
raise SystemExit(ca.serve.main())
"""


@pytest.fixture(scope="module")
def bao() -> Iterator[OpenBao]:
    with openbao() as server:
        yield server


def config(bao: OpenBao, directory: Path, mount: str, policy: str) -> Path:
    (directory / "d").mkdir(mode=0o700)
    (directory / "d" / "server-id").write_text("s1\n")
    vault = {"address": bao.address, "mount": mount, "auth": token_file(bao, directory / "token", policy)}
    values = {
        "trust_domain": "example.org",
        "data_dir": str(directory / "d"),
        "bind_address": "127.0.0.1",
        "bind_port": 0,
        "metrics_address": None,
        "keys": {"plugin": "vault_transit", "config": vault},
        "log": {"format": "json", "level": "debug"},
    }
    path = directory / "config.yaml"
    path.write_text(json.dumps(values))
    return path


async def test_an_imported_key_is_neither_in_memory_nor_in_files(bao: OpenBao, tmp_path: Path) -> None:
    require("root", os.geteuid() == 0, "run the tests as root: the server's memory is closed to its own user")
    mount, policy = new_transit(bao)
    key = ec.generate_private_key(ec.SECP256R1())
    name = SharedNames.of(authority_host(tmp_path)).name(KEY_ID)
    import_key(bao, mount, f"{mount}/keys/{name}", key)
    command = [sys.executable, "-c", SERVER, "--config", str(config(bao, tmp_path, mount, policy))]
    server = start(command, tmp_path / "d" / "log")
    try:
        log = tmp_path / "d" / "log"
        await eventually(lambda: '"ready"' in log.read_text() or server.poll() is not None, seconds=30)
        assert server.poll() is None, log.read_text()
        root, leaves = await signed_by(tmp_path / "d" / "run" / "admin.sock")
        assert root.public_key() == key.public_key()
        for leaf in leaves:
            leaf.verify_directly_issued_by(root)
        public = root.public_bytes(Encoding.DER)
        assert any(public in part for part in memory_of(server.pid)), "the search finds what is there"
        for secret in forms(key):
            assert not any(secret in part for part in memory_of(server.pid))
    finally:
        server.terminate()
        await asyncio.to_thread(server.wait, 20)
    kept = [path.read_bytes() for path in (tmp_path / "d").rglob("*") if path.is_file()]
    assert any(public in data for data in kept), "the search finds what is there"
    for secret in forms(key):
        assert not any(secret in data for data in kept)


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(command, stderr=file, stdout=file)


async def signed_by(socket: Path) -> tuple[x509.Certificate, list[x509.Certificate]]:
    """The root, and a few SVIDs."""
    channel = connect(socket)
    local = Caller(channel)
    bundle = await local.bundles.GetBundle(server_bundle_pb2.GetBundleRequest())
    leaves = []
    for number in range(20):
        csr = make_csr(uris=[f"spiffe://example.org/w{number}"])
        svid = (await local.svids.MintX509SVID(server_svid_pb2.MintX509SVIDRequest(csr=csr))).svid
        leaves.append(x509.load_der_x509_certificate(svid.cert_chain[0]))
    await channel.close()
    (authority,) = bundle.x509_authorities
    return x509.load_der_x509_certificate(authority.asn1), leaves


def forms(key: ec.EllipticCurvePrivateKey) -> list[bytes]:
    """How a private key may lie about: its number in either order of bytes, and the texts of it."""
    number = key.private_numbers().private_value
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).splitlines()[1]
    big = number.to_bytes(32, "big")
    return [big, number.to_bytes(32, "little"), big.hex().encode(), str(number).encode(), pem]


def memory_of(pid: int) -> Iterator[bytes]:
    """Every region that can be read."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) r", line)
            if found is None or line.rstrip().endswith(("[vvar]", "[vsyscall]", "[vdso]")):
                continue
            start, end = int(found[1], 16), int(found[2], 16)
            try:
                memory.seek(start)
                yield memory.read(end - start)
            except OSError:
                continue
