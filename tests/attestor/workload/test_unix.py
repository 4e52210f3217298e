"""What the unix attestor finds, and what it will not believe."""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from attestor.workload import executable, procfs
from attestor.workload.executable import SETTLED_SECONDS, Executables
from attestor.workload.names import Names
from attestor.workload.unix import MAX_GROUPS, Config, UnixAttestor, plugin
from ca.errors import Unauthenticated, Unavailable
from ca.runtime.notes import collecting
from tests.attestor.processes import SLEEP, child, copy_of_sleep, pinned, runs
from tests.contracts.attestors import WorkloadSample

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: run the tests as root")


def contract_sample() -> WorkloadSample:
    return WorkloadSample()


async def selectors(pid: int, config: Config | None = None) -> set[str]:
    with pinned(pid) as process:
        return {str(s) for s in await UnixAttestor(config or Config()).attest(process)}


async def test_our_own_process() -> None:
    found = await selectors(os.getpid(), Config(path=False))
    uid, gid = os.geteuid(), os.getegid()
    expected = {f"unix:uid:{uid}", f"unix:gid:{gid}"}
    expected |= {f"unix:user:{pwd.getpwuid(uid).pw_name}", f"unix:group:{grp.getgrgid(gid).gr_name}"}
    for group in os.getgroups():
        expected |= {f"unix:supplementary_gid:{group}", f"unix:supplementary_group:{grp.getgrgid(group).gr_name}"}
    assert found == expected


@needs_root
async def test_ids_of_another_user_without_an_account() -> None:
    with child([SLEEP, "60"], user=54321, group=54322, extra_groups=[0, 54323]) as process:
        found = await selectors(process.pid, Config(path=False))
    assert found == {
        "unix:uid:54321",
        "unix:gid:54322",
        "unix:supplementary_gid:0",
        "unix:supplementary_group:root",
        "unix:supplementary_gid:54323",
    }


@needs_root
@pytest.mark.parametrize("number", [MAX_GROUPS, MAX_GROUPS + 1, 65536])
async def test_of_very_many_groups_none_is_told(number: int) -> None:
    """A container's root may give its processes as many as the kernel allows; each would be a selector or two."""
    with child([SLEEP, "60"], user=54321, group=54321, extra_groups=range(100_000, 100_000 + number)) as process:
        found = await selectors(process.pid, Config(path=False))
    groups = {s for s in found if s.startswith("unix:supplementary")}
    assert len(groups) == (number if number <= MAX_GROUPS else 0)
    assert {"unix:uid:54321", "unix:gid:54321"} <= found


