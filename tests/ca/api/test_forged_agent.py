"""Whoever holds a downstream authority may name its SVIDs as it likes, and still is nobody's agent."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from ca.proto.burgee import node_pb2
from ca.proto.spire import server_agent_pb2, server_entry_pb2, server_svid_pb2
from tests.ca.api.refusals import Code, refused
from tests.contracts.upstreams import DISK_FILES, disk_files
from tests.support.server import Caller, Identity, RunningServer, entry, make_csr, running_server


async def forged(server: RunningServer, victim: Identity, serial: int) -> Identity:
    """The victim's certificate in every field, under a downstream authority and with another key."""
    await server.create(entry("/down", "/spire/agent/join_token/x", downstream=True))
    caller = await server.caller(await server.mint("/down"))
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    request = server_svid_pb2.NewDownstreamX509CARequest(csr=make_csr(authority_key))
    certificate, *above = (await caller.svids.NewDownstreamX509CA(request)).ca_cert_chain
    leaf = victim.leaf
    builder = (
        x509.CertificateBuilder()
        .subject_name(leaf.subject)
        .issuer_name(x509.load_der_x509_certificate(certificate).subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(leaf.not_valid_before_utc)
        .not_valid_after(leaf.not_valid_after_utc)
    )
    for extension in leaf.extensions:
        value = extension.value
        if isinstance(value, x509.AuthorityKeyIdentifier):  # OpenSSL finds the issuer by it
            value = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
        builder = builder.add_extension(value, critical=extension.critical)
    der = builder.sign(authority_key, hashes.SHA256()).public_bytes(Encoding.DER)
    return Identity(path=victim.path, chain=(der, certificate, *above), key=key)


async def everything_is_refused(caller: Caller) -> None:
    with refused(Code.PERMISSION_DENIED, reason="AGENT_NOT_ACTIVE"):
        await caller.entries.GetAuthorizedEntries(server_entry_pb2.GetAuthorizedEntriesRequest())
    stream = caller.node.Sync()
    await stream.write(node_pb2.SyncRequest(subscribe=node_pb2.Subscribe()))
    with refused(Code.PERMISSION_DENIED, reason="AGENT_NOT_ACTIVE"):
        await stream.read()
        await stream.wait_for_connection()


async def test_an_agents_serial_number_under_a_downstream_authority(server: RunningServer) -> None:
    victim, caller = await server.agent()
    await server.create(entry("/w", victim.path))
    await everything_is_refused(await server.caller(await forged(server, victim, victim.leaf.serial_number)))
    await caller.entries.GetAuthorizedEntries(server_entry_pb2.GetAuthorizedEntriesRequest())


async def test_the_serial_number_of_a_renewal_that_was_not_used_yet(server: RunningServer) -> None:
    victim, caller = await server.agent()
    params = server_agent_pb2.AgentX509SVIDParams(csr=make_csr())
    renewed = await caller.agents.RenewAgent(server_agent_pb2.RenewAgentRequest(params=params))
    pending = x509.load_der_x509_certificate(renewed.svid.cert_chain[0]).serial_number
    await everything_is_refused(await server.caller(await forged(server, victim, pending)))
    await caller.entries.GetAuthorizedEntries(server_entry_pb2.GetAuthorizedEntriesRequest())


async def test_below_an_upstream_our_agents_act_and_forged_ones_do_not(tmp_path: Path) -> None:
    """The bundle then holds the root alone: neither signed it, but one of them is below our own authority."""
    disk_files(tmp_path)
    config = {name: str(tmp_path / file) for name, file in DISK_FILES.items()}
    async with running_server(upstream={"plugin": "disk", "config": config}) as server:
        victim, caller = await server.agent()
        assert len(victim.chain) == 3
        await caller.entries.GetAuthorizedEntries(server_entry_pb2.GetAuthorizedEntriesRequest())
        await everything_is_refused(await server.caller(await forged(server, victim, victim.leaf.serial_number)))
