"""SPIRE's LocalAuthority over the wire: what changes by hand, what is refused, and with which words."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ca.authority.state import Authority
from ca.identity.bundle import authority_id
from ca.proto.burgee import admin_pb2
from ca.proto.spire import server_localauthority_pb2 as la
from ca.service.rotation_guard_port import Blocker
from tests.ca.api.refusals import Code, refused
from tests.support.server import RunningServer, eventually, running_server

UNTIL = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    async with running_server() as running:
        yield running


class Somebody:
    """A guard with somebody in the way of everything."""

    def __init__(self, count: int) -> None:
        blocker = Blocker(kind="agent", who="a0", reason="AGENT_BEHIND", detail="has bundle 5 of 7", until=UNTIL)
        self.blockers = [replace(blocker, who=f"a{number}") for number in range(count)]

    async def before_activation(self, authority: Authority) -> Sequence[Blocker]:
        return self.blockers

    async def before_removal(self, authority: Authority) -> Sequence[Blocker]:
        return self.blockers


async def activate_new(server: RunningServer, kind: str) -> tuple[str, str]:
    """Of a kind, ids of the one that is old afterwards and of the one that is active."""
    stub = server.local.authorities
    before = (await getattr(stub, f"Get{kind}AuthorityState")(getattr(la, f"Get{kind}AuthorityStateRequest")())).active
    new = await getattr(stub, f"Prepare{kind}Authority")(getattr(la, f"Prepare{kind}AuthorityRequest")())
    request = getattr(la, f"Activate{kind}AuthorityRequest")(authority_id=new.prepared_authority.authority_id)
    await getattr(stub, f"Activate{kind}Authority")(request)
    return before.authority_id, new.prepared_authority.authority_id


async def test_from_the_first_root_to_the_second_nothing_is_left_of_the_first(server: RunningServer) -> None:
    old, new = await activate_new(server, "X509")
    assert server.server.authority.x509().issuer.authority_id == new
    stub, tainted = server.local.authorities, la.TaintX509AuthorityRequest(authority_id=old)
    assert (await stub.TaintX509Authority(tainted)).tainted_authority.authority_id == old
    shown = {authority_id(a.certificate): a.tainted for a in server.server.trust.own.x509_authorities}
    assert shown == {old: True, new: False}
    await stub.RevokeX509Authority(la.RevokeX509AuthorityRequest(authority_id=old))
    assert [authority_id(root) for root in server.roots] == [new]
    keys = await server.server.authority._keys._keys.list()
    assert sorted(keys) == sorted(a.key_id for a in server.server.authority.authorities if a.authority_id != old)


async def test_the_servers_own_svid_leaves_a_tainted_authority_at_once(server: RunningServer) -> None:
    old, new = await activate_new(server, "X509")
    chain = server.server.server_svid.chain_to_root
    assert authority_id(chain()[-1]) == old, "without a taint it stays until half of its life"
    await server.local.authorities.TaintX509Authority(la.TaintX509AuthorityRequest(authority_id=old))
    await eventually(lambda: authority_id(chain()[-1]) == new, seconds=2)
    serial = chain()[0]
    await server.server.clock.sleep(1.5)
    assert chain()[0] == serial, "once is enough"


async def test_tokens_are_signed_with_the_key_that_was_activated(server: RunningServer) -> None:
    old, new = await activate_new(server, "JWT")
    assert server.server.authority.jwt().key.kid == new
    assert {key.key_id for key in server.server.trust.own.jwt_authorities} == {old, new}


@pytest.mark.parametrize("kind", ["X509", "JWT"])
async def test_who_would_be_cut_off_is_named_and_so_is_the_way_around(server: RunningServer, kind: str) -> None:
    old, _ = await activate_new(server, kind)
    stub, manager = server.local.authorities, server.server.authority
    prepared = await getattr(stub, f"Prepare{kind}Authority")(getattr(la, f"Prepare{kind}AuthorityRequest")())
    await getattr(stub, f"Taint{kind}Authority")(getattr(la, f"Taint{kind}AuthorityRequest")(authority_id=old))
    manager.guard = Somebody(5)
    new = prepared.prepared_authority.authority_id
    for method, name, target in (("Activate", "activate", new), ("Revoke", "revoke", old)):
        request = getattr(la, f"{method}{kind}AuthorityRequest")(authority_id=target)
        with refused(
            Code.FAILED_PRECONDITION,
            "would cut off 5: agent `a0`: has bundle 5 of 7 (AGENT_BEHIND, until 2026-11-01T12:00:00Z); agent `a1`",
            reason="ROTATION_BLOCKED",
        ):
            await getattr(stub, f"{method}{kind}Authority")(request)
        with refused(Code.FAILED_PRECONDITION, f"caadmin ca {name} {kind.lower()} {target} --force"):
            await getattr(stub, f"{method}{kind}Authority")(request)
    assert {a.authority_id for a in manager.authorities} >= {old, new}


async def test_what_was_changed_and_what_was_refused_is_on_record(server: RunningServer) -> None:
    old, new = await activate_new(server, "X509")
    with refused(Code.INVALID_ARGUMENT, "unable to taint current local authority", reason="AUTHORITY_STATE"):
        await server.local.authorities.TaintX509Authority(la.TaintX509AuthorityRequest(authority_id=new))
    pages = server.local.admin.ListAudit(admin_pb2.ListAuditRequest())
    found = [(r.call.rpartition("/")[2], [item.name for item in r.items]) async for page in pages for r in page.records]
    assert ("PrepareX509Authority", [new]) in found
    assert ("ActivateX509Authority", [new]) in found
    assert ("TaintX509Authority", [new]) in found
    assert old


async def test_of_several_old_ones_the_one_that_signed_last_is_shown(server: RunningServer) -> None:
    _, second = await activate_new(server, "JWT")
    await server.local.authorities.PrepareJWTAuthority(la.PrepareJWTAuthorityRequest())  # never signs
    await server.local.authorities.PrepareJWTAuthority(la.PrepareJWTAuthorityRequest())
    await activate_new(server, "JWT")
    answer = await server.local.authorities.GetJWTAuthorityState(la.GetJWTAuthorityStateRequest())
    assert answer.old.authority_id == second
    assert not answer.HasField("prepared")


async def test_an_old_one_that_spire_would_have_forgotten_can_still_be_tainted(server: RunningServer) -> None:
    first, _ = await activate_new(server, "X509")
    await activate_new(server, "X509")
    await server.local.authorities.TaintX509Authority(la.TaintX509AuthorityRequest(authority_id=first))
    shown = {authority_id(a.certificate): a.tainted for a in server.server.trust.own.x509_authorities}
    assert shown[first]


async def test_a_restart_knows_what_was_done_by_hand(server: RunningServer) -> None:
    old, new = await activate_new(server, "X509")
    await server.local.authorities.TaintX509Authority(la.TaintX509AuthorityRequest(authority_id=old))
    await server.restart()
    answer = await server.local.authorities.GetX509AuthorityState(la.GetX509AuthorityStateRequest())
    assert (answer.active.authority_id, answer.old.authority_id) == (new, old)
    (row,) = (a for a in server.server.authority.authorities if a.authority_id == old)
    assert row.tainted
    assert row.tainted_at is not None
    assert row.tainted_at - (row.prepared_at or UNTIL) < timedelta(minutes=5)
