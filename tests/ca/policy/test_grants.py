"""Who may do what: every role, every act, in the own namespace, in another one and in the mesh's."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ca.errors import BurgeeError, Denied, FailedPrecondition, InvalidArgument, NotFound
from ca.identity.svid import X509Svid
from ca.runtime.peers import Peer
from ca.service.policy.grants import Rights, check_grant, rights_of
from ca.service.policy.refusals import PolicyInvalid
from ca.store.audit import AuditFilter
from policy.book_values import Change, Grant, Key, Role
from policy.model import Request
from tests.ca.policy.lab import ADMIN, ROOT, Lab, allow, author, body, gone, key, lab, put, spiffe_id, url_in, workload

OWN, FOREIGN = "shop", "bank"


class Caller:
    def __init__(self, path: str = "", *, local: bool = False) -> None:
        svid = _svid(path) if path else None
        self.peer = Peer(transport="unix" if local else "tls", listener="x", svid=svid)


def _svid(path: str) -> X509Svid:
    made = object.__new__(X509Svid)
    object.__setattr__(made, "id", spiffe_id(path))
    return made


def grant(name: str, role: Role, *namespaces: str, of: str = "") -> Grant:
    return Grant(name=name, spiffe_id=f"spiffe://example.org/{of or name}", role=role, namespaces=namespaces)


GRANTS = (
    grant("reader", Role.READER, OWN),
    grant("all-reader", Role.READER, "*"),
    grant("author", Role.AUTHOR, OWN),
    grant("admin", Role.ADMIN),
)
ROLES = ("nobody", "anonymous", "reader", "all-reader", "author", "admin", "configured", "local")
ADMINS = ("admin", "configured", "local")


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Lab]:
    async with lab(url_in(tmp_path), policy={"admins": ["spiffe://example.org/configured"]}) as one:
        for each in GRANTS:
            await one.book.write_grant(each, actor="uid:0", rights=ADMIN)
        await one.write(*(put(allow("there", namespace=ns)) for ns in (OWN, FOREIGN, ROOT)))
        yield one


def rights(made: Lab, role: str) -> Rights:
    caller = Caller(local=True) if role == "local" else Caller("" if role == "anonymous" else f"/{role}")
    return made.book.rights_of(caller)


Act = Callable[[Lab, Rights, str], Awaitable[Any]]


def _write(make: Callable[[str], Change], **more: Any) -> Act:
    return lambda made, who, namespace: made.write(make(namespace), rights=who, actor="x", **more)


ACTS: dict[str, Act] = {
    "create": _write(lambda ns: put(allow("new", namespace=ns))),
    "change": _write(lambda ns: put(allow("there", "b", namespace=ns))),
    "dry run": _write(lambda ns: put(allow("new", namespace=ns)), dry_run=True),
    "take over": _write(lambda ns: put(allow("there", namespace=ns), owner="me", force=True)),
    "request authentication": _write(lambda ns: put(body("new", ns, kind="RequestAuthentication"))),
    "peer authentication": _write(lambda ns: put(body("new", ns, kind="PeerAuthentication"))),
    "delete": _write(lambda ns: gone("there", ns, force=True)),
}
ADMIN_ACTS: dict[str, Act] = {
    "workload": _write(lambda ns: put(workload("new", "spiffe://example.org/web", ns))),
    "grant": lambda made, who, ns: made.book.write_grant(grant("new", Role.READER, ns), actor="x", rights=who),
    "grant to oneself": lambda made, who, ns: made.book.write_grant(grant("a", Role.ADMIN), actor="x", rights=who),
    "read grants": lambda made, who, ns: made.book.grants(rights=who),
    "read a grant": lambda made, who, ns: made.book.get_grant("reader", rights=who),
    "read invariants": lambda made, who, ns: made.book.get_invariants(rights=who),
    "delete a grant": lambda made, who, ns: made.book.delete_grant("reader", actor="x", rights=who),
    "write invariants": lambda made, who, ns: made.book.set_invariants("", actor="x", rights=who),
}


@pytest.mark.parametrize("role", ROLES)
async def test_who_may_write_where(made: Lab, role: str) -> None:
    who = rights(made, role)
    for (name, act), namespace in itertools.product(ACTS.items(), (OWN, FOREIGN, ROOT)):
        if role in ADMINS or (role == "author" and namespace == OWN):
            await act(made, who, namespace)
            continue
        before = made.book.state
        with pytest.raises(Denied) as caught:
            await act(made, who, namespace)
        missing = "a grant as `admin`" if namespace == ROOT else f"a grant as `author` for namespace `{namespace}`"
        assert (caught.value.reason, missing in caught.value.detail) == ("POLICY_FORBIDDEN", True), name
        assert made.book.state is before


@pytest.mark.parametrize("role", ROLES)
async def test_what_an_admin_alone_may(made: Lab, role: str) -> None:
    who = rights(made, role)
    for name, act in ADMIN_ACTS.items():
        if role in ADMINS:
            await act(made, who, OWN)
            continue
        before, state = dict(made.book.held.grants), made.book.state
        with pytest.raises(Denied) as caught:
            await act(made, who, OWN)
        assert "a grant as `admin`" in caught.value.detail, name
        assert (made.book.held.grants, made.book.state) == (before, state)


def test_who_may_read_what() -> None:
    admins = frozenset({spiffe_id("/configured")})
    for role in ROLES:
        caller = Caller(local=True) if role == "local" else Caller("" if role == "anonymous" else f"/{role}")
        who = rights_of(caller, GRANTS, admins=admins, root_namespace=ROOT)
        may = {namespace for namespace in (OWN, FOREIGN, ROOT) if who.may_read(namespace)}
        some = {OWN} if role in ("reader", "author") else set()
        assert may == ({OWN, FOREIGN, ROOT} if role in (*ADMINS, "all-reader") else some), role
        assert who.any == bool(may)
        assert who.reads_all == (role in (*ADMINS, "all-reader"))


async def test_a_write_of_many_needs_all_of_them(made: Lab) -> None:
    with pytest.raises(Denied):
        await made.write(put(allow("a")), put(allow("b", namespace=FOREIGN)), rights=rights(made, "author"))
    assert made.book.state.revision == 1


async def test_an_object_is_where_its_name_says(made: Lab) -> None:
    """Nobody writes into a namespace by naming another one."""
    for change in (
        Change(key=key("new"), body=allow("new", namespace=FOREIGN)),
        Change(key=key("new"), body=allow("new", namespace=ROOT)),
        Change(key=key("new"), body=workload("new", "spiffe://example.org/web")),
        Change(key=Key(kind="authorizationpolicy", namespace=OWN, name="new"), body=allow("new")),
    ):
        with pytest.raises(BurgeeError) as caught:
            await made.write(change, rights=rights(made, "author"))
        assert caught.value.reason in ("POLICY_INVALID", "POLICY_FORBIDDEN")


async def test_a_rollback_needs_what_the_writes_would_need(made: Lab) -> None:
    await made.write(put(allow("there", "b")))
    await made.book.rollback(1, actor="x", rights=rights(made, "author"))
    await made.write(put(allow("there", "b", namespace=FOREIGN)))
    with pytest.raises(Denied):
        await made.book.rollback(3, actor="x", rights=rights(made, "author"))
    assert made.book.state.revision == 4


async def _each(made: Lab, changes: list[Change], who: Rights) -> None:
    for change in changes:
        await made.write(change, rights=who)


@pytest.mark.parametrize("limit", [{"max_objects": 8}, {"max_rules": 8}, {"max_bytes": 1800}])
async def test_an_author_does_not_fill_the_book(tmp_path: Path, limit: dict[str, int]) -> None:
    """Nobody else could write then, nor an admin a denial."""
    mine, other = author(OWN, "more"), author(FOREIGN)
    async with lab(url_in(tmp_path), policy={"limits": limit}) as one:
        filling = [put(allow(f"p{number}", namespace=(OWN, "more")[number % 2])) for number in range(8)]
        with pytest.raises(PolicyInvalid, match="of one author"):
            await _each(one, filling, mine)
        kept = len(one.book.state.objects)
        assert 2 <= kept <= 4
        await one.write(put(allow("p0", "b")), rights=mine)
        await one.write(gone("p0"), rights=mine)
        await one.write(put(allow("q", namespace=FOREIGN)), rights=other)
        await one.write(put(body("no", OWN, action="DENY", rules=[{}])))
        assert len(one.book.state.objects) == kept + 1


async def test_a_rollback_tells_nobody_the_names_of_what_it_may_not_read(made: Lab) -> None:
    await made.write(put(allow("a-secret", "b", namespace=FOREIGN)))
    for dry_run in (True, False):
        with pytest.raises(Denied) as caught:
            await made.book.rollback(1, actor="x", rights=rights(made, "author"), dry_run=dry_run)
        assert caught.value.reason == "POLICY_FORBIDDEN"
        assert FOREIGN not in caught.value.detail
        assert "secret" not in caught.value.detail


async def test_an_author_reaches_the_own_namespace_alone(made: Lab) -> None:
    """Whatever selector is tried: by ID, by label, by reference, or none."""
    targets = {ns: f"spiffe://example.org/{ns}/web" for ns in (OWN, FOREIGN)}
    described = [workload(f"w-{ns}", spiffe, ns, app="web") for ns, spiffe in targets.items()]
    for one in described:
        one["spec"]["references"] = [{"kind": "Service", "name": "web"}]
    await made.write(*map(put, described))
    reach = [
        {"burgee": {"spiffeIds": list(targets.values())}},
        {"burgee": {"spiffeIds": ["spiffe://example.org/*"]}},
        {"selector": {"matchLabels": {"app": "web"}}},
        {"targetRef": {"kind": "Service", "group": "", "name": "web"}},
        {},
    ]
    for scope in reach:
        rules = [{"to": [{"operation": {"methods": ["GET"]}}]}]
        await made.write(put(body("wide", **scope, action="ALLOW", rules=rules)), rights=rights(made, "author"))
        decide = made.book.state.snapshot.decide
        asked = Request(principal="example.org/x", method="GET")
        assert decide(targets[OWN], asked).allowed, scope
        assert not decide(targets[FOREIGN], asked).allowed, scope


async def test_refusals_are_on_record(made: Lab) -> None:
    with pytest.raises(Denied):
        await made.write(put(allow("a", namespace=FOREIGN)), rights=rights(made, "author"), actor="spiffe://x/y")
    last = (await made.store.audit.find(AuditFilter()))[-1]
    assert (last.actor, last.code, last.reason) == ("spiffe://x/y", "PermissionDenied", "POLICY_FORBIDDEN")
    assert last.items[0].name == f"AuthorizationPolicy {FOREIGN}/a"


async def test_a_grant_that_is_gone_gives_nothing(made: Lab) -> None:
    await made.book.delete_grant("author", actor="x", rights=ADMIN)
    assert not rights(made, "author").any
    with pytest.raises(NotFound):
        await made.book.get_grant("author", rights=ADMIN)


async def test_grants_are_changed_as_they_are(made: Lab) -> None:
    before = await made.book.get_grant("reader", rights=ADMIN)
    other = replace(before, role=Role.AUTHOR)
    changed = await made.book.write_grant(other, actor="x", rights=ADMIN, if_match=before.etag)
    assert changed.etag != before.etag
    with pytest.raises(FailedPrecondition):
        await made.book.write_grant(before, actor="x", rights=ADMIN, if_match=before.etag)
    with pytest.raises(FailedPrecondition):
        await made.book.delete_grant("reader", actor="x", rights=ADMIN, if_match=before.etag)
    await made.book.delete_grant("reader", actor="x", rights=ADMIN, if_match=changed.etag)


async def test_writes_of_grants_and_invariants_are_on_record_with_what_they_changed(made: Lab) -> None:
    """Nobody gives himself a right, and takes it back, without a trace of what it was."""
    asked = Grant(name="new", spiffe_id="spiffe://example.org/n", role=Role.READER, namespaces=(OWN,), etag="")
    first = await made.book.write_grant(asked, actor="spiffe://x/y", rights=ADMIN, must_be_new=True)
    wider = replace(asked, role=Role.ADMIN, namespaces=())
    await made.book.write_grant(wider, actor="x", rights=ADMIN, if_match=first.etag)
    await made.book.delete_grant("new", actor="x", rights=ADMIN)
    invariant = "apiVersion: burgee.io/v1\nkind: Invariant\nmetadata: {name: i}\nspec: {never: a/b -> c/d}\n"
    etag = await made.book.set_invariants(invariant, actor="x", rights=ADMIN)
    changed = invariant.replace("c/d", "c/e")
    await made.book.set_invariants(changed, actor="x", rights=ADMIN, if_match=etag)
    await made.book.set_invariants("", actor="x", rights=ADMIN)
    records = [one for one in await made.store.audit.find(AuditFilter()) if one.call != "policy write"][-6:]
    assert {(one.call, one.items[0].name) for one in records} == {
        ("policy grant", "new"),
        ("policy invariants", "invariants"),
    }
    assert records[0].actor == "spiffe://x/y"
    assert [one.items[0].about.partition("revision ")[2][3:].splitlines() for one in records] == [
        ["created", f"+reader of {OWN}: spiffe://example.org/n"],
        ["changed", f"-reader of {OWN}: spiffe://example.org/n", "+admin of everything: spiffe://example.org/n"],
        ["deleted", "-admin of everything: spiffe://example.org/n"],
        ["created", *(f"+{line}" for line in invariant.splitlines())],
        ["changed", "-spec: {never: a/b -> c/d}", "+spec: {never: a/b -> c/e}"],
        ["deleted", *(f"-{line}" for line in changed.splitlines())],
    ]


def test_grants_of_a_caller_add_up_and_a_prefix_is_a_prefix() -> None:
    grants = [
        grant("a", Role.AUTHOR, OWN, of="team/*"),
        grant("b", Role.READER, FOREIGN, of="team/ci"),
        grant("c", Role.AUTHOR, FOREIGN, of="teams/*"),
    ]
    who = rights_of(Caller("/team/ci"), grants, admins=frozenset(), root_namespace=ROOT)
    assert (who.reads, who.writes) == ({FOREIGN}, {OWN})
    assert not rights_of(Caller("/team"), grants, admins=frozenset(), root_namespace=ROOT).any


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "A"},
        {"spiffe_id": "*"},
        {"spiffe_id": "spiffe://*"},
        {"spiffe_id": "spiffe://example.org*"},
        {"spiffe_id": "spiffe://example.org"},
        {"spiffe_id": "spiffe://example.org/*/x"},
        {"spiffe_id": "https://example.org/x"},
        {"namespaces": ()},
        {"namespaces": ("a", "a")},
        {"namespaces": ("A",)},
        {"namespaces": ("*",), "role": Role.AUTHOR},
        {"namespaces": (ROOT,), "role": Role.AUTHOR},
        {"namespaces": ("a",), "role": Role.ADMIN},
    ],
)
def test_what_is_no_grant(wrong: dict[str, Any]) -> None:
    good = grant("g", Role.READER, "a")
    check_grant(good, root_namespace=ROOT)
    check_grant(replace(good, spiffe_id="spiffe://example.org/*"), root_namespace=ROOT)
    with pytest.raises(InvalidArgument) as caught:
        check_grant(replace(good, **wrong), root_namespace=ROOT)
    assert caught.value.reason == "GRANT_INVALID"
