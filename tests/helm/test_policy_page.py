"""What the Envoy page says of policies: the printed parts fit into its service, the chart passes values on; a pod."""

from __future__ import annotations

import copy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ca.errors import FailedPrecondition
from ca.runtime.config import load_yaml
from ca.runtime.server_config import ServerConfig
from ca.up.envoy_program import find_envoy
from sds.config import AgentConfig
from tests.docs.pages import blocks
from tests.docs.reason_codes import ROOT
from tests.helm.charts import config_of, rendered
from tests.support.kube import kube_lab
from tests.support.real import require

PAGE = ROOT / "docs/envoy.md"


def block(word: str) -> Any:
    """The page's only one in which it stands."""
    (text,) = [one for one in blocks(PAGE, "yaml") if word in one]
    return yaml.safe_load(text)


def printed() -> Any:
    """What the page's command prints."""
    (text,) = [one for one in blocks(PAGE, "sh") if "envoy-snippet" in one]
    _, *arguments = shlex.split(text)
    done = subprocess.run(
        [sys.executable, "-m", "ca.cli.caadmin", *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    return yaml.safe_load(done.stdout)


def judged(config: Any, directory: Path) -> str:
    """What Envoy has against it."""
    try:
        envoy = find_envoy()
    except FailedPrecondition as error:
        require("envoy", False, error.hint)
        raise
    file = directory / "envoy.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [str(envoy), "--mode", "validate", "--config-path", str(file), "--log-level", "error"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return "" if done.returncode == 0 else done.stderr + done.stdout


@pytest.mark.real("envoy")
def test_the_printed_parts_go_into_the_pages_service(tmp_path: Path) -> None:
    service, parts = copy.deepcopy(block("stat_prefix: inbound")), printed()
    assert [one["name"] for one in parts["clusters"]] == ["burgee_agent"]
    (chain,) = service["static_resources"]["listeners"][0]["filter_chains"]
    manager = chain["filters"][0]["typed_config"]
    router = manager["http_filters"]
    manager |= parts["http_connection_manager"]
    manager["http_filters"] = parts["http_connection_manager"]["http_filters"] + router
    assert judged(service, tmp_path) == ""
    given, ask = manager["http_filters"][1:3]
    assert given["name"] == "burgee.http.policy+ask"
    del ask["typed_config"]["filter_enabled_metadata"]
    manager["http_filters"] = [ask, *router]
    assert judged(service, tmp_path) == "", "a gateway that asks about everything"
    manager["http_filters"] = [{"name": "nonsense"}, *router]
    assert judged(service, tmp_path), "it can complain"


@pytest.mark.real("helm")
def test_the_chart_passes_what_policy_has_in_both_configurations(tmp_path: Path) -> None:
    values = block("open_namespaces")
    objects = rendered(tmp_path, values)
    server = load_yaml(config_of(objects, "server"), ServerConfig).policy
    assert list(server.admins) == ["spiffe://example.org/ns/mesh/sa/deployer"]
    assert list(server.open_namespaces) == ["legacy"]
    agent = load_yaml(config_of(objects, "agent"), AgentConfig).policy
    assert (agent.cut_off, agent.ttl_seconds) == ("deny", 120)


@pytest.mark.xdist_group("kube")
@pytest.mark.real("kube-apiserver")
def test_an_api_server_takes_the_pod_in_a_restricted_namespace() -> None:
    cluster, pod = kube_lab(), block("name: api-envoy")
    name = cluster.namespace(labels={"pod-security.kubernetes.io/enforce": "restricted"})
    cluster.service_account(name, "api")
    pod["metadata"]["namespace"] = name
    cluster.apply(pod)
    made = cluster.admin.call("GET", f"/api/v1/namespaces/{name}/pods/api")
    assert made["spec"]["volumes"][0]["csi"]["driver"] == "csi.spiffe.io"
