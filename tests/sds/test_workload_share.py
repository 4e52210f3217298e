"""Whose share a process uses, from real cgroup texts of every kind of node."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ca.runtime.peers import PeerCred
from sds import workload_share
from sds.peer import PinnedProcess
from sds.workload_share import share_name, share_of_caller, share_of_process

ID = "c0ffee" * 10 + "beef"
NODE = "ab" * 32


@pytest.mark.parametrize(
    ("cgroups", "share"),
    [
        # cgroup v2
        (f"0::/system.slice/docker-{ID}.scope\n", f"cgroup:/system.slice/docker-{ID}.scope"),
        (
            f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope/init\n",
            f"cgroup:/kubepods.slice/kubepods-burstable.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope",
        ),
        # from within another cgroup namespace, as an agent in a pod sees its neighbours
        (f"0::/../../kubepods-pod1.slice/cri-{ID}.scope\n", f"cgroup:/../../kubepods-pod1.slice/cri-{ID}.scope"),
        ("0::/system.slice/nginx.service\n", "cgroup:/system.slice/nginx.service"),
        ("0::/system.slice/nginx.service/own/made.service\n", "cgroup:/system.slice/nginx.service"),
        # who logs in may make as many cgroups as he likes
        (
            f"0::/user.slice/user-1000.slice/user@1000.service/app.slice/libpod-{ID}.scope\n",
            "cgroup:/user.slice/user-1000.slice",
        ),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", "cgroup:/user.slice/user-1000.slice"),
        # a cgroup of no known kind: its users are told apart as well
        ("0::/lxc/box\n", "cgroup:/lxc/box uid:7"),
        # old hierarchies, and both kinds
        (f"9:name=systemd:/\n4:memory:/docker/{ID}\n3:cpu:/\n0::/\n", f"cgroup:/docker/{ID}"),
        (f"2:cpu:/other/longer/path\n1:name=systemd:/docker/{ID}\n", f"cgroup:/docker/{ID}"),
        ("4:memory:/a:b\n", "cgroup:/a:b uid:7"),
        # nothing to tell anybody apart by
        ("0::/\n", "uid:7"),
        ("", "uid:7"),
        ("nonsense\n::\n", "uid:7"),
    ],
)
def test_the_share_is_the_part_that_a_process_did_not_choose(cgroups: str, share: str) -> None:
    assert share_name(cgroups, 7) == share


INNER = f"/docker/{NODE}/kubelet/kubepods/pod1/{ID}"
DELEGATED = f"/system.slice/foo.service/{ID}"


@pytest.mark.parametrize(
    ("path", "owners", "share"),
    [
        # A node that is a container itself: its containers count when root made them.
        (INNER, {}, INNER),
        (INNER, {f"/docker/{NODE}/kubelet/kubepods": 1000}, f"/docker/{NODE}"),
        (f"/docker/{NODE}/{'cd' * 32}/{ID}", {f"/docker/{NODE}/{'cd' * 32}": 7}, f"/docker/{NODE}/{'cd' * 32}"),
        # systemd gives the directory of a service with delegated cgroups to the service's user.
        (DELEGATED, {"/system.slice/foo.service": 1000}, "/system.slice/foo.service"),
        (DELEGATED, {}, DELEGATED),
        (f"/system.slice/foo.service/a/b/{ID}", {"/system.slice/foo.service/a": 1000}, "/system.slice/foo.service"),
        # What cannot be looked at counts as his who is above it.
        (DELEGATED, {"/system.slice/foo.service": None}, "/system.slice/foo.service"),
        (f"/../..{DELEGATED}", {}, "/../../system.slice/foo.service"),
    ],
)
@pytest.mark.parametrize(("line", "mount"), [("0::", "unified"), ("0::", ""), ("1:name=systemd:", "systemd")])
def test_who_may_make_cgroups_invents_no_shares(
    monkeypatch: pytest.MonkeyPatch, line: str, mount: str, path: str, owners: dict[str, int | None], share: str
) -> None:
    root = Path("/sys/fs/cgroup")

    def owner(directory: Path) -> int | None:
        if not directory.is_relative_to(root / mount) or (not mount and directory.is_relative_to(root / "unified")):
            return None
        return owners.get(f"/{directory.relative_to(root / mount)}", 0)

    monkeypatch.setattr(workload_share, "_owner", owner)
    assert share_name(f"{line}{path}\n", 7, root) == f"cgroup:{share}"


@pytest.mark.parametrize("end", ["\r", "\f", "\x1c", "\x85", "\u2028"])
def test_a_cgroups_name_makes_no_line(end: str) -> None:
    user = "/user.slice/user-1000.slice"
    assert share_name(f"0::{user}/x{end}0::/system.slice/docker-{ID}.scope\n", 1000) == f"cgroup:{user}"


def test_the_directories_are_really_looked_at(tmp_path: Path) -> None:
    (tmp_path / DELEGATED[1:]).mkdir(parents=True)
    if os.getuid() == 0:
        assert share_name(f"0::{DELEGATED}\n", 7, tmp_path) == f"cgroup:{DELEGATED}"
        os.chown(tmp_path / "system.slice" / "foo.service", 1000, 1000)
    assert share_name(f"0::{DELEGATED}\n", 7, tmp_path) == "cgroup:/system.slice/foo.service"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_gate_and_attestation_see_the_same_share(child: subprocess.Popen[bytes]) -> None:
    own = share_name(Path("/proc/self/cgroup").read_text(), os.getuid())
    process = PinnedProcess.pin(pid=child.pid, uid=os.getuid(), gid=os.getgid())
    try:
        assert share_of_process(process) == own
        assert share_of_caller(PeerCred(child.pid, os.getuid(), os.getgid(), process.pidfd)) == own
        child.kill()
        child.wait()
        # A pid that may mean another process now lends nobody that one's cgroup.
        assert share_of_process(process) == f"uid:{os.getuid()}"
        assert share_of_caller(PeerCred(os.getpid(), 7, 7, process.pidfd)) == "uid:7"
    finally:
        process.close()
