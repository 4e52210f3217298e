"""The agent's memory: what it keeps, where, and what it makes of what it cannot read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority
from ca.identity.spiffe_id import SpiffeId
from ca.ports import KeyType
from sds import state
from sds.dropped import Dropped
from sds.feed import ResumeToken, Snapshot
from sds.keys import generate
from sds.state import AgentStore, AgentSvid, StoredSvid, cache_directory, is_tmpfs, open_store
from sds.wire import bundle_to_wire
from tests.ca.identity.forge import OTHER, TD
from tests.sds.fake_server import FakeServer, entry
from tests.sds.node_lab import config_for

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
AGENT = SpiffeId(TD, "/spire/agent/join_token/t1")
BUNDLE = TrustBundle(
    trust_domain=TD,
    x509_authorities=(X509Authority(certificate=b"one"), X509Authority(certificate=b"two", tainted=True)),
    jwt_authorities=(JwtAuthority(key_id="k", public_key=b"spki", expires_at=NOW, tainted=True),),
    refresh_hint_seconds=60,
    sequence_number=9,
)
FEED = Snapshot(
    token=ResumeToken("epoch", 77),
    entries=(
        entry(
            "e1",
            dns_names=("a", "b"),
            hint="h",
            x509_svid_ttl_seconds=60,
            jwt_svid_ttl_seconds=30,
            federates_with=(OTHER,),
            admin=True,
            downstream=True,
            expires_at=NOW,
            created_at=NOW,
            revision_number=4,
            store_svid=True,
            disable_x509_svid_prefetch=True,
            jwt_svid_include_jti=True,
        ),
    ),
    bundles=(BUNDLE, TrustBundle(trust_domain=OTHER)),
)
SVIDS = (
    StoredSvid(
        entry_id="e1",
        entry_revision=4,
        chain=(b"leaf", b"intermediate"),
        key_der=b"key",
        issued_at=NOW,
        not_after=NOW + timedelta(hours=1),
    ),
)


def agent_svid(kind: KeyType = KeyType.EC_P256) -> AgentSvid:
    return AgentSvid(
        id=AGENT,
        chain=(b"leaf",),
        key_der=generate(kind).pkcs8,
        issued_at=NOW,
        not_after=NOW + timedelta(hours=1),
        reattestable=True,
    )


@pytest.fixture
def store(tmp_path: Path) -> AgentStore:
    return open_store(config_for(tmp_path, FakeServer(), servers=["s:1"]))


@pytest.mark.parametrize("kind", [KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_2048])
def test_everything_comes_back_as_it_was(tmp_path: Path, kind: KeyType) -> None:
    config = config_for(tmp_path, FakeServer(), servers=["s:1"])
    before, svid = open_store(config), agent_svid(kind)
    before.save_agent(svid)
    before.save_bundle(BUNDLE)
    before.save_feed(AGENT, FEED)
    before.save_svids(AGENT, SVIDS)
    after = open_store(config)
    assert after.load_agent() == svid
    assert after.load_bundle() == BUNDLE
    assert after.load_feed(AGENT) == FEED
    assert after.load_svids(AGENT) == SVIDS


def test_nothing_there_is_nothing(store: AgentStore) -> None:
    assert store.load_agent() is None
    assert store.load_bundle() is None
    assert store.load_feed(AGENT) is None
    assert store.load_svids(AGENT) == ()


def test_the_key_of_an_attestation_waits_for_its_outcome_and_ends_with_it(tmp_path: Path) -> None:
    config = config_for(tmp_path, FakeServer(), servers=["s:1"])
    key = generate(KeyType.EC_P256).pkcs8
    open_store(config).save_attesting(KeyType.EC_P256, key)
    assert key not in (tmp_path / "agent/state/attesting.sealed").read_bytes()
    later = open_store(config)
    assert later.load_attesting(KeyType.EC_P256) == key
    assert later.load_attesting(KeyType.RSA_2048) is None, "the configuration asks for another kind by now"
    later.save_agent(agent_svid())
    assert later.load_attesting(KeyType.EC_P256) is None
    later.save_attesting(KeyType.EC_P256, key)
    later.erase()
    assert not list(tmp_path.rglob("*.sealed"))


DROPPED = (
    Dropped(fingerprint=b"\x01" * 32, not_after=NOW),
    Dropped(fingerprint=b"\x02" * 32, not_after=NOW + timedelta(days=1)),
)


def test_the_bundle_and_what_was_dropped_from_it_come_back_together(tmp_path: Path) -> None:
    config = config_for(tmp_path, FakeServer(), servers=["s:1"])
    open_store(config).save_bundle(BUNDLE, DROPPED)
    assert open_store(config).load_trust() == (BUNDLE, DROPPED)


def test_a_bundle_that_an_earlier_version_sealed_is_read(store: AgentStore) -> None:
    store._durable.save("bundle", bundle_to_wire(BUNDLE).SerializeToString())
    assert store.load_trust() == (BUNDLE, ())
    assert store.load_bundle() == BUNDLE


@pytest.mark.parametrize(
    "sealed", [b"{", b"{}", b'{"bundle": "", "dropped": {"zz": 1}}', b'{"bundle": 1, "dropped": {}}']
)
def test_a_bundle_in_an_unknown_shape_counts_as_absent(store: AgentStore, sealed: bytes) -> None:
    store._durable.save("bundle", sealed)
    assert store.load_trust() is None


def test_after_a_ban_nothing_is_kept_before_it_is_opened_anew(tmp_path: Path, store: AgentStore) -> None:
    store.save_agent(agent_svid())
    before = (tmp_path / "agent/state/seal.key").read_bytes()
    stolen = (tmp_path / "agent/state/agent.sealed").read_bytes()
    assert not store.reopen(), "there is nothing to do"
    store.erase()
    store.save_agent(agent_svid())
    store.save_feed(AGENT, FEED)
    assert not list(tmp_path.rglob("*.sealed"))
    assert store.reopen()
    assert not store.reopen()
    assert store.load_agent() is None
    svid = agent_svid()
    store.save_agent(svid)
    store.save_feed(AGENT, FEED)
    assert store.load_agent() == svid
    assert store.load_feed(AGENT) == FEED
    assert (tmp_path / "agent/state/seal.key").read_bytes() != before
    (tmp_path / "agent/state/agent.sealed").write_bytes(stolen)
    assert store.load_agent() is None, "what was copied before stays sealed"


def test_another_agents_cache_is_not_ours(store: AgentStore) -> None:
    store.save_feed(AGENT, FEED)
    assert store.load_feed(SpiffeId(TD, "/spire/agent/join_token/t2")) is None


def test_keys_do_not_show_in_logs() -> None:
    svid = agent_svid()
    assert repr(svid.key_der) not in repr(svid)
    assert repr(SVIDS[0].key_der) not in repr(SVIDS[0])


def test_the_own_identity_is_durable_and_the_rest_is_cache(tmp_path: Path, store: AgentStore) -> None:
    store.save_agent(agent_svid())
    store.save_bundle(BUNDLE)
    store.save_feed(AGENT, FEED)
    store.save_svids(AGENT, SVIDS)
    assert {p.name for p in (tmp_path / "agent/state").glob("*.sealed")} == {"agent.sealed", "bundle.sealed"}
    assert {p.name for p in (tmp_path / "cache").glob("*.sealed")} == {"feed.sealed", "svids.sealed"}


def test_persist_none_keeps_no_cache_on_disk(tmp_path: Path) -> None:
    cache = {"directory": str(tmp_path / "cache"), "persist": "none"}
    store = open_store(config_for(tmp_path, FakeServer(), servers=["s:1"], cache=cache))
    store.save_feed(AGENT, FEED)
    store.save_svids(AGENT, SVIDS)
    assert not (tmp_path / "cache").exists()
    assert store.load_feed(AGENT) is None
    assert store.load_svids(AGENT) == ()
    store.save_agent(agent_svid())
    assert store.load_agent() is not None
    store.erase()
    assert store.load_agent() is None


def test_erase_takes_everything(tmp_path: Path, store: AgentStore) -> None:
    store.save_agent(agent_svid())
    store.save_svids(AGENT, SVIDS)
    store.erase()
    store.save_svids(AGENT, SVIDS)
    assert not list(tmp_path.rglob("*.sealed"))
    again = open_store(config_for(tmp_path, FakeServer(), servers=["s:1"]))
    assert again.load_agent() is None


def test_a_shape_of_another_version_is_absent(tmp_path: Path, store: AgentStore) -> None:
    for name in ("agent", "bundle"):
        store._durable.save(name, b"\xff{not it", agent=AGENT)
    assert store._cache is not None
    for name in ("feed", "svids"):
        store._cache.save(name, b"\xff{not it", agent=AGENT)
    assert (store.load_agent(), store.load_bundle(), store.load_feed(AGENT), store.load_svids(AGENT)) == (
        None,
        None,
        None,
        (),
    )
    store._durable.save("agent", b"[]", agent=AGENT)
    store._cache.save("svids", b'{"a": 1}', agent=AGENT)
    assert store.load_agent() is None
    assert store.load_svids(AGENT) == ()


def test_a_full_or_foreign_cache_directory_does_not_stop_the_agent(tmp_path: Path, store: AgentStore) -> None:
    cache = tmp_path / "cache"
    if cache.exists():
        cache.rmdir()
    cache.write_text("not a directory")
    store.save_feed(AGENT, FEED)
    assert store.load_feed(AGENT) is None


def test_where_the_cache_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_for(tmp_path, FakeServer(), servers=["s:1"], cache={})
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    memory: set[Path] = set()
    monkeypatch.setattr(state, "is_tmpfs", lambda path: path in memory)
    assert cache_directory(config) == config.data_dir / "cache"
    memory.add(tmp_path)
    assert cache_directory(config).parent == tmp_path / "burgee/cache"
    other = config_for(tmp_path, FakeServer(), servers=["s:1"], cache={}, data_dir=str(tmp_path / "other"))
    assert cache_directory(config) != cache_directory(other)


def test_tmpfs_is_told_by_the_mount_table() -> None:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    kinds = {fields[1]: fields[2] for fields in mounts}
    for path in ("/", "/proc", "/dev/shm"):
        if path in kinds:
            assert is_tmpfs(Path(path)) == (kinds[path] == "tmpfs")
    assert not is_tmpfs(Path("/no/such/place"))
