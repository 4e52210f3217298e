"""The chart by itself: it renders, what it renders is what our programs read, and a typo is refused with its path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ca.controller.config import ControllerConfig
from ca.runtime.config import load_yaml
from ca.runtime.server_config import ServerConfig
from ca.service.configured import check as check_server
from sds.agent import check as check_agent
from sds.config import AgentConfig
from tests.docs.pages import blocks
from tests.docs.reason_codes import ROOT
from tests.helm.charts import CHART, MATRIX, Object, Values, config_of, helm, named, rendered, values_file
from tests.support.helm_values import CHARTS_OWN, SCHEMA, defaults

pytestmark = [pytest.mark.real("helm"), pytest.mark.xdist_group("helm")]

FREE = {"texts", "global", "attestor_deadlines_seconds", "providers"}
"""Mappings whose keys are the user's own names."""


@pytest.mark.parametrize("name", MATRIX)
def test_it_lints_and_its_configurations_are_what_our_programs_read(name: str, tmp_path: Path) -> None:
    values = values_file(tmp_path, MATRIX[name])
    assert "0 chart(s) failed" in helm("lint", "--strict", CHART, "-f", values)
    objects = rendered(tmp_path, MATRIX[name])
    if MATRIX[name].get("server", {}).get("enabled", True):
        check_server(load_yaml(config_of(objects, "server"), ServerConfig))
        if MATRIX[name].get("controller", {}).get("enabled", True):
            load_yaml(config_of(objects, "controller"), ControllerConfig)
    if MATRIX[name].get("agent", {}).get("enabled", True):
        check_agent(load_yaml(config_of(objects, "agent"), AgentConfig))


def test_what_one_says_is_in_the_configuration_and_what_the_chart_says_counts(tmp_path: Path) -> None:
    objects = rendered(tmp_path, MATRIX["labels"])
    server = load_yaml(config_of(objects, "server"), ServerConfig)
    assert (server.x509_svid_ttl_seconds, server.log.level, server.log.format) == (1800, "debug", "json")
    assert set(server.node_attestors) == {"k8s_psat", "join_token"}
    (name, cluster), *_ = server.node_attestors["k8s_psat"]["clusters"].items()
    assert (name, cluster["service_account_allow_list"]) == ("west-1", ["burgee:burgee-agent"])
    agent = load_yaml(config_of(objects, "agent"), AgentConfig)
    assert (agent.cache.persist, str(agent.cache.directory)) == ("none", "/var/cache/burgee/sealed")


def test_the_server_logs_in_to_vault_by_a_token_that_is_made_for_vault(tmp_path: Path) -> None:
    for name, method, file in (("vault", "kubernetes", "token_file"), ("vault-jwt", "jwt", "jwt_file")):
        objects = rendered(tmp_path, MATRIX[name])
        config = load_yaml(config_of(objects, "server"), ServerConfig)
        assert config.upstream is not None
        auth = config.upstream.config["auth"]
        assert set(auth) == {method}
        pod = named(objects, "StatefulSet", "burgee-server")["spec"]["template"]["spec"]
        (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "vault-token"]
        (volume,) = [v for v in pod["volumes"] if v["name"] == "vault-token"]
        (source,) = volume["projected"]["sources"]
        assert auth[method][file] == f"{mount['mountPath']}/{source['serviceAccountToken']['path']}"
        assert source["serviceAccountToken"]["audience"] == "vault"


@pytest.mark.parametrize(("name", "program"), [("vault", "server"), ("apart", "agent"), ("labels", "controller")])
def test_every_file_of_a_configuration_is_mounted(name: str, program: str, tmp_path: Path) -> None:
    """Paths in the configuration lead below a mount, or are the kubelet's own."""
    objects = rendered(tmp_path, MATRIX[name])
    kind, name = ("DaemonSet", "burgee-agent") if program == "agent" else ("StatefulSet", "burgee-server")
    pod = named(objects, kind, name)["spec"]["template"]["spec"]
    container = next(one for one in pod["containers"] if one["name"] == program)
    assert {m["name"] for one in pod["containers"] for m in one["volumeMounts"]} <= {
        v["name"] for v in pod["volumes"]
    } | {"data"}
    mounts = [m["mountPath"] for m in container["volumeMounts"]]
    paths = [text for text in _texts(yaml.safe_load(config_of(objects, program))) if text.startswith("/")]
    assert paths
    assert not [path for path in paths if not any(path.startswith(f"{mount}/") for mount in mounts)]


