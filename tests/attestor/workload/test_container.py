"""Which container a process runs in, over a corpus of what the runtimes make of /proc; and junk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestor.workload.container import (
    MAX_CGROUP_BYTES,
    MAX_MOUNTINFO_BYTES,
    Container,
    find_container,
    from_cgroups,
    from_mounts,
)
from ca.errors import Denied, Unauthenticated
from tests.attestor.processes import SLEEP, child, pinned
from tests.support.proc_trees import ID, LAYOUTS, NODE, OTHER, POD, Layout, mounts, unified


@contextmanager
def opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def found_in(layout: Layout, directory: Path) -> Container | None:
    with opened(layout.write(directory)) as proc:
        return find_container(proc, own_cgroups=layout.own)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_the_corpus(layout: Layout, tmp_path: Path) -> None:
    if layout.refused:
        with pytest.raises(Denied) as caught:
            found_in(layout, tmp_path)
        assert caught.value.reason == layout.refused
        return
    found = found_in(layout, tmp_path)
    if found is None:
        assert layout.container is None
        return
    assert (found.container_id, found.pod_uid, found.login_uid) == (layout.container, layout.pod, layout.login)
    assert found.container_id in found.found_in


def test_the_corpus_has_each_layout_once() -> None:
    assert len({layout.name for layout in LAYOUTS}) == len(LAYOUTS)
    contents = [(layout.cgroup, layout.mountinfo, layout.own, layout.own_user_namespace) for layout in LAYOUTS]
    assert not {layout.name for layout, one in zip(LAYOUTS, contents, strict=True) if contents.count(one) > 1}


def test_what_may_be_hidden_by_the_agents_own_namespace_is_said(tmp_path: Path) -> None:
    beside = next(layout for layout in LAYOUTS if layout.name == "k8s agent in the same pod")
    found = found_in(beside, tmp_path)
    assert found is not None
    assert found.hidden
    plain = from_cgroups(unified(f"/docker/{ID}"), unified("/"))
    assert plain is not None
    assert not plain.hidden


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: run the tests as root")
@pytest.mark.parametrize(
    ("cgroup", "mounted"),
    [
        (unified(f"/kubepods/burstable/pod{POD}/{ID}"), "kubepods/burstable"),
        (unified(f"/kubepods/burstable/pod{POD}/{ID}"), "unified/kubepods/burstable"),
        (f"4:memory:/kubepods/burstable/pod{POD}/{ID}\n", "memory/kubepods/burstable"),
        (f"1:name=systemd:/kubepods/burstable/pod{POD}/{ID}\n", "systemd/kubepods/burstable"),
    ],
    ids=["v2", "hybrid", "v1", "systemd's"],
)
def test_a_cgroup_that_is_a_users_is_his_whatever_its_name(cgroup: str, mounted: str, tmp_path: Path) -> None:
    proc = Layout(name="", cgroup=cgroup).write(tmp_path / "proc")
    directory = tmp_path / "cgroup" / mounted
    directory.mkdir(parents=True)
    for owner, expected in ((0, None), (1000, 1000)):
        os.chown(directory, owner, owner)
        with opened(proc) as descriptor:
            found = find_container(descriptor, own_cgroups=unified("/"), root=tmp_path / "cgroup")
        assert found is not None
        assert found.login_uid == expected
    with opened(proc) as descriptor:  # what is above the agent too was made before it
        around = cgroup.replace(f"/pod{POD}/{ID}", "/agent")
        found = find_container(descriptor, own_cgroups=around, root=tmp_path / "cgroup")
    assert found is not None
    assert found.login_uid is None


@pytest.mark.parametrize("end", ["\r", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
def test_a_cgroups_name_makes_no_line(end: str) -> None:
    """The kernel refuses a line feed in a cgroup's name, and nothing else: a login user may make these."""
    user = "/user.slice/user-1000.slice/user@1000.service"
    pods = f"kubepods/pod{POD}/{ID}"
    for text in (f"0::{user}/x{end}0::/{pods}\n", f"1:name=systemd:{user}/{end}0::/{pods}\n"):
        found = from_cgroups(text, "0::/system.slice/agent.service\n")
        assert found is not None
        assert found.login_uid == 1000
    mount = f"30 23 0:26 {user}/x{end}31 23 0:26 /{pods} /sys/fs/cgroup rw - cgroup2 cgroup rw\n"
    assert from_mounts(mount, "0::/system.slice/agent.service\n") is None


