"""Sealed state: what opens, what does not, and that what does not never stops the agent."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ca.errors import BurgeeError, FailedPrecondition
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from sds import keyring, sealing
from sds.sealing import SealedStore, SealingKey, cache_key, durable_key
from tests.ca.identity.forge import OTHER, TD

AGENT = SpiffeId(TD, "/spire/agent/join_token/t1")
SECRET = b"the workload's private key"


def store(directory: Path, *, domain: TrustDomain = TD, secret: bytes = b"k" * 32, machine: str = "m1") -> SealedStore:
    key = SealingKey(secret=secret, source="file", destroy=lambda: None)
    return SealedStore(directory, trust_domain=domain, key=key, machine_id=machine)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    store(tmp_path / "s").save("feed", SECRET, agent=AGENT)
    assert store(tmp_path / "s").load("feed", agent=AGENT) == SECRET
    assert store(tmp_path / "s").load("feed") == SECRET
    assert store(tmp_path / "s").load("svids") is None


def test_nothing_lies_open_on_disk(tmp_path: Path) -> None:
    store(tmp_path / "s").save("feed", SECRET, agent=AGENT)
    (path,) = (tmp_path / "s").iterdir()
    assert SECRET not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_two_seals_of_the_same_differ(tmp_path: Path) -> None:
    first, second = store(tmp_path / "a"), store(tmp_path / "b")
    first.save("feed", SECRET)
    second.save("feed", SECRET)
    assert (tmp_path / "a/feed.sealed").read_bytes() != (tmp_path / "b/feed.sealed").read_bytes()


@pytest.mark.parametrize(
    "foreign",
    [
        {"domain": OTHER},
        {"machine": "m2"},
        {"secret": b"x" * 32},
    ],
)
def test_a_foreign_file_does_not_open(tmp_path: Path, foreign: dict[str, object]) -> None:
    store(tmp_path / "s").save("feed", SECRET, agent=AGENT)
    assert store(tmp_path / "s", **foreign).load("feed") is None  # type: ignore[arg-type]


def test_another_agents_file_or_another_name_does_not_open(tmp_path: Path) -> None:
    store(tmp_path / "s").save("feed", SECRET, agent=AGENT)
    assert store(tmp_path / "s").load("feed", agent=SpiffeId(TD, "/spire/agent/join_token/t2")) is None
    shutil.copy(tmp_path / "s/feed.sealed", tmp_path / "s/svids.sealed")
    assert store(tmp_path / "s").load("svids") is None


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_opens_or_crashes(tmp_path: Path, data: st.DataObject) -> None:
    sealed = store(tmp_path / "s")
    sealed.save("feed", SECRET, agent=AGENT)
    path = tmp_path / "s/feed.sealed"
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[position] ^= data.draw(st.integers(1, 255))
    else:
        del content[position:]
    path.write_bytes(content)
    assert sealed.load("feed") is None


@given(content=st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_junk_opens_or_crashes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s").mkdir(exist_ok=True)
    (tmp_path / "s/feed.sealed").write_bytes(content)
    assert store(tmp_path / "s").load("feed") is None
    (tmp_path / "s/feed.sealed").write_bytes(sealing.MAGIC + content)
    assert store(tmp_path / "s").load("feed") is None


def test_a_directory_in_the_files_place_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "s/feed.sealed").mkdir(parents=True)
    assert store(tmp_path / "s").load("feed") is None


def test_an_unwritable_place_says_so(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("a file")
    with pytest.raises(BurgeeError) as caught:
        store(tmp_path / "s").save("feed", SECRET)
    assert caught.value.reason == "STATE_NOT_WRITABLE"


def test_erased_is_gone_and_stays_gone(tmp_path: Path) -> None:
    destroyed = []
    key = SealingKey(secret=b"k" * 32, source="file", destroy=lambda: destroyed.append(True))
    sealed = SealedStore(tmp_path / "s", trust_domain=TD, key=key)
    sealed.save("feed", SECRET)
    sealed.erase()
    sealed.save("feed", SECRET)
    assert destroyed == [True]
    assert list((tmp_path / "s").iterdir()) == []


def test_the_file_key_is_private_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    first, second = durable_key(tmp_path / "s"), durable_key(tmp_path / "s")
    assert first.source == "file"
    assert first.secret == second.secret
    assert stat.S_IMODE((tmp_path / "s/seal.key").stat().st_mode) == 0o600
    (tmp_path / "s/seal.key").chmod(0o640)
    with pytest.raises(FailedPrecondition) as caught:
        durable_key(tmp_path / "s")
    assert caught.value.reason == "NOT_PRIVATE"


def test_a_damaged_file_key_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    durable_key(tmp_path / "s")
    (tmp_path / "s/seal.key").write_bytes(b"short")
    assert len(durable_key(tmp_path / "s").secret) == 32


def test_a_destroyed_file_key_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    first = durable_key(tmp_path / "s")
    first.destroy()
    assert durable_key(tmp_path / "s").secret != first.secret


def test_a_systemd_credential_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "burgee-seal").write_bytes(os.urandom(40))
    assert durable_key(tmp_path / "s").source == "credential"
    assert cache_key(tmp_path / "c", "burgee:test").source == "credential"
    (tmp_path / "burgee-seal").write_bytes(b"short")
    with pytest.raises(FailedPrecondition) as caught:
        durable_key(tmp_path / "s")
    assert caught.value.reason == "SEALING_CREDENTIAL_SHORT"


def test_the_cache_key_comes_from_the_keyring_or_else_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers often forbid the keyring: then the file must do, and both ways are the same to their users."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    description = f"burgee:test:{os.urandom(8).hex()}"
    key = cache_key(tmp_path / "c", description)
    assert key.secret == cache_key(tmp_path / "c", description).secret
    assert (key.source == "keyring") == (not (tmp_path / "c").exists())
    key.destroy()
    again = cache_key(tmp_path / "c", description)
    assert again.secret != key.secret
    again.destroy()
    monkeypatch.setattr(keyring, "_numbers", _no_keyring)
    assert cache_key(tmp_path / "d", description).source == "file"


def _no_keyring() -> tuple[int, int]:
    raise OSError("forbidden")


def test_the_machines_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "id").write_text("abc\n")
    (tmp_path / "empty").write_text("")
    monkeypatch.setattr(sealing, "MACHINE_ID_FILES", (tmp_path / "none", tmp_path / "empty", tmp_path / "id"))
    assert sealing.read_machine_id() == "abc"
    monkeypatch.setattr(sealing, "MACHINE_ID_FILES", (tmp_path / "none",))
    assert sealing.read_machine_id()
