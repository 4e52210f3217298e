"""The page about Kubernetes, typed line by line before a real API server; and what it says of permissions is so."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.attestor.workload.k8s_node import Trees
from tests.conformance.programs import go_program
from tests.docs.pages import blocks
from tests.docs.reason_codes import ROOT
from tests.helm.charts import CHART, Object, kubectl, rendered
from tests.helm.mesh import CONTAINER, Mesh, ask
from tests.helm.releases import Release
from tests.sds.lab import eventually
from tests.support.kube import fresh
from tests.support.kube_managed import Kubelets, managed_cluster, until
from tests.support.kubelet import status
from tests.support.pair import Pair

pytestmark = [pytest.mark.real("kube-controller-manager"), pytest.mark.xdist_group("managed")]

PAGE = ROOT / "docs/kubernetes-install.md"
EXEC = re.compile(r"kubectl --namespace burgee exec burgee-server-0 -- (caadmin .+)")
WEB = "spiffe://example.org/ns/shop/sa/web"
NAMESPACES = ("burgee", "burgee-agents", "shop")
ROW = re.compile(
    r"^\| `(burgee-\w+)` \| ([a-z, ]+?) ((?:`[a-z/]+`(?:, )?)+)(?: named `([\w-]+)`)? \| ([\w ]+) \|", re.M
)


class Desk:
    """Where the page is typed: `helm` and `kubectl` are real, and what it runs in the server's pod runs beside us."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.cluster = managed_cluster()
        self.kubeconfig = self.cluster.kubeconfig()
        (home / "bin").mkdir()
        for program in (go_program("helm"), kubectl()):
            (home / "bin" / program.name).symlink_to(program)
        (home / "helm").mkdir()
        (home / "helm/burgee").symlink_to(CHART)
        files = zip(("values.yaml", "identities.yaml", "web.yaml"), blocks(PAGE, "yaml"), strict=False)
        for name, text in files:
            (home / name).write_text(text)

    def type(self, line: str, server: Pair | None = None) -> str:
        """What it prints. Raises AssertionError."""
        began = time.monotonic()
        done = self.run(line, server)
        print(f"{time.monotonic() - began:.1f} s: {line}")
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def run(self, line: str, server: Pair | None = None) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.home}/bin:{os.environ['PATH']}",
            "HOME": str(self.home),
            "KUBECONFIG": str(self.kubeconfig),
        }
        words = shlex.split(line)
        if inside := EXEC.fullmatch(line):
            assert server is not None
            environment["BURGEE_ADMIN_SOCKET"] = str(server.admin_socket)
            words = [sys.executable, "-m", "ca.cli.caadmin", *shlex.split(inside[1])[1:]]
            environment["PYTHONPATH"] = str(ROOT)
        return subprocess.run(
            words, cwd=self.home, env=environment, capture_output=True, text=True, check=False, timeout=90
        )


