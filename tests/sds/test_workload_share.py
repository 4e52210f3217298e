"""Whose share a process uses, from real cgroup texts of every kind of node."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ca.runtime.peers import PeerCred
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
        (f"0::/docker/{NODE}/kubelet/kubepods/pod1/{ID}\n", f"cgroup:/docker/{NODE}/kubelet/kubepods/pod1/{ID}"),
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
