"""What the store promises of the journal of authorities, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import create_engine, text

from ca.identity.bundle import TrustBundle, X509Authority
from ca.ports import KeyType
from ca.store.migrate import alembic_config, migrate
from ca.store.store import Store
from ca.store.values import AuthorityKeyRecord, AuthorityRecord, JournalRecords, UpstreamRecord
from tests.support.stores import BOTH, HOUR, NOW, TD, opened, url_of


@pytest.fixture(params=BOTH)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with url_of(request.param, tmp_path) as made:
        yield made


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    async with opened(url) as made:
        yield made


def authority(name: str, **fields: object) -> AuthorityRecord:
    base = AuthorityRecord(
        server="s1",
        kind="x509",
        authority_id=name,
        key_id=f"key-{name}",
        key_type=KeyType.EC_P256,
        status="active",
        not_before=NOW,
        not_after=NOW + HOUR,
        material=b"\x30\x00",
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def root(name: str, **fields: object) -> UpstreamRecord:
    base = UpstreamRecord(server="s1", kind="x509", authority_id=name, material=name.encode())
    return replace(base, **fields)  # type: ignore[arg-type]


FULL = JournalRecords(
    authorities=(
        authority(
            "a",
            status="revoked",
            tainted=True,
            chain=(b"\x30\x01\x00", b"\xff\x00"),
            upstream_authority_id="r1",
            prepared_at=NOW,
            activated_at=NOW + HOUR,
            tainted_at=NOW + 2 * HOUR,
            revoked_at=NOW + 3 * HOUR,
        ),
        authority("b", kind="jwt", key_type=KeyType.RSA_2048, server="s2"),
    ),
    upstream=(
        root("r2", expires_at=NOW + HOUR, tainted=True, gone_at=NOW, revoked_at=NOW + HOUR),
        root("r1"),
        root("r1", material=b"the same key again"),
        root("r0", server="s2", kind="jwt"),
    ),
    keys=(AuthorityKeyRecord(server="s1", key_id="k", kind="jwt", since=NOW),),
)


async def put(store: Store, records: JournalRecords) -> None:
    await store.authorities.alter(TD, lambda _, bundle: (records, bundle))


async def test_everything_comes_back_as_it_was_written_and_in_its_order(store: Store) -> None:
    assert await store.authorities.read() == JournalRecords()
    await put(store, FULL)
    assert await store.authorities.read() == FULL
    fewer = replace(FULL, authorities=FULL.authorities[1:], upstream=FULL.upstream[1:], keys=())
    await put(store, fewer)
    assert await store.authorities.read() == fewer
    assert list(await store.authorities.list("s2", "jwt")) == [FULL.authorities[1]]


async def test_journal_and_bundle_change_together_or_not_at_all(store: Store) -> None:
    bundle = TrustBundle(trust_domain=TD, x509_authorities=(X509Authority(certificate=b"root"),))
    await store.authorities.alter(TD, lambda _, empty: (FULL, replace(empty, x509_authorities=bundle.x509_authorities)))
    stored = await store.bundles.get(TD)
    assert stored == replace(bundle, sequence_number=1)

    def change_of_mind(records: JournalRecords, found: TrustBundle) -> tuple[JournalRecords, TrustBundle]:
        assert (records, found) == (FULL, stored)
        raise RuntimeError("change of mind")

    with pytest.raises(RuntimeError):
        await store.authorities.alter(TD, change_of_mind)
    assert (await store.authorities.read(), await store.bundles.get(TD)) == (FULL, stored)


async def test_a_change_of_the_journal_alone_is_none_of_the_bundle(store: Store) -> None:
    await put(store, FULL)
    assert await store.bundles.get(TD) is None
    assert await store.changes.revision() == 0


async def test_each_change_is_decided_on_what_the_one_before_left(store: Store) -> None:
    """Of many at once none is lost: what is looked at is what is changed."""

    def one_more(records: JournalRecords, bundle: TrustBundle) -> tuple[JournalRecords, TrustBundle]:
        note = AuthorityKeyRecord(server="s1", key_id=f"k{len(records.keys)}", kind="x509", since=NOW)
        return replace(records, keys=(*records.keys, note)), bundle

    await asyncio.gather(*(store.authorities.alter(TD, one_more) for _ in range(10)))
    assert [note.key_id for note in (await store.authorities.read()).keys] == [f"k{number}" for number in range(10)]


@pytest.mark.real("PostgreSQL")
async def test_two_servers_on_one_database_do_not_lose_each_others_changes(tmp_path: Path) -> None:
    with url_of("postgresql", tmp_path) as url:
        await _two_servers(url)


async def _two_servers(url: str) -> None:
    async with opened(url) as one, opened(url) as other:

        def add(server: str, records: JournalRecords) -> JournalRecords:
            note = AuthorityKeyRecord(server=server, key_id=f"k{len(records.keys)}", kind="x509", since=NOW)
            return replace(records, keys=(*records.keys, note))

        await asyncio.gather(
            *(one.authorities.alter(TD, lambda records, bundle: (add("s1", records), bundle)) for _ in range(5)),
            *(other.authorities.alter(TD, lambda records, bundle: (add("s2", records), bundle)) for _ in range(5)),
        )
        assert sorted(note.key_id for note in (await one.authorities.read()).keys) == [f"k{n}" for n in range(10)]


def test_authorities_of_before_the_journal_are_taken_over(url: str) -> None:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    row = text(
        "INSERT INTO authorities (server, authority_id, kind, key_id, key_type, status, not_before, not_after, tainted,"
        " material) VALUES ('s1', :id, 'x509', 'k', 'ec-p256', :status, 1000000, 2000000, :tainted, :material)"
    )
    with engine.begin() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0004")
        for status in ("prepared", "active", "old"):
            connection.execute(row, {"id": status, "status": status, "tainted": False, "material": b"\x30"})
        migrate(connection)
        found = connection.execute(text("SELECT status, prepared_at, activated_at, chain FROM authorities")).all()
        assert {tuple(row) for row in found} == {
            ("prepared", 1000000, None, "[]"),
            ("active", 1000000, 1000000, "[]"),
            ("old", 1000000, 1000000, "[]"),
        }
        connection.execute(text("UPDATE authorities SET status = 'revoked' WHERE status = 'old'"))
        command.downgrade(config, "0004")
        left = connection.execute(text("SELECT authority_id FROM authorities ORDER BY authority_id")).all()
        assert [tuple(row) for row in left] == [("active",), ("prepared",)]
    engine.dispose()