def sections() -> dict[str, list[str]]:
    """The lines to type, by the heading that they stand below."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.M)
    found = {}
    for heading, text in zip(parts[1::2], parts[2::2], strict=True):
        lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines()]
        if lines:
            found[heading] = lines
    return found


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    node = fresh("node")
    with Kubelets(made.cluster, node, *NAMESPACES):
        yield made


async def test_every_command_of_the_page(desk: Desk, tmp_path: Path) -> None:
    typed = sections()
    assert list(typed) == ["Install", "The first identity", "Upgrade", "Uninstall"]
    first = next(n for n, line in enumerate(typed["Install"]) if EXEC.fullmatch(line))
    for line in typed["Install"][:first]:
        await asyncio.to_thread(desk.type, line)
    release = Release(desk.cluster, "burgee", tmp_path)
    mesh = Mesh(release, node_of(desk), agents="burgee-agents")
    trees = Trees(tmp_path)
    with mesh.server() as server:
        async with mesh.controller(server), mesh.agent(server, trees) as (agent, _):
            said = [await asyncio.to_thread(desk.type, line, server) for line in typed["Install"][first:]]
            assert "healthy" in said[0]
            assert agent.identity.svid is not None
            assert str(agent.identity.svid.id) in said[1]
            await asyncio.to_thread(refused_typo, desk)
            *made, look = typed["The first identity"]
            for line in made:
                await asyncio.to_thread(desk.type, line, server)
            pod = await asyncio.to_thread(running_pod, desk)
            await eventually(lambda: len(agent.cache.entries()) == 1, seconds=60)
            assert WEB in await asyncio.to_thread(desk.type, look, server)
            assert await ask(server.workload_socket, trees, pod) == WEB
    for line in (*typed["Upgrade"], *typed["Uninstall"], "kubectl delete namespace shop --wait=false"):
        await asyncio.to_thread(desk.type, line)
    assert not {one["metadata"]["name"] for one in listed(desk, "/api/v1/namespaces")} & {"burgee", "burgee-agents"}
    for path in ("clusterroles", "clusterrolebindings"):
        left = listed(desk, f"/apis/rbac.authorization.k8s.io/v1/{path}?labelSelector=app.kubernetes.io/instance")
        assert left == []


def refused_typo(desk: Desk) -> None:
    (block,) = blocks(PAGE, "console")
    command, *shown = block.removeprefix("$ ").splitlines()
    done = desk.run(command)
    assert done.returncode != 0
    assert all(line in done.stderr for line in shown if line != "…")


def running_pod(desk: Desk) -> Object:
    """The pod of the page, as its kubelet would report it."""

    def found() -> Object | None:
        pods = listed(desk, "/api/v1/namespaces/shop/pods")
        return next((pod for pod in pods if pod["status"].get("phase") == "Running"), None)

    pod: Object = until("the pod runs", found)
    return desk.cluster.set_status(pod, containerStatuses=[status("web", CONTAINER)])


def node_of(desk: Desk) -> str:
    name: str = listed(desk, "/api/v1/namespaces/burgee/pods")[0]["spec"]["nodeName"]
    return name


def listed(desk: Desk, path: str) -> list[Object]:
    found: list[Object] = desk.cluster.admin.call("GET", path)["items"]
    return found


def test_the_image_is_built_as_the_page_says() -> None:
    (text,) = [block for block in blocks(PAGE, "text") if block.startswith("docker build")]
    named = set(re.findall(r"--build-arg (\w+)=", text))
    assert named == set(re.findall(r"^ARG (\w+)$", (ROOT / "Dockerfile").read_text(), re.M))


def test_the_table_of_permissions_is_what_the_chart_grants(tmp_path: Path) -> None:
    """Of the values of the page: the defaults, with the agents' namespace apart."""
    objects = rendered(tmp_path, yaml.safe_load(blocks(PAGE, "yaml")[0]))
    roles = {
        (o["kind"], o["metadata"]["name"], o["metadata"].get("namespace")): o["rules"] for o in objects if "rules" in o
    }
    where = {None: "cluster", "burgee-agents": "namespace of the agents", "burgee": "namespace of the server"}
    granted = set()
    for binding in (o for o in objects if o["kind"].endswith("RoleBinding")):
        namespace = binding["metadata"].get("namespace")
        place = where.get(namespace, f"namespace {namespace}")
        (subject,) = binding["subjects"]
        for rule in roles[binding["roleRef"]["kind"], binding["roleRef"]["name"], namespace]:
            names = ",".join(rule.get("resourceNames", ()))
            verbs = ", ".join(rule["verbs"])
            granted |= {(subject["name"], verbs, resource, names, place) for resource in rule["resources"]}
    rows = ROW.findall(PAGE.read_text())
    said = {(who, verbs, one, names, at) for who, verbs, many, names, at in rows for one in re.findall("`(.+?)`", many)}
    assert said == granted
