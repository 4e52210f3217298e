"""What the configuration says of keys and times is what comes out: in roots, leaves and tokens."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ca.identity.jwt_svid import verify_jwt_svid
from ca.identity.svid import verify_x509_svid
from ca.ports import KeyType
from ca.proto.spire import server_svid_pb2 as pb
from tests.support.server import RunningServer, make_csr, running_server, spiffe_id

ID = "spiffe://example.org/m"


async def mint(server: RunningServer) -> tuple[x509.Certificate, str]:
    """An X.509-SVID that verifies, and a JWT-SVID that does."""
    bundles, now = server.server.trust.bundles, datetime.now(UTC)
    made = await server.local.svids.MintX509SVID(pb.MintX509SVIDRequest(csr=make_csr(uris=[ID]), ttl=600))
    assert str(verify_x509_svid(made.svid.cert_chain, bundles, now=now).id) == ID
    request = pb.MintJWTSVIDRequest(id=spiffe_id("/m"), audience=["x"])
    token = (await server.local.svids.MintJWTSVID(request)).svid.token
    assert str(verify_jwt_svid(token, audience="x", bundles=bundles, now=datetime.now(UTC)).id) == ID
    return x509.load_der_x509_certificate(made.svid.cert_chain[0]), token


def kind_of(key: object) -> str:
    if isinstance(key, rsa.RSAPublicKey):
        return f"rsa-{key.key_size}"
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return f"ec-p{key.curve.key_size}"


@pytest.mark.parametrize("manager", ["disk", "memory"])
async def test_keys_are_p256_unless_configured(manager: str) -> None:
    async with running_server(keys={"plugin": manager}) as server:
        await mint(server)
        (root,) = (x509.load_der_x509_certificate(der) for der in server.roots)
        (token_key,) = server.server.trust.own.jwt_authorities
        assert {kind_of(root.public_key()), server.config.jwt_key_type.value} == {"ec-p256"}
        assert token_key.key_id


@pytest.mark.slow
@pytest.mark.parametrize("key_type", [kind for kind in KeyType if kind is not KeyType.EC_P256])
async def test_every_other_key_type_can_be_chosen(key_type: KeyType) -> None:
    """And a restart finds the same keys again on disk."""
    async with running_server(ca_key_type=key_type.value, jwt_key_type=key_type.value) as server:
        leaf, token = await mint(server)
        (root,) = (x509.load_der_x509_certificate(der) for der in server.roots)
        assert kind_of(root.public_key()) == key_type.value
        await server.restart()
        bundles = server.server.trust.bundles
        assert len(server.roots) == 1
        leaf.verify_directly_issued_by(root)
        verify_jwt_svid(token, audience="x", bundles=bundles, now=datetime.now(UTC))
        await mint(server)


@pytest.mark.parametrize("seconds", [10, 0, 90])
async def test_not_before_lies_as_far_back_as_configured(seconds: int) -> None:
    changes = {} if seconds == 10 else {"backdate_seconds": seconds}
    async with running_server(**changes) as server:
        before = datetime.now(UTC).replace(microsecond=0)
        leaf, _ = await mint(server)
        back = timedelta(seconds=seconds)
        assert before - back <= leaf.not_valid_before_utc <= datetime.now(UTC) - back
        life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
        assert life == timedelta(seconds=600) + back
