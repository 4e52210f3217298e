"""A whole server whose keys are in a SoftHSM token: issuing, and what is said while the token is pulled out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from ca.proto.spire import server_svid_pb2
from ca.runtime.rpc import error_of
from tests.support.server import Caller, RunningServer, entry, eventually, make_csr, running_server
from tests.support.softhsm import SoftHsmToken, softhsm_token

pytestmark = pytest.mark.real("SoftHSM")

RECOVERY_SECONDS = 10.0
GONE = {"PKCS11_TOKEN_GONE", "PKCS11_KEY_MISSING"}
"""A token without its keys is another one."""


@pytest.fixture
def token() -> SoftHsmToken:
    return softhsm_token()


@pytest.fixture
async def server(token: SoftHsmToken, tmp_path: Path) -> AsyncIterator[RunningServer]:
    async with running_server(keys={"plugin": "pkcs11", "config": token.config(tmp_path / "pin")}) as running:
        yield running


async def issued(agent: Caller, entry_id: str) -> x509.Certificate:
    params = server_svid_pb2.NewX509SVIDParams(entry_id=entry_id, csr=make_csr())
    request = server_svid_pb2.BatchNewX509SVIDRequest(params=[params])
    (result,) = (await agent.svids.BatchNewX509SVID(request, timeout=30)).results
    assert result.status.code == 0
    return x509.load_der_x509_certificate(result.svid.cert_chain[0])


async def test_a_token_pulled_out_is_told_and_over_when_it_is_back(token: SoftHsmToken, server: RunningServer) -> None:
    identity, agent = await server.agent()
    (made,) = await server.create(entry("/w", identity.path))
    (root,) = [x509.load_der_x509_certificate(der) for der in server.roots]
    (await issued(agent, made.id)).verify_directly_issued_by(root)
    assert not (server.config.data_dir / "keys").exists()
    token.pull_out()
    try:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await issued(agent, made.id)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert error_of(refused.value).reason in GONE
        said = server.server.health.problems()
        assert said.keys() == {"keys"}
        assert said["keys"].reason in GONE
        assert said["keys"].hint
        assert not server.server.health.ready
    finally:
        token.put_back()

    async def well() -> bool:
        return server.server.health.ready

    await eventually(well, seconds=RECOVERY_SECONDS)
    (await issued(agent, made.id)).verify_directly_issued_by(root)
    await server.restart()
    assert [x509.load_der_x509_certificate(der) for der in server.roots] == [root]