def test_our_own_process_against_itself() -> None:
    """Whatever this runs in, it is the same from both sides: nothing is refused."""
    with pinned(os.getpid()) as process:
        assert find_container(process.proc) == find_container(process.proc)


def test_a_process_that_has_gone_is_gone() -> None:
    with child([SLEEP, "60"]) as process, pinned(process.pid) as pin:
        process.kill()
        process.wait()
        with pytest.raises(Unauthenticated) as caught:
            find_container(pin.proc)
    assert caught.value.reason == "CALLER_GONE"


@pytest.mark.parametrize(("name", "limit"), [("cgroup", MAX_CGROUP_BYTES), ("mountinfo", MAX_MOUNTINFO_BYTES)])
def test_more_than_is_read_is_refused_whole(name: str, limit: int, tmp_path: Path) -> None:
    layout = Layout(name="large", cgroup=unified("/"), mountinfo=mounts("/"))
    layout.write(tmp_path)
    line = "".join(f"{n}:x{n}:/\n" for n in range(9)) if name == "cgroup" else "1 2 0:3 / /x rw - tmpfs tmpfs rw\n"
    (tmp_path / name).write_text((line * (limit // len(line) + 1))[:limit])
    with opened(tmp_path) as proc:
        assert find_container(proc, own_cgroups="") is None
        (tmp_path / name).write_text((line * (limit // len(line) + 1))[: limit + 1])
        with pytest.raises(Denied) as caught:
            find_container(proc, own_cgroups="")
    assert caught.value.reason == "PROC_FILE_TOO_LARGE"


@pytest.mark.parametrize("content", [b"0::/docker/\xff\xfe\n", b"\0" * 100, b"0::/docker/" + ID.upper().encode()])
def test_what_is_no_text_is_no_container(content: bytes, tmp_path: Path) -> None:
    Layout(name="junk", cgroup="").write(tmp_path)
    (tmp_path / "cgroup").write_bytes(content)
    with opened(tmp_path) as proc:
        assert find_container(proc, own_cgroups="0::/\n") is None


PARTS = st.sampled_from(
    ["", "..", "docker", ID, OTHER, NODE, f"pod{POD}", "kubepods", f"cri-containerd-{ID}.scope", "user-1000.slice", "x"]
)
PATHS = st.one_of(st.lists(PARTS, max_size=7).map(lambda parts: "/" + "/".join(parts)), st.text(max_size=80))
LINES = st.one_of(
    PATHS.map(lambda path: f"0::{path}\n"),
    st.builds(lambda number, path: f"{number}:c{number}:{path}\n", st.integers(0, 9), PATHS),
    PATHS.map(lambda path: f"20 10 0:28 {path} /sys/fs/cgroup ro - cgroup2 cgroup rw\n"),
    st.text(max_size=80),
)
TEXTS = st.lists(LINES, max_size=6).map("".join)


@given(text=TEXTS, own=TEXTS)
def test_junk_is_a_container_a_refusal_or_nothing(text: str, own: str) -> None:
    for found in (_try(text, own), _try_mounts(text, own)):
        if found is not None:
            assert found.container_id in text
            assert found.pod_uid is None or found.pod_uid in text


@given(path=st.lists(st.text("abc0123456789/-._:", max_size=100), max_size=6).map("/".join))
def test_nothing_that_a_container_makes_below_itself_changes_who_it_is(path: str) -> None:
    sure = from_cgroups(unified(f"/kubepods/burstable/pod{POD}/{ID}"), unified("/"))
    below = from_cgroups(unified(f"/kubepods/burstable/pod{POD}/{ID}/{path}".replace("//", "/")), unified("/"))
    assert sure is not None
    assert below is not None
    assert (below.container_id, below.pod_uid) == (sure.container_id, sure.pod_uid)


def _try(text: str, own: str) -> Container | None:
    with contextlib.suppress(Denied):
        return from_cgroups(text, own)
    return None


def _try_mounts(text: str, own: str) -> Container | None:
    with contextlib.suppress(Denied):
        return from_mounts(text, own)
    return None
