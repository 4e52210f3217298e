"""Server and agent as the chart's containers have them: their users, capabilities and directories, but no container."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.charts import MATRIX, Object, config_of, named, rendered
from tests.support.pair import free_port, pair, until
from tests.support.real import require

pytestmark = [pytest.mark.real("helm"), pytest.mark.xdist_group("helm")]

GROUP = 65532


@pytest.fixture
def home() -> Iterator[Path]:
    setpriv = shutil.which("setpriv")
    require("root and setpriv", os.geteuid() == 0 and setpriv is not None, "apt-get install util-linux, and be root")
    made = Path(tempfile.mkdtemp(prefix="bg-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def configured(home: Path, objects: list[Object], who: str, **more: Any) -> Path:
    """The release's configuration; each directory that is mounted is one in `home`."""
    text = config_of(objects, who)
    for place in ("/var/lib/burgee", "/var/cache/burgee", "/run/burgee/sockets", "/run/burgee/admin", "/run/burgee"):
        text = re.sub(rf"(?<=[ ]){place}/", f"{home}{place}/", text)
    file = home / f"{who}.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(text) | more))
    return file


@contextmanager
def running(module: str, config: Path, *privileges: str) -> Iterator[Path]:
    """The program with these privileges alone; where its log is."""
    log = config.with_suffix(".log")
    command = ["setpriv", *privileges, sys.executable, "-m", module, "--config", str(config)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield log
    except BaseException:
        print(log.read_text())
        raise
    finally:
        process.terminate()
        process.wait(30)


def test_the_server_lives_on_a_volume_as_a_kubelet_makes_it(home: Path, tmp_path: Path) -> None:
    """Root's, and the group's to write, whose sticky group all that is made there has; nobody's capabilities."""
    objects = rendered(tmp_path, MATRIX["server-alone"])
    pod = named(objects, "StatefulSet", "burgee-server")["spec"]["template"]["spec"]["securityContext"]
    assert (pod["runAsUser"], pod["fsGroup"], pod["fsGroupChangePolicy"]) == (GROUP, GROUP, "OnRootMismatch")
    for volume in ("var/lib/burgee", "run/burgee"):
        (home / volume).mkdir(parents=True)
        os.chown(home / volume, 0, GROUP)
        (home / volume).chmod(0o2775)
    elsewhere = {"bind_port": free_port(), "bind_address": "127.0.0.1", "metrics_address": None, "node_attestors": {}}
    config = configured(home, objects, "server", **elsewhere)
    # So that it can read this Python, wherever that is; writing is another capability.
    user = (f"--reuid={GROUP}", f"--regid={GROUP}", f"--groups={GROUP}")
    reading = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search", "--no-new-privs")
    for _ in range(2):  # the second finds what the first left
        with running("ca.serve", config, *user, *reading) as log:
            until("it is ready", lambda: '"event": "ready"' in log.read_text(), seconds=60)
    keys = home / "var/lib/burgee/server/keys"
    assert {path.stat().st_mode & 0o777 for path in keys.iterdir()} == {0o600}
    assert (home / "run/burgee/admin").is_dir()


def test_the_agent_needs_no_capability_but_the_charts(home: Path, tmp_path: Path) -> None:
    """Root, in directories as `DirectoryOrCreate` makes them."""
    objects = rendered(tmp_path, MATRIX["defaults"])
    pod = named(objects, "DaemonSet", "burgee-agent")["spec"]["template"]["spec"]
    assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["SYS_PTRACE"]}
    for volume in ("var/lib/burgee", "var/cache/burgee", "run/burgee/sockets", "run/burgee/admin"):
        (home / volume).mkdir(parents=True)
    with pair() as nodes:
        token = home / "token"
        token.write_text(nodes.create_token())
        token.chmod(0o600)
        config = configured(
            home,
            objects,
            "agent",
            trust_domain="pair.test",
            servers=[f"127.0.0.1:{nodes.port}"],
            trust={"bundle_file": str(nodes.bundle_file)},
            node_attestor={"join_token": {"token_file": str(token)}},
            workload_attestors={"unix": {"path": False}},
            metrics_address=None,
        )
        with running(
            "sds.agent", config, "--bounding-set=-all,+sys_ptrace", "--inh-caps=-all", "--no-new-privs"
        ) as log:
            until("it has joined", lambda: '"event": "agent SVID issued"' in log.read_text(), seconds=60)
            socket = home / "run/burgee/sockets/workload.sock"
            until("workloads can come", socket.is_socket, seconds=60)
            assert socket.stat().st_mode & 0o777 == 0o777
            assert (home / "run/burgee/admin/agent/admin.sock").is_socket()
            until("what it was sent is sealed", (home / "var/cache/burgee/sealed/feed.sealed").exists, seconds=60)
