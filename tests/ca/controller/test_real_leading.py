"""Of several controllers one acts, none deletes too much at once, and the program begins and ends in order."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from ca.controller.controller import Controller
from tests.ca.controller.lab import NAMESPACE, Objects, Site, config, entries, paths, running, until
from tests.support.kube import Cluster, Object
from tests.support.kube_programs import free_ports
from tests.support.server import RunningServer

pytestmark = [pytest.mark.real("kube-apiserver"), pytest.mark.xdist_group("kube")]


async def test_too_much_at_once_is_refused_until_somebody_says_that_it_is_meant(
    cluster: Cluster, server: RunningServer, objects: Objects, site: Site
) -> None:
    lease = {"namespace": NAMESPACE, "name": "burgee-controller", "duration_seconds": 2.0, "renew_seconds": 0.3}
    ours = objects.spiffe_id(namespaceSelector=site.here)
    pods = [site.pod() for _ in range(6)]

    async def count() -> int:
        return len(await entries(server))

    async def none() -> bool:
        return await count() == 0

    async def all_there() -> bool:
        return await count() == len(pods)

    given = config(cluster, server, lease=lease, deletion_guard={"entries": 3, "share": 0.2})
    async with running(given) as controller:
        await until(all_there)
        for pod in pods[:2]:
            cluster.delete_pod(pod)
        del pods[:2]
        await until(all_there)
        objects.delete(ours)
        await until(lambda: controller.guard.held == 4)
        assert await count() == 4
        (warning,) = controller.health.report()[1]["warnings"]  # type: ignore[misc]
        assert (warning["reason"], "allow-deletions=4" in warning["hint"]) == ("DELETIONS_REFUSED", True)
        path = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/burgee-controller"
        cluster.admin.call("PATCH", path, {"metadata": {"annotations": {"burgee/allow-deletions": "4"}}})
        await until(none)
        await until(lambda: "annotations" not in cluster.admin.call("GET", path)["metadata"])


async def nothing() -> None:
    pass


async def test_of_two_one_leads_and_the_other_takes_over(
    cluster: Cluster, server: RunningServer, objects: Objects, site: Site
) -> None:
    lease = {"namespace": NAMESPACE, "name": "burgee-controller", "duration_seconds": 2.0, "renew_seconds": 0.3}
    objects.spiffe_id(namespaceSelector=site.here)
    given = config(cluster, server, lease=lease)
    first, second = Controller(given), Controller(given)

    async def there(pod: Object) -> bool:
        return site.path(pod) in await paths(server)

    try:
        await first.start()
        await until(first.leads)
        await second.start()
        pod = site.pod()
        await until(lambda: there(pod))
        await until(second._seen_whole)
        assert (second.leads(), second.reconciler.rounds, second.health.ready) == (False, 0, True)
        assert first.election is not None
        first.election._release = nothing  # type: ignore[method-assign] - as if it were killed
        first.tasks._running["lease"].cancel()
        await until(second.leads)
        assert not first.leads()
        pod = site.pod()
        await until(lambda: there(pod))
        assert second.reconciler.rounds
    finally:
        await first.close()
        await second.close()


async def test_the_program_is_ready_reads_its_file_again_and_ends_in_order(
    cluster: Cluster, server: RunningServer, objects: Objects, site: Site, tmp_path: Path
) -> None:
    lease = {"namespace": NAMESPACE, "name": "burgee-controller"}
    given = config(cluster, server, lease=lease, metrics_address="127.0.0.1:0")
    values = given.model_dump(mode="json", exclude_defaults=True)
    port = free_ports(1)[0]
    values["metrics_address"] = f"127.0.0.1:{port}"
    path, told = tmp_path / "controller.yaml", tmp_path / "log"
    path.write_text(yaml.safe_dump(values))
    objects.spiffe_id(namespaceSelector=site.here)
    pod = site.pod()
    with told.open("wb") as log:
        command = [sys.executable, "-m", "ca.cli.burgee", "controller", "--config", str(path)]
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: ASYNC220 - a moment
    try:
        url = f"http://127.0.0.1:{port}"

        async def ready() -> bool:
            try:
                async with httpx.AsyncClient(trust_env=False) as client:
                    return (await client.get(f"{url}/ready")).status_code == 200
            except httpx.HTTPError:
                return False

        async def there() -> bool:
            return site.path(pod) in await paths(server)

        await until(ready)
        await until(there)
        async with httpx.AsyncClient(trust_env=False) as client:
            shown = (await client.get(f"{url}/metrics")).text
        assert "burgee_controller_leading 1.0" in shown
        path.write_text(yaml.safe_dump(values | {"deletion_guard": {"entries": 7}}))
        process.send_signal(signal.SIGHUP)
        await until(lambda: "configuration reloaded" in told.read_text())
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0, told.read_text()
    finally:
        process.kill()
        process.wait()
    where = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/burgee-controller"
    assert not cluster.admin.call("GET", where)["spec"].get("holderIdentity"), "the next one need not wait"
    assert await there(), "what it made stays"
