"""What other pages about Kubernetes say of the chart: their values make what they show for those without it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from ca.controller.config import ControllerConfig
from ca.identity.bundle_pem import parse_certificates
from ca.identity.signer_name import DEFAULT_SIGNER
from ca.runtime.config import load_yaml
from ca.runtime.server_config import ServerConfig
from tests.docs.pages import blocks
from tests.docs.reason_codes import ROOT
from tests.helm.charts import CHART, config_of, kubectl, named, rendered
from tests.support.kube import kube_lab
from tests.support.pair import TRUST_DOMAIN, Pair

pytestmark = [pytest.mark.real("helm")]

ISTIO, AGENTLESS, CONTROLLER = (
    ROOT / f"docs/{name}.md" for name in ("with-istio", "kubernetes-without-agent", "kubernetes-controller")
)


def values_of(page: Path, key: str) -> dict[str, Any]:
    """The page's block for the chart."""
    found = [one for block in blocks(page, "yaml") if isinstance(one := next(yaml.safe_load_all(block)), dict)]
    (values,) = [one for one in found if key in one and "trust_domain" not in one]
    assert isinstance(values, dict)
    return values


def test_istio_by_the_chart_is_istio_by_hand(tmp_path: Path) -> None:
    objects = rendered(tmp_path, values_of(ISTIO, "istio"))
    made = load_yaml(config_of(objects, "server"), ServerConfig).istio
    (text,) = [block for block in blocks(ISTIO, "yaml") if "dns_names" in block]
    by_hand = tmp_path / "server.yaml"
    by_hand.write_text(text)
    assert made == load_yaml(by_hand, ServerConfig).istio
    services = [next(yaml.safe_load_all(block)) for block in blocks(ISTIO, "yaml") if "kind: Service\n" in block]
    (service,) = [one for one in services if one["kind"] == "Service"]
    assert named(objects, "Service", "burgee-istio")["spec"]["ports"][0]["port"] == service["spec"]["ports"][0]["port"]


def test_pods_without_an_agent_by_the_chart(tmp_path: Path) -> None:
    objects = rendered(tmp_path, values_of(AGENTLESS, "controller"))
    controller = load_yaml(config_of(objects, "controller"), ControllerConfig)
    assert controller.pod_certificates is not None
    assert controller.pod_certificates.signer_name == DEFAULT_SIGNER
    server = load_yaml(config_of(objects, "server"), ServerConfig)
    assert "cluster_trust_bundle" in {one.plugin for one in server.bundle_publishers.values()}
    granted = {
        verb for one in objects if one["kind"] == "ClusterRole" for rule in one["rules"] for verb in rule["verbs"]
    }
    assert {"sign", "attest"} <= granted


@pytest.mark.xdist_group("kube")
@pytest.mark.real("kube-apiserver")
def test_kubectl_takes_what_comes_before_a_controller_by_hand(tmp_path: Path) -> None:
    cluster = kube_lab()
    (text,) = [block for block in blocks(CONTROLLER, "sh") if "crds" in block]
    cluster.namespace("burgee")
    for line in text.splitlines():
        words = shlex.split(line)
        assert words[0] == "kubectl"
        if words[1:3] == ["create", "namespace"]:
            continue  # other tests made it
        words = [str(CHART / "crds") if word == "helm/burgee/crds" else word for word in words[1:]]
        environment = os.environ | {"KUBECONFIG": str(cluster.kubeconfig())}
        ran = subprocess.run([kubectl(), *words], env=environment, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0 or "already exists" in ran.stderr, ran.stderr


@pytest.mark.xdist_group("kube")
@pytest.mark.real("kube-apiserver")
def test_istiods_own_certificate_is_made_as_the_page_says(tmp_path: Path) -> None:
    """The first line with a server of ours, the second with the real API server."""
    (text,) = [block for block in blocks(ISTIO, "sh") if "istiod.json" in block]
    mint, secret, *_ = text.splitlines()
    command = mint.partition(" -- caadmin ")[2].partition(" > ")[0]
    (tmp_path / "pair").mkdir()
    running = Pair(tmp_path / "pair")
    try:
        running.start_server()
        environment = os.environ | {"BURGEE_ADMIN_SOCKET": str(running.admin_socket)}
        arguments = [sys.executable, "-m", "ca.cli.caadmin", *shlex.split(command.replace("example.org", TRUST_DOMAIN))]
        ran = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60)
    finally:
        running.close()
    assert ran.returncode == 0, ran.stderr
    (tmp_path / "istiod.json").write_text(ran.stdout)
    (leaf, *_) = parse_certificates(json.loads(ran.stdout)["svid"])
    names = x509.load_der_x509_certificate(leaf).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["istiod.istio-system.svc"]
    if shutil.which("jq") is None:
        secret = re.sub(r"jq -r \.(\w+) istiod\.json", r"cat \1", secret)
        for name, value in json.loads(ran.stdout).items():
            (tmp_path / name).write_text(str(value))
    cluster = kube_lab()
    cluster.namespace("istio-system")
    environment = {"PATH": f"{kubectl().parent}:{os.environ['PATH']}", "KUBECONFIG": str(cluster.kubeconfig())}
    done = subprocess.run(["/bin/bash", "-c", secret], cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    made = cluster.admin.call("GET", "/api/v1/namespaces/istio-system/secrets/istiod-tls")
    assert set(made["data"]) == {"tls.crt", "tls.key", "ca.crt"}
