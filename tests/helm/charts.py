"""The chart as helm renders and installs it, and the values that tests go through."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tests.conformance.programs import CACHE, go_program
from tests.docs.reason_codes import ROOT
from tests.support.real import require

CHART = ROOT / "helm/burgee"
Object = dict[str, Any]
Values = dict[str, Any]

CA = {"name": "vault-ca", "key": "ca.crt"}
VAULT = {"address": "https://vault.test:8200", "caConfigMap": CA, "auth": {"role": "burgee"}}

MATRIX: dict[str, Values] = {
    "defaults": {},
    "labels": {
        "clusterName": "west-1",
        "server": {
            "nodeAttestors": {
                "k8sPsat": {"allowedNodeLabelKeys": ["topology.kubernetes.io/zone"], "allowedPodLabelKeys": ["app"]},
                "joinToken": {"enabled": True},
            },
            "config": {"x509_svid_ttl_seconds": 1800, "jwt_issuer": "https://issuer.test", "log": {"level": "debug"}},
        },
        "controller": {"config": {"pod_certificates": {"signer_name": "mesh.example/svid"}, "class_name": "burgee"}},
        "agent": {"config": {"sds": {"validator": "trusted_ca"}, "cache": {"persist": "none"}}},
    },
    "vault": {
        "server": {
            "vault": VAULT,
            "keys": {"plugin": "vault_transit", "mount": "transit/burgee"},
            "upstream": {"plugin": "vault_pki", "issuer": "root-2026", "trustedIssuers": ["root-2027"]},
        }
    },
    "vault-jwt": {
        "server": {
            "vault": VAULT | {"namespace": "mesh", "auth": {"method": "jwt", "mount": "jwt/west", "role": "burgee"}},
            "upstream": {"plugin": "vault_pki"},
        }
    },
    "apart": {
        "agent": {
            "namespace": "mesh-agents",
            "trust": {"configMap": {"name": "our-bundle", "key": "roots.pem"}},
            "kubelet": {"caConfigMap": {"name": "kubelet-ca"}, "port": 10251},
            "adminSocketDirectory": "/run/burgee/admin",
            "socket": {"directory": "/run/mesh", "name": "socket"},
            "maxUnavailable": "10%",
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [{"matchExpressions": [{"key": "mesh", "operator": "Exists"}]}]
                    }
                }
            },
        },
        "csiDriver": {"enabled": False},
    },
    "watched": {
        "monitoring": {
            kind: {"enabled": True, "labels": {"release": "prometheus"}}
            for kind in ("serviceMonitor", "prometheusRule")
        },
        "networkPolicy": {"monitoringNamespace": "monitoring", "agentCidrs": ["192.0.2.0/24", "2001:db8::/32"]},
        "imagePullSecrets": ["pull"],
        "image": {"repository": "registry.test/burgee", "digest": "sha256:" + "ab" * 32},
        "server": {
            "service": {"type": "LoadBalancer", "port": 443, "annotations": {"a": "b"}},
            "persistence": {"size": "10Gi", "storageClass": "fast", "whenDeleted": "Delete"},
            "podLabels": {"team": "mesh"},
            "podAnnotations": {"note": "1"},
            "nodeSelector": {"pool": "system"},
            "tolerations": [{"key": "system", "operator": "Exists"}],
            "priorityClassName": "system-cluster-critical",
            "podDisruptionBudget": {"maxUnavailable": 0},
            "clusterTrustBundle": {"enabled": True, "signerName": "mesh.example/svid"},
        },
        "agent": {"trust": {"insecureBootstrap": True}, "kubelet": {"skipVerification": True}},
    },
    "istio": {
        "istio": {
            "enabled": True,
            "namespaces": ["default", "istio-system"],
            "impersonators": ["istio-system/ztunnel"],
            "dnsNames": ["ca.mesh.example"],
        },
        "agent": {"socket": {"name": "socket"}},
    },
    "istio-everywhere": {"istio": {"enabled": True, "namespaces": ["*"], "publishRoot": False, "maxTtlSeconds": 1800}},
    "agents-alone": {
        "server": {"enabled": False},
        "agent": {"servers": ["burgee.example.org:443"], "trust": {"bundleUrl": "https://burgee.example.org/bundle"}},
    },
    "server-alone": {
        "agent": {"enabled": False},
        "controller": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "server": {"podDisruptionBudget": {"enabled": False}, "topologySpreadConstraints": []},
    },
}
"""By name, over the trust domain, which each has."""


def helm(*arguments: str | Path, kubeconfig: Path | None = None, fails: bool = False) -> str:
    """What helm prints; what it complains of where it `fails`."""
    with tempfile.TemporaryDirectory(prefix="bg-helm-") as home:
        environment = {f"HELM_{kind}_HOME": home for kind in ("CACHE", "CONFIG", "DATA")}
        environment |= {"PATH": os.environ["PATH"], "HOME": home, "KUBECONFIG": str(kubeconfig or Path(home) / "none")}
        done = subprocess.run(
            [go_program("helm"), *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=120
        )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


def kubectl() -> Path:
    """The program, of the API server's own version."""
    path = CACHE / "bin" / "kubectl"
    require("kubectl 1.37", path.exists(), "install Go, then bash tests/support/build-go.sh")
    return path


def values_file(directory: Path, values: Values, *, trust_domain: str = "example.org") -> Path:
    path = directory / "values.yaml"
    path.write_text(yaml.safe_dump({"trustDomain": trust_domain} | values))
    return path


def rendered(directory: Path, values: Values, *, namespace: str = "burgee") -> list[Object]:
    """The objects of a release called burgee, to keep."""
    text = _template(values_file(directory, values).read_text(), namespace)
    return [value for value in yaml.safe_load_all(text) if value]


@functools.cache
def _template(values: str, namespace: str) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(values)
        file.flush()
        return helm("template", "burgee", CHART, "-n", namespace, "-f", file.name)


def named(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = [one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def config_of(objects: list[Object], who: str) -> str:
    """The text of the configuration file of `server`, `agent` or `controller`."""
    text: str = named(objects, "ConfigMap", f"burgee-{who}")["data"][f"{who}.yaml"]
    return text