TYPOS: dict[str, tuple[Values, str]] = {
    "top": ({"agnet": {}}, "agnet"),
    "nested": ({"server": {"persistence": {"sise": "1Gi"}}}, "/server/persistence"),
    "configuration": ({"server": {"config": {"x509_svid_ttl": 5}}}, "/server/config"),
    "deep in the configuration": ({"agent": {"config": {"limits": {"max_conections": 5}}}}, "/agent/config/limits"),
    "what the chart decides": ({"server": {"config": {"data_dir": "/x"}}}, "/server/config"),
    "the controller": (
        {"controller": {"config": {"deletion_guard": {"enteries": 5}}}},
        "/controller/config/deletion_guard",
    ),
    "a list": ({"agent": {"tolerations": [{"operater": "Exists"}]}}, "/agent/tolerations/0"),
    "affinity": ({"server": {"affinity": {"nodeAfinity": {}}}}, "/server/affinity"),
    "more servers": ({"server": {"replicas": 3}}, "/server/replicas"),
    "a type": ({"server": {"service": {"port": "8081"}}}, "/server/service/port"),
    "a choice": ({"server": {"keys": {"plugin": "vault"}}}, "/server/keys/plugin"),
}


@pytest.mark.parametrize("what", TYPOS)
def test_a_typo_is_refused_with_its_path(what: str, tmp_path: Path) -> None:
    values, path = TYPOS[what]
    said = helm("template", "burgee", CHART, "-f", values_file(tmp_path, values), fails=True)
    assert "values don't meet the specifications of the schema" in said
    assert path in said.replace(".", "/")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"server": {"keys": {"plugin": "vault_transit"}}}, "server.vault.address"),
        ({"server": {"keys": {"plugin": "vault_transit"}, "vault": {"address": "https://v.test"}}}, "vault.auth.role"),
        ({"server": {"enabled": False}}, "agent.servers"),
        ({"server": {"enabled": False}, "agent": {"servers": ["a:1"]}}, "agent.trust"),
        ({"agent": {"trust": {"bundleUrl": "https://a.test", "insecureBootstrap": True}}}, "agent.trust"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(values: Values, named: str, tmp_path: Path) -> None:
    assert named in helm("template", "burgee", CHART, "-f", values_file(tmp_path, values), fails=True)


def test_the_trust_domain_must_be_said() -> None:
    assert "trustDomain" in helm("template", "burgee", CHART, fails=True)


def test_two_releases_in_two_namespaces_share_no_name(tmp_path: Path) -> None:
    def names(namespace: str) -> set[tuple[str, str, str]]:
        values = {"csiDriver": {"name": f"{namespace}.csi.test"}}
        return {
            (one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"])
            for one in rendered(tmp_path, values, namespace=namespace)
        }

    assert not names("one") & names("two")


def test_nothing_but_names_of_ones_own_is_open() -> None:
    schema = json.loads(SCHEMA.read_text())
    open_ones = {
        name
        for name, value in _objects(schema, "")
        if value.get("type") == "object" and value.get("additionalProperties") is not False
    }
    assert open_ones == FREE


def test_values_yaml_says_the_schemas_defaults() -> None:
    stated = yaml.safe_load((CHART / "values.yaml").read_text())
    assert stated == defaults(json.loads(SCHEMA.read_text())["properties"])


def test_what_the_chart_decides_is_a_key_of_the_model() -> None:
    for model, own in CHARTS_OWN.items():
        assert {key.split(".")[0] for key in own} <= set(model.model_fields)


def test_only_the_agent_is_more_than_restricted(tmp_path: Path) -> None:
    for values in MATRIX.values():
        for one in rendered(tmp_path, values):
            if one["kind"] == "StatefulSet":
                pod = one["spec"]["template"]["spec"]
                assert not {"hostPID", "hostNetwork", "hostIPC"} & set(pod)
                assert all("hostPath" not in volume for volume in pod["volumes"])


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(item)


def _objects(value: Any, name: str) -> Iterator[tuple[str, Object]]:
    """Every schema in a schema, by the name that it stands under."""
    if isinstance(value, dict):
        yield name, value
        for key, item in value.items():
            if key != "default":
                yield from _objects(item, name if key in ("items", "anyOf", "additionalProperties") else key)
    elif isinstance(value, list):
        for item in value:
            yield from _objects(item, name)


def test_the_alert_rules_of_the_page_are_the_charts(tmp_path: Path) -> None:
    (block,) = blocks(ROOT / "docs/alerts.md", "yaml")
    rule = named(rendered(tmp_path, MATRIX["watched"]), "PrometheusRule", "burgee")
    assert rule["spec"] == yaml.safe_load(block)
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    assert not [one for one in rendered(tmp_path, {}) if one["kind"] == "PrometheusRule"], "it is asked for"
