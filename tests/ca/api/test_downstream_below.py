"""Servers below a server that is below an upstream: their authorities are believed, or are not given."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca.proto.spire import server_bundle_pb2, server_svid_pb2, types_pb2
from tests.ca.api.refusals import Code, refused
from tests.ca.identity.forge import intermediate, root
from tests.ca.upstream.openssl import need_openssl, svid_below, verify
from tests.contracts.upstreams import DISK_FILES, disk_files, vault_mount, vault_policy, write_key, write_pem
from tests.support.openbao import shared_openbao
from tests.support.openbao_mounts import make_token
from tests.support.server import Caller, RunningServer, entry, make_csr, running_server


@asynccontextmanager
async def below(upstream: dict[str, Any]) -> AsyncIterator[tuple[RunningServer, Caller]]:
    """A server, and one that may be below it."""
    async with running_server(upstream=upstream, ca_ttl_seconds=36_000) as server:
        await server.create(entry("/down", "/spire/agent/join_token/x", downstream=True))
        yield server, await server.caller(await server.mint("/down"))


def on_disk(directory: Path) -> dict[str, Any]:
    return {"plugin": "disk", "config": {name: str(directory / file) for name, file in DISK_FILES.items()}}


def in_vault(directory: Path, **changes: Any) -> dict[str, Any]:
    bao, mount = shared_openbao(), f"pki-{secrets.token_hex(4)}"
    vault_mount(bao, mount)
    vault_policy(bao, mount)
    token = directory / "token"
    token.write_text(make_token(bao, mount, "default", ttl="1h"))
    config = {"address": bao.address, "mount": mount, "auth": {"token_file": str(token)}, **changes}
    return {"plugin": "vault_pki", "config": config}


async def an_authority(caller: Caller, key: ec.EllipticCurvePrivateKey) -> list[bytes]:
    request = server_svid_pb2.NewDownstreamX509CARequest(csr=make_csr(key))
    return list((await caller.svids.NewDownstreamX509CA(request)).ca_cert_chain)


@pytest.mark.parametrize("name", ["disk", pytest.param("vault_pki", marks=pytest.mark.real("OpenBao"))])
async def test_what_is_below_every_upstream_is_believed(name: str, tmp_path: Path) -> None:
    need_openssl()
    disk_files(tmp_path)
    async with below(on_disk(tmp_path) if name == "disk" else in_vault(tmp_path)) as (server, caller):
        key = ec.generate_private_key(ec.SECP256R1())
        chain = await an_authority(caller, key)
        leaf = svid_below(chain[0], key, now=datetime.now(UTC))
        assert verify(tmp_path, leaf, chain, server.roots, at=datetime.now(UTC), strict=True) == ""
        public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        token_key = types_pb2.JWTKey(public_key=public, key_id="below", expires_at=4102444800)
        published = server_bundle_pb2.PublishJWTAuthorityRequest(jwt_authority=token_key)
        answer = await caller.bundles.PublishJWTAuthority(published)
        assert "below" in {one.key_id for one in answer.jwt_authorities}


async def test_where_path_lengths_leave_no_room_none_is_given(tmp_path: Path) -> None:
    """Whichever authority above it is that says so: the one that signs ours, or the root."""
    for place, constrained in enumerate(("intermediate", "root")):
        directory = tmp_path / constrained
        directory.mkdir()
        dates = {"not_before": datetime(2026, 1, 1, tzinfo=UTC), "not_after": datetime(2100, 1, 1, tzinfo=UTC)}
        limit = {"constraints": x509.BasicConstraints(ca=True, path_length=1 + place)}
        top = root("top", **dates, **(limit if constrained == "root" else {}))
        made = intermediate(top, "between", **dates, **(limit if constrained == "intermediate" else {}))
        write_pem(directory / "ca.pem", made.der)
        write_key(directory / "ca.key", made)
        write_pem(directory / "chain.pem", top.der)
        async with below(on_disk(directory)) as (server, caller):
            with refused(Code.FAILED_PRECONDITION, "let no other follow", "UPSTREAM_PATH_LENGTH"):
                await an_authority(caller, ec.generate_private_key(ec.SECP256R1()))
            records = await server.server.store.issuance.find(spiffe_id="spiffe://example.org")
            assert [one for one in records if one.entry_id] == []


@pytest.mark.real("OpenBao")
async def test_a_path_length_of_none_is_kept(tmp_path: Path) -> None:
    async with below(in_vault(tmp_path, max_path_length=0)) as (_, caller):
        with refused(Code.FAILED_PRECONDITION, "let no other follow", "UPSTREAM_PATH_LENGTH"):
            await an_authority(caller, ec.generate_private_key(ec.SECP256R1()))
