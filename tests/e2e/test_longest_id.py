"""A SPIFFE ID of 2,048 bytes, which everybody must support (SPIFFE-ID §2.3), on every way that an identity takes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2

from ca.identity.bundle import TrustBundle, X509Authority
from ca.identity.bundle_pem import parse_certificates
from ca.identity.spiffe_id import TrustDomain
from ca.identity.svid import verify_x509_svid
from tests.support.pair import TRUST_DOMAIN, Pair, pair
from tests.support.workload_client import WorkloadClient

ROOM = 2048 - len(f"spiffe://{TRUST_DOMAIN}")
PATH = ("/" + "a" * 63) * (ROOM // 64)
PATH += "/" + "z" * (ROOM - len(PATH) - 1)
ID = f"spiffe://{TRUST_DOMAIN}{PATH}"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Pair]:
    with pair() as running:
        yield running


def identity_of(nodes: Pair, chain: bytes) -> str:
    """What the leaf says, once it verifies against the bundle that the server wrote."""
    domain = TrustDomain(TRUST_DOMAIN)
    roots = tuple(X509Authority(certificate=der) for der in parse_certificates(nodes.bundle_file.read_bytes()))
    bundle = TrustBundle(trust_domain=domain, x509_authorities=roots)
    return str(verify_x509_svid([chain], {domain: bundle}, now=datetime.now(UTC)).id)


async def test_it_is_registered_issued_delivered_and_validated(nodes: Pair) -> None:
    assert len(ID) == 2048
    nodes.create_entry(PATH, x509_svid_ttl=600)
    async with WorkloadClient(str(nodes.workload_socket)) as client:
        (svid,) = (await client.x509_svids().read()).svids
        assert svid.spiffe_id == ID
        assert identity_of(nodes, svid.x509_svid) == ID

        (token,) = (await client.jwt_svids("somebody", spiffe_id=ID)).svids
        assert token.spiffe_id == ID
        validated = await client.validate("somebody", token.svid)
        assert (validated.spiffe_id, validated.claims["sub"]) == (ID, ID)

        sds = client.sds()
        await sds.ask(ID)
        (resource,) = (await sds.read()).resources
        secret = secret_pb2.Secret.FromString(resource.value)
        assert secret.name == ID
        (leaf, *_) = parse_certificates(secret.tls_certificate.certificate_chain.inline_bytes)
        assert identity_of(nodes, leaf) == ID
        sds.call.cancel()
    assert nodes.status().x509_svids == 1
