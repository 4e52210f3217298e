"""A corpus of /proc/PID trees as the container runtimes lay them out, made here: what each runtime names its cgroups,
and how that looks from the agent's own cgroup namespace."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ID = "3f1d" * 16
OTHER = "9b0c" * 16
NODE = "77aa" * 16
POD = "5a2cb1e0-7d1f-4e5b-9c43-0f6f8d2b7a11"
OTHER_POD = "c0ffee00-1111-4222-8333-444455556666"
STATIC = "0c4d9e0f1a2b3c4d5e6f708192a3b4c5"
SLICE = POD.replace("-", "_")

_V1 = (
    "blkio",
    "cpu,cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls,net_prio",
    "perf_event",
    "pids",
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a process's /proc directory holds, what the agent's own has, and what is to be found."""

    name: str
    cgroup: str
    own: str = "0::/system.slice/burgee-agent.service\n"
    mountinfo: str = ""
    own_user_namespace: bool = False
    pod: str | None = None
    container: str | None = None
    login: int | None = None
    refused: str = ""

    def write(self, directory: Path) -> Path:
        """Makes the tree; the directory must be empty."""
        directory.mkdir(exist_ok=True)
        (directory / "cgroup").write_text(self.cgroup)
        (directory / "mountinfo").write_text(self.mountinfo or MOUNTS)
        (directory / "status").write_text(
            f"Name:\tapp\nUid:{_four(os.geteuid())}\nGid:{_four(os.getegid())}\nGroups:\t\n"
        )
        (directory / "ns").mkdir()
        (directory / "ns" / "user").symlink_to("/dev/null" if self.own_user_namespace else "/proc/self/ns/user")
        return directory


def _four(number: int) -> str:
    return f"\t{number}" * 4


def unified(path: str) -> str:
    """cgroup v2."""
    return f"0::{path}\n"


def legacy(path: str, *, systemd: str | None = None, rest: str = "/", unified: str | None = None) -> str:
    """cgroup v1: the same path in every hierarchy but what is said otherwise; `unified` adds a hybrid host's line."""
    lines = [f"{n}:{controllers}:{path}" for n, controllers in enumerate(_V1, start=3)]
    lines += [f"2:rdma:{rest}", f"1:name=systemd:{path if systemd is None else systemd}"]
    if unified is not None:
        lines.append(f"0::{unified}")
    return "".join(f"{line}\n" for line in lines)


def mounts(root: str, *, legacy: bool = False) -> str:
    """/proc/PID/mountinfo of a container whose view of cgroups begins at `root`."""
    if not legacy:
        return (
            MOUNTS
            + f"620 615 0:28 {root} /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate\n"
        )
    lines = [
        f"{630 + n} 620 0:{40 + n} {root} /sys/fs/cgroup/{controllers} ro,nosuid,nodev,noexec,relatime master:{n}"
        f" - cgroup cgroup rw,{controllers}\n"
        for n, controllers in enumerate(_V1)
    ]
    return (
        MOUNTS
        + "620 615 0:71 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,mode=755\n"
        + "".join(lines)
    )


MOUNTS = (
    "610 540 0:60 / / rw,relatime - overlay overlay rw,lowerdir=/l/A:/l/B,upperdir=/u,workdir=/w\n"
    "611 610 0:63 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw\n"
    "615 610 0:64 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs ro\n"
    f"640 610 254:1 /var/lib/kubelet/pods/{OTHER_POD}/etc-hosts /etc/hosts rw,relatime - ext4 /dev/vda1 rw\n"
    f"641 610 254:1 /var/lib/docker/containers/{OTHER}/hostname /etc/hostname rw,relatime - ext4 /dev/vda1 rw\n"
)
"""A container's other mounts. Files that are mounted in are not its own: they may be its sandbox's, or another's."""

BURSTABLE = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SLICE}.slice"
KIND = "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice"
KIND += f"/kubelet-kubepods-besteffort-pod{SLICE}.slice"
AGENT_POD = OTHER_POD.replace("-", "_")


def _pod(name: str, cgroup: str, **more: object) -> Layout:
    return Layout(name=f"k8s {name}", cgroup=cgroup, **{"pod": POD, "container": ID, **more})  # type: ignore[arg-type]


def _plain(name: str, cgroup: str, **more: object) -> Layout:
    return Layout(name=name, cgroup=cgroup, **{"container": ID, **more})  # type: ignore[arg-type]


