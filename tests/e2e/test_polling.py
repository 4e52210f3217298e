"""Our agent below a server that is polled: SPIRE's calls alone carry entries, bundles and SVIDs to a workload."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from cryptography import x509

from ca.proto.burgee import workload_pb2 as wl
from ca.proto.spire import server_entry_pb2, server_entry_pb2_grpc, types_pb2
from tests.support.pair import TRUST_DOMAIN, Pair, pair, until
from tests.support.workload_client import WorkloadClient

pytestmark = pytest.mark.xdist_group("polling")
PERIOD_SECONDS = 5.5
"""The longest time between two polls."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Pair]:
    with pair(server={"push_service": False}) as running:
        yield running


@pytest.fixture
async def client(nodes: Pair) -> AsyncIterator[WorkloadClient]:
    async with WorkloadClient(str(nodes.workload_socket)) as opened:
        yield opened


async def received(stream: grpc.aio.UnaryStreamCall, seconds: float = 20) -> list[wl.X509SVID]:
    async with asyncio.timeout(seconds):
        answer = await stream.read()
    assert isinstance(answer, wl.X509SVIDResponse)
    return list(answer.svids)


async def ended(stream: grpc.aio.UnaryStreamCall, seconds: float = 20) -> grpc.StatusCode:
    """What the stream ends with, whatever comes before."""
    async with asyncio.timeout(seconds):
        try:
            while True:
                await received(stream, seconds)
        except grpc.aio.AioRpcError as error:
            return error.code()


async def first_svids(
    client: WorkloadClient, seconds: float = 20
) -> tuple[grpc.aio.UnaryStreamCall, list[wl.X509SVID]]:
    """Streams end with PermissionDenied while there is no identity: come again, as the standard says."""
    async with asyncio.timeout(seconds):
        while True:
            stream = client.x509_svids()
            try:
                return stream, await received(stream)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.PERMISSION_DENIED:
                    raise
            await asyncio.sleep(0.05)


def serial(svid: wl.X509SVID) -> int:
    return x509.load_der_x509_certificate(svid.x509_svid).serial_number