@needs_root
@pytest.mark.parametrize("mode", [0o4755, 0o2755], ids=["set-user-ID", "set-group-ID"])
async def test_a_caller_that_executed_a_setuid_program_has_not_its_users_identities(mode: int) -> None:
    """It connected as 54321 and left the socket to a child: the child must not be taken for root."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        program = copy_of_sleep(Path(directory) / "su")
        program.chmod(mode)
        options = {"user": 54321, "group": 54321, "extra_groups": []}
        with child([str(program), "60"], **options) as process, pinned(process.pid) as pin:
            ids = procfs.read_ids(pin.proc)
            if 0 not in (ids.uid, ids.gid):
                pytest.skip("set-user-ID programs have no effect here")
            pin.uid = pin.gid = 54321
            with pytest.raises(Unauthenticated) as caught:
                await UnixAttestor(Config(path=False)).attest(pin)
    assert caught.value.reason == "CALLER_CHANGED"


async def test_path_and_hash_of_the_executable(tmp_path: Path) -> None:
    program = copy_of_sleep(tmp_path / "web")
    with child([str(program), "60"]) as process:
        found = await selectors(process.pid)
    assert f"unix:path:{program}" in found
    assert f"unix:sha256:{hashlib.sha256(program.read_bytes()).hexdigest()}" in found


async def test_neither_is_looked_for_when_not_wanted(tmp_path: Path) -> None:
    found = await selectors(os.getpid(), Config(path=False))
    assert not any(s.startswith(("unix:path", "unix:sha256")) for s in found)


async def test_a_large_executable_has_a_path_and_no_hash(tmp_path: Path) -> None:
    program = copy_of_sleep(tmp_path / "web")
    with child([str(program), "60"]) as process:
        found = await selectors(process.pid, Config(hash_size_limit_bytes=program.stat().st_size - 1))
        exact = await selectors(process.pid, Config(hash_size_limit_bytes=program.stat().st_size))
    assert f"unix:path:{program}" in found
    assert not any(s.startswith("unix:sha256") for s in found)
    assert any(s.startswith("unix:sha256") for s in exact)


async def test_a_deleted_executable_has_neither(tmp_path: Path) -> None:
    program = copy_of_sleep(tmp_path / "web")
    with child([str(program), "60"]) as process:
        program.unlink()
        found = await selectors(process.pid)
        # Not even when a file of the name that the kernel now shows exists.
        copy_of_sleep(tmp_path / "web (deleted)")
        found |= await selectors(process.pid)
    assert not any(s.startswith(("unix:path", "unix:sha256")) for s in found)
    assert any(s.startswith("unix:uid") for s in found)


async def test_a_replaced_executable_has_neither(tmp_path: Path) -> None:
    program = copy_of_sleep(tmp_path / "web")
    with child([str(program), "60"]) as process:
        os.replace(copy_of_sleep(tmp_path / "new"), program)
        found = await selectors(process.pid)
    assert not any(s.startswith(("unix:path", "unix:sha256")) for s in found)


@needs_root
async def test_a_bind_mount_over_a_trusted_path_does_not_make_it_that_program(tmp_path: Path) -> None:
    trusted = copy_of_sleep(tmp_path / "trusted")
    evil = tmp_path / "evil"
    shutil.copy(shutil.which("tail") or "/usr/bin/tail", evil)
    script = f"mount --bind {evil} {trusted} && exec {trusted} -f /dev/null"
    with child(["unshare", "--mount", "sh", "-c", script]) as process:
        assert runs(process.pid, "trusted"), "the kernel shows the trusted path"
        found = await selectors(process.pid)
    assert not any(s.startswith(("unix:path", "unix:sha256")) for s in found)
    assert "unix:uid:0" in found


async def test_a_path_that_is_no_text_is_withheld(tmp_path: Path) -> None:
    program = os.fsencode(tmp_path) + b"/w\xffeb"
    shutil.copy(os.fsencode(SLEEP), program)
    with child([program, "60"]) as process:
        found = await selectors(process.pid)
    assert not any(s.startswith(("unix:path", "unix:sha256")) for s in found)


def test_a_hash_is_computed_once_for_one_file(tmp_path: Path) -> None:
    program = copy_of_sleep(tmp_path / "web")
    executables = Executables(size_limit_bytes=1 << 30, now=lambda: time.time() + SETTLED_SECONDS)
    for _ in range(2):
        with child([str(program), "60"]) as process, pinned(process.pid) as pin:
            assert executables.find(pin.proc) is not None
    assert executables.hashed_files == 1


@pytest.mark.parametrize("age", [0.0, SETTLED_SECONDS - 0.001, -3600.0], ids=["now", "just now", "in the future"])
def test_the_hash_of_a_file_that_just_changed_is_not_remembered(tmp_path: Path, age: float) -> None:
    """Until ctime has moved on, the next change may leave device, inode, size and ctime as they are."""
    program = copy_of_sleep(tmp_path / "web")
    now = program.stat().st_ctime + age
    executables = Executables(size_limit_bytes=1 << 30, now=lambda: now)
    with child([str(program), "60"]) as process, pinned(process.pid) as pin:
        found = [executables.find(pin.proc) for _ in range(2)]
        assert executables.hashed_files == 2
        now = program.stat().st_ctime + SETTLED_SECONDS
        found += [executables.find(pin.proc) for _ in range(2)]
        assert executables.hashed_files == 3
    assert {item.sha256 for item in found if item} == {hashlib.sha256(program.read_bytes()).hexdigest()}


def test_a_file_that_changes_while_it_is_read_has_no_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = copy_of_sleep(tmp_path / "web")
    executables = Executables(size_limit_bytes=1 << 30)
    digest = executable._digest

    def meanwhile(descriptor: int, limit: int) -> str:
        done = digest(descriptor, limit)
        os.utime(program)  # as a write does, it gives the file a new ctime
        return done

    with child([str(program), "60"]) as process, pinned(process.pid) as pin:
        monkeypatch.setattr(executable, "_digest", meanwhile)
        found = executables.find(pin.proc)
        assert found is not None
        assert found.sha256 == ""
        monkeypatch.undo()
        again = executables.find(pin.proc)
    assert again is not None
    assert again.sha256


def test_a_changed_file_is_hashed_again(tmp_path: Path) -> None:
    program = copy_of_sleep(tmp_path / "web")
    executables = Executables(size_limit_bytes=1 << 30)
    with child([str(program), "60"]) as process, pinned(process.pid) as pin:
        before = executables.find(pin.proc)
    with program.open("ab") as file:
        file.write(b"\0")
    with child([str(program), "60"]) as process, pinned(process.pid) as pin:
        after = executables.find(pin.proc)
    assert before is not None
    assert after is not None
    assert before.sha256 != after.sha256
    assert after.sha256 == hashlib.sha256(program.read_bytes()).hexdigest()


async def test_a_process_that_has_gone_is_not_attested() -> None:
    with child([SLEEP, "60"]) as process, pinned(process.pid) as pin:
        process.kill()
        process.wait()
        with pytest.raises(Unauthenticated) as caught:
            await UnixAttestor(Config()).attest(pin)
    assert caught.value.reason == "CALLER_GONE"


@pytest.mark.parametrize("check", [1, 2])
async def test_alive_is_checked_before_and_after(check: int) -> None:
    with pinned(os.getpid()) as pin:
        pin.dies_at_check = check
        with pytest.raises(Unauthenticated):
            await UnixAttestor(Config()).attest(pin)


async def test_an_id_that_the_user_namespace_cannot_map_names_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "_overflow_id", lambda kind: os.geteuid() if kind == "uid" else None)
    with pytest.raises(Unavailable) as caught:
        await selectors(os.getpid())
    assert caught.value.reason == "ID_NOT_MAPPED"


def test_the_overflow_id_is_an_id_like_any_other_where_all_are_mapped() -> None:
    whole = Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
    assert (procfs._overflow_id("uid") is None) == whole


def test_names_are_remembered_briefly() -> None:
    now, asked = [0.0], []

    def find(number: int) -> str:
        asked.append(number)
        if number == 9:
            raise KeyError(number)
        return f"u{number}"

    names = Names(monotonic=lambda: now[0], find_user=find, find_group=find)
    assert [names.user(1), names.user(1), names.user(9), names.user(9)] == ["u1", "u1", None, None]
    assert asked == [1, 9]
    assert names.group(1) == "u1"
    now[0] = 11.0
    assert names.user(1) == "u1"
    assert asked == [1, 9, 1, 1]


def test_the_plugin_is_found_by_its_name() -> None:
    assert plugin.name == "unix"
    assert isinstance(plugin.attestor(plugin.config()), UnixAttestor)


async def test_what_is_withheld_is_noted_for_administrators(tmp_path: Path) -> None:
    """Otherwise nobody could tell why an entry with `unix:path` is not this workload's."""
    program = copy_of_sleep(tmp_path / "web")
    with child([program, "60"]) as process, collecting() as notes:
        await selectors(process.pid, Config(hash_size_limit_bytes=1))
        program.unlink()
        await selectors(process.pid)
    told = {note.what: note.value for note in notes}
    assert "hash_size_limit_bytes" in told["sha256 withheld"]
    assert str(program) in told["path and sha256 withheld"]
    assert told["connected as"] == f"uid {os.geteuid()}, gid {os.getegid()}"