def _none(name: str, cgroup: str, **more: object) -> Layout:
    return Layout(name=f"none: {name}", cgroup=cgroup, **more)  # type: ignore[arg-type]


def _refused(name: str, cgroup: str, reason: str, **more: object) -> Layout:
    return Layout(name=f"refused: {name}", cgroup=cgroup, refused=reason, **more)  # type: ignore[arg-type]


PODS = (
    _pod("containerd, systemd", unified(f"{BURSTABLE}/cri-containerd-{ID}.scope")),
    _pod("containerd, cgroupfs", unified(f"/kubepods/besteffort/pod{POD}/{ID}")),
    _pod(
        "containerd, guaranteed, systemd",
        unified(f"/kubepods.slice/kubepods-pod{SLICE}.slice/cri-containerd-{ID}.scope"),
    ),
    _pod("containerd, guaranteed, cgroupfs", unified(f"/kubepods/pod{POD}/{ID}")),
    _pod("CRI-O, systemd", unified(f"{BURSTABLE}/crio-{ID}.scope")),
    _pod("CRI-O, crun", unified(f"{BURSTABLE}/crio-{ID}.scope/container")),
    _pod("CRI-O, cgroupfs", unified(f"/kubepods/besteffort/pod{POD}/crio-{ID}")),
    _pod("cri-dockerd, systemd", unified(f"{BURSTABLE}/docker-{ID}.scope")),
    _pod("cri-dockerd, cgroupfs", unified(f"/kubepods/burstable/pod{POD}/{ID}")),
    _pod(
        "containerd, cgroupfs names below systemd",
        unified(f"/system.slice/containerd.service/kubepods-burstable-pod{SLICE}.slice:cri-containerd:{ID}"),
    ),
    _pod("a cgroup root of its own", unified(f"/cluster/kubepods/burstable/pod{POD}/{ID}")),
    _pod("k3s in its service", unified(f"/system.slice/k3s.service/kubepods/burstable/pod{POD}/{ID}")),
    _pod("static pod, cgroupfs", unified(f"/kubepods/burstable/pod{STATIC}/{ID}"), pod=STATIC),
    _pod(
        "static pod, systemd",
        unified(f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice/crio-{ID}.scope"),
        pod=STATIC,
    ),
    _pod("systemd in the container", unified(f"{BURSTABLE}/cri-containerd-{ID}.scope/system.slice/app.service")),
    _pod("Docker in the container", unified(f"{BURSTABLE}/cri-containerd-{ID}.scope/docker/{OTHER}")),
    _pod("a cgroup that was removed", unified(f"/kubepods/besteffort/pod{POD}/{ID} (deleted)")),
    _pod(
        "agent in a cgroup namespace of its pod",
        unified(f"/../../../kubepods-burstable.slice/kubepods-burstable-pod{SLICE}.slice/cri-containerd-{ID}.scope"),
        own="0::/\n",
    ),
    _pod("agent in the same pod", unified(f"/../cri-containerd-{ID}.scope"), own="0::/\n", pod=None),
    _pod(
        "agent in another pod, host's cgroup namespace",
        unified(f"/kubepods/besteffort/pod{POD}/{ID}"),
        own=unified(f"/kubepods/besteffort/pod{OTHER_POD}/{OTHER}"),
    ),
    _pod(
        "agent in another container of the pod",
        unified(f"/kubepods/besteffort/pod{POD}/{ID}"),
        own=unified(f"/kubepods/besteffort/pod{POD}/{OTHER}"),
    ),
    _pod(
        "agent in the very container",
        unified(f"/kubepods/besteffort/pod{POD}/{ID}"),
        own=unified(f"/kubepods/besteffort/pod{POD}/{ID}"),
    ),
    _pod(
        "kind, seen from a pod",
        unified(
            f"/../../../kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{SLICE}.slice/cri-containerd-{ID}.scope"
        ),
        own="0::/\n",
    ),
    _pod("kind, seen from its node", unified(f"{KIND}/cri-containerd-{ID}.scope"), own="0::/system.slice/a.service\n"),
    _pod(
        "kind, host's cgroup namespace",
        unified(f"/docker/{NODE}{KIND}/cri-containerd-{ID}.scope"),
        own=unified(
            f"/docker/{NODE}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{AGENT_POD}.slice/x.scope"
        ),
    ),
    _pod(
        "kind, systemd, agent a service of the node",
        unified(f"/system.slice/docker-{NODE}.scope{KIND}/cri-containerd-{ID}.scope"),
        own=unified(f"/system.slice/docker-{NODE}.scope/system.slice/burgee-agent.service"),
    ),
    _pod("v1, containerd", legacy(f"/kubepods/besteffort/pod{POD}/{ID}")),
    _pod("v1, systemd", legacy(f"{BURSTABLE}/docker-{ID}.scope", unified="/")),
    _pod("v1, hybrid", legacy(f"{BURSTABLE}/crio-{ID}.scope", unified="/system.slice/crio.service")),
    _pod(
        "v1, cgroupfs below systemd",
        legacy(f"/kubepods/besteffort/pod{POD}/{ID}", systemd="/system.slice/containerd.service"),
    ),
    _pod(
        "v1, names joined by colons",
        legacy(f"/system.slice/containerd.service/kubepods-besteffort-pod{SLICE}.slice:cri-containerd:{ID}"),
    ),
    _pod(
        "v1, kind in the host's cgroup namespace",
        legacy(
            f"/docker/{NODE}/kubelet/kubepods/besteffort/pod{POD}/{ID}",
            rest=f"/docker/{NODE}",
            unified=f"/docker/{NODE}/system.slice/containerd.service",
        ),
        own=legacy(
            f"/docker/{NODE}/kubelet/kubepods/besteffort/pod{OTHER_POD}/{OTHER}",
            rest=f"/docker/{NODE}",
            unified=f"/docker/{NODE}/system.slice/containerd.service",
        ),
    ),
    _pod(
        "v1, kind whose node's cgroup is named twice",
        legacy(f"/docker/{NODE}/docker/{NODE}/kubepods/besteffort/pod{POD}/{ID}"),
        own=legacy(f"/docker/{NODE}/docker/{NODE}/system.slice/burgee-agent.service"),
    ),
    _pod(
        "mountinfo, v2",
        unified("/"),
        mountinfo=mounts(f"{BURSTABLE}/cri-containerd-{ID}.scope"),
    ),
    _pod(
        "mountinfo, v2, agent in a cgroup namespace",
        unified("/../../../.."),
        own="0::/\n",
        mountinfo=mounts(f"/../../pod{POD}/{ID}"),
    ),
    _pod("mountinfo, v1", legacy("/"), mountinfo=mounts(f"/kubepods/besteffort/pod{POD}/{ID}", legacy=True)),
    _pod(
        "mountinfo, kind in the host's cgroup namespace",
        unified("/"),
        own=unified(f"/docker/{NODE}/system.slice/burgee-agent.service"),
        mountinfo=mounts(f"/docker/{NODE}/kubepods/besteffort/pod{POD}/{ID}"),
    ),
)

CONTAINERS = (
    _plain("docker, systemd", unified(f"/system.slice/docker-{ID}.scope")),
    _plain("docker, cgroupfs", unified(f"/docker/{ID}")),
    _plain("docker, v1", legacy(f"/docker/{ID}", unified="/system.slice/docker.service")),
    _plain("docker, a parent of its own", unified(f"/batch/{ID}")),
    _plain("docker from snap", unified(f"/system.slice/snap.docker.dockerd.service/docker/{ID}")),
    _plain("docker, systemd within", unified(f"/system.slice/docker-{ID}.scope/init.scope")),
    _plain("docker in docker, seen from outside", unified(f"/docker/{ID}/docker/{OTHER}")),
    _plain(
        "docker in docker, agent in the outer one",
        unified(f"/docker/{NODE}/docker/{ID}"),
        own=unified(f"/docker/{NODE}"),
    ),
    _plain("docker, agent in another one", unified(f"/docker/{ID}"), own=unified(f"/docker/{OTHER}")),
    _plain("docker, agent in a cgroup namespace", unified(f"/../docker-{ID}.scope"), own="0::/\n"),
    _plain("docker, mountinfo", unified("/"), mountinfo=mounts(f"/docker/{ID}")),
    _plain("containerd with nerdctl", unified(f"/system.slice/nerdctl-{ID}.scope")),
    _plain("containerd's own client", unified(f"/default/{ID}")),
    _plain("ECS", unified(f"/ecs/4a1d7e0b9f3c4c6e8d2a5b7c9e1f3a5d/{ID}")),
    _plain("podman", unified(f"/machine.slice/libpod-{ID}.scope/container")),
    _plain("podman, runc", unified(f"/machine.slice/libpod-{ID}.scope")),
    _plain("podman, payload", unified(f"/machine.slice/libpod-payload-{ID}.scope")),
    _plain("podman, cgroupfs", unified(f"/libpod_parent/libpod-{ID}")),
    _plain(
        "podman in a pod of podman's", unified(f"/machine.slice/machine-libpod_pod_{OTHER}.slice/libpod-{ID}.scope")
    ),
    _plain("podman, cgroupfs, in a pod of podman's", unified(f"/libpod_parent/{OTHER}/libpod-{ID}")),
    _plain(
        "podman, rootless",
        unified(f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container"),
        login=1000,
    ),
    _plain(
        "docker, rootless",
        unified(f"/user.slice/user-1000.slice/user@1000.service/app.slice/docker.service/docker/{ID}"),
        login=1000,
    ),
    _plain(
        "agent in the same login",
        unified(f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope"),
        own=unified("/user.slice/user-1000.slice/user@1000.service/app.slice/burgee.service"),
    ),
)

NOTHING = (
    _none("the root", unified("/")),
    _none("a service", unified("/system.slice/ssh.service")),
    _none("a login", unified("/user.slice/user-1000.slice/session-3.scope")),
    _none("the runtime", legacy("/system.slice/containerd.service", unified="/system.slice/containerd.service")),
    _none("podman's monitor", unified(f"/machine.slice/libpod-conmon-{ID}.scope")),
    _none("CRI-O's monitor", unified(f"{BURSTABLE}/crio-conmon-{ID}.scope")),
    _none("the pod's own cgroup", unified(BURSTABLE)),
    _none("a number that is too long", unified(f"/docker/{ID}0")),
    _none("no cgroups at all", ""),
    _none("files mounted in are another container's", unified("/"), mountinfo=MOUNTS),
    _none("the host's cgroups mounted in", unified("/"), mountinfo=mounts("/")),
    _none(
        "cgroups mounted somewhere else",
        unified("/"),
        mountinfo=MOUNTS + f"9 8 0:28 /docker/{ID} /host/cgroup rw - cgroup2 cgroup rw\n",
    ),
    _none(
        "mounts that anybody can make in a user namespace of his own",
        unified("/"),
        mountinfo=mounts(f"/kubepods/besteffort/pod{POD}/{ID}"),
        own_user_namespace=True,
    ),
)

ATTACKS = (
    _plain(
        "a container that makes a pod below itself is that container",
        unified(f"/docker/{ID}/kubepods/burstable/pod{POD}/{OTHER}"),
    ),
    _pod(
        "a pod that makes another pod below itself is that pod",
        unified(f"{BURSTABLE}/cri-containerd-{ID}.scope/kubepods/pod{OTHER_POD}/{OTHER}"),
    ),
    _pod(
        "a user who names a pod in his login is that user",
        unified(f"/user.slice/user-1000.slice/user@1000.service/kubepods/pod{POD}/{ID}"),
        login=1000,
    ),
    _refused(
        "a service that names a pod below itself",
        unified(f"/system.slice/app.service/kubepods/pod{POD}/{ID}"),
        "CONTAINER_NESTED",
    ),
    _refused("LXC", unified(f"/lxc.payload.guest/kubepods/pod{POD}/{ID}"), "CONTAINER_NESTED"),
    _refused("LXC of old", legacy(f"/lxc/guest/kubepods/pod{POD}/{ID}"), "CONTAINER_NESTED"),
    _refused("a machine", unified(f"/machine.slice/machine-qemu1.scope/docker/{ID}"), "CONTAINER_NESTED"),
    _refused("two containers", legacy(f"/docker/{ID}", systemd=f"/docker/{OTHER}"), "CONTAINER_AMBIGUOUS"),
    _refused("two in one name", unified(f"/docker/{ID}-{OTHER}"), "CONTAINER_AMBIGUOUS"),
    _refused(
        "one container, two pods",
        legacy(f"/kubepods/pod{POD}/{ID}", systemd=f"/kubepods/pod{OTHER_POD}/{ID}"),
        "CONTAINER_AMBIGUOUS",
    ),
    _refused(
        "one hierarchy by root, one by a user",
        legacy(f"/kubepods/pod{POD}/{ID}", systemd=f"/user.slice/user-1000.slice/x/{ID}"),
        "CONTAINER_AMBIGUOUS",
    ),
    _refused(
        "mounts of two",
        unified("/"),
        "CONTAINER_AMBIGUOUS",
        mountinfo=mounts(f"/docker/{ID}") + mounts(f"/docker/{OTHER}"),
    ),
)

LAYOUTS = PODS + CONTAINERS + NOTHING + ATTACKS