def test_the_status_says_how_the_server_is_followed(nodes: Pair) -> None:
    assert until("polled", lambda: nodes.status().sync_mode) == "poll"
    shown = subprocess.run(
        [
            sys.executable,
            "-m",
            "ca.cli.caadmin",
            "health",
            "--agent",
            "--agent-socket",
            str(nodes.agent_admin_socket),
            "-o",
            "json",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(shown.stdout)["sync_mode"] == "poll"


async def test_entry_rotation_update_and_deletion(nodes: Pair, client: WorkloadClient) -> None:
    """One life of an entry, seen from one stream. Its SVIDs live 6 s, so that they rotate every 3 s."""
    started = time.monotonic()
    entry_id = nodes.create_entry("/polled", x509_svid_ttl=6)
    stream, (svid,) = await first_svids(client)
    assert time.monotonic() - started < PERIOD_SECONDS + 2
    assert svid.spiffe_id == f"spiffe://{TRUST_DOMAIN}/polled"

    (rotated,) = await received(stream)
    assert serial(rotated) != serial(svid)

    update(nodes, types_pb2.Entry(id=entry_id, hint="internal"), types_pb2.EntryMask(hint=True))
    seen = {serial(svid), serial(rotated)}
    while not rotated.hint:
        (rotated,) = await received(stream)
        seen.add(serial(rotated))
    assert rotated.hint == "internal"
    assert len(seen) >= 2

    tokens = await client.jwt_svids("audience")
    assert tokens.svids[0].spiffe_id == svid.spiffe_id

    nodes.delete_entry(entry_id)
    started = time.monotonic()
    assert await ended(stream) is grpc.StatusCode.PERMISSION_DENIED
    assert time.monotonic() - started < PERIOD_SECONDS + 2


async def test_what_only_the_server_sees_of_an_entry_reaches_its_svid(nodes: Pair, client: WorkloadClient) -> None:
    """DNS names are hidden by the mask of SPIRE's agents; the new revision tells that something changed."""
    entry_id = nodes.create_entry("/named")
    stream, (before,) = await first_svids(client)
    names = types_pb2.EntryMask(dns_names=True)
    update(nodes, types_pb2.Entry(id=entry_id, dns_names=["api.pair.test"]), names)
    after = before
    while serial(after) == serial(before):
        (after,) = await received(stream)
    san = x509.load_der_x509_certificate(after.x509_svid).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert san.value.get_values_for_type(x509.DNSName) == ["api.pair.test"]
    nodes.delete_entry(entry_id)
    until("it is gone", lambda: nodes.status().entries == 0)


def update(nodes: Pair, entry: types_pb2.Entry, mask: types_pb2.EntryMask) -> None:
    with grpc.insecure_channel(f"unix:{nodes.admin_socket}") as channel:
        request = server_entry_pb2.BatchUpdateEntryRequest(entries=[entry], input_mask=mask)
        (result,) = server_entry_pb2_grpc.EntryStub(channel).BatchUpdateEntry(request, timeout=5).results
    assert result.status.code == 0, result.status.message


def test_more_entries_than_a_server_sends_at_once(nodes: Pair) -> None:
    """Above 500 the server tells revisions first; then only what changed is fetched."""
    parent = types_pb2.SPIFFEID(trust_domain=TRUST_DOMAIN, path=nodes.agent_path())
    entries = [
        types_pb2.Entry(
            id=f"many-{number}",
            spiffe_id=types_pb2.SPIFFEID(trust_domain=TRUST_DOMAIN, path=f"/many/{number}"),
            parent_id=parent,
            selectors=[types_pb2.Selector(type="unix", value=f"uid:{100_000 + number}")],
            additional_attributes=types_pb2.Entry.AdditionalAttributes(disable_x509_svid_prefetch=True),
        )
        for number in range(1001)
    ]
    with grpc.insecure_channel(f"unix:{nodes.admin_socket}") as channel:
        stub = server_entry_pb2_grpc.EntryStub(channel)
        stub.BatchCreateEntry(server_entry_pb2.BatchCreateEntryRequest(entries=entries), timeout=30)
        until("all are here", lambda: nodes.status().entries == 1001)
        ids = [entry.id for entry in entries[:700]]
        stub.BatchDeleteEntry(server_entry_pb2.BatchDeleteEntryRequest(ids=ids), timeout=30)
    until("the others are left", lambda: nodes.status().entries == 301)


def caadmin(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ca.cli.caadmin", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


async def test_who_asks_for_policies_is_given_none_and_everybody_says_so(nodes: Pair, client: WorkloadClient) -> None:
    before, entry_id = nodes.status().entries, nodes.create_entry("/unpushed")
    stream, _ = await first_svids(client)
    stream.cancel()
    call = client.policies()
    await call.ask("burgee.http.policy")
    agent = ("--agent-socket", str(nodes.agent_admin_socket))
    until("the agent says so", lambda: nodes.status().reason == "POLICIES_NOT_PUSHED")
    doctor = await asyncio.to_thread(caadmin, "doctor", "agent", *agent)
    assert "policies: " in " ".join(doctor.stdout.split())
    assert "(POLICIES_NOT_PUSHED)" in doctor.stdout
    shown = await asyncio.to_thread(caadmin, "agent", "sds", *agent)
    assert "such a server pushes no policies" in " ".join(shown.stdout.split())
    assert "POLICIES_NOT_PUSHED" in nodes.logs()
    server = ("--socket", str(nodes.admin_socket))
    rollout = await asyncio.to_thread(caadmin, "policy", "rollout", *server)
    assert (rollout.returncode, "this server pushes no policies" in rollout.stdout) == (0, True), rollout.stderr
    waited = await asyncio.to_thread(caadmin, "policy", "rollout", "--wait", *server)
    assert (waited.returncode, "(POLICIES_NOT_PUSHED)" in waited.stderr) == (1, True)
    with pytest.raises(TimeoutError):  # the proxy goes on by its default, which refuses everything
        await asyncio.wait_for(call.read(), 0.2)
    call.call.cancel()
    until("nobody asks any more", lambda: nodes.status().state == "OK")
    nodes.delete_entry(entry_id)
    until("it is gone", lambda: nodes.status().entries == before)


def test_a_server_that_learned_to_push_is_noticed(nodes: Pair) -> None:
    """It is replaced between two polls, with the same data; the agent goes over to the push by itself."""
    entries = nodes.status().entries
    assert nodes.stop("server") == 0
    nodes.server_options["push_service"] = True
    nodes.start_server()
    until("the agent is pushed to", lambda: nodes.status().sync_mode == "push", seconds=30)
    status = until("it is in step", lambda: (s := nodes.status()).state == "OK" and s.entries == entries and s)
    assert status.store_epoch
