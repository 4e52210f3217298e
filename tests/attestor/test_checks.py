"""What attestors of Kubernetes find when they look at what they need: kubelet, token, API server's permissions."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from attestor.node import k8s_psat
from attestor.node.psat_check import token_findings
from attestor.workload import k8s
from ca.identity import base64url
from ca.ports import Checked, Finding, FindingLevel
from ca.runtime.config import from_values
from tests.support.kube import kube_lab
from tests.support.kube_stand_in import KubeStandIn
from tests.support.kubelet import LocalGate, StandInKubelet, pod, status
from tests.support.node_host import FakeHost

NOW = datetime(2026, 6, 1, tzinfo=UTC)
OK, WARNING, FAILED = FindingLevel.OK, FindingLevel.WARNING, FindingLevel.FAILED
GOOD = {"aud": ["spire-server"], "exp": (NOW + timedelta(hours=1)).timestamp(), "kubernetes.io": {"pod": {"name": "a"}}}


def token(**claims: Any) -> str:
    return f"e30.{base64url.encode(json.dumps(GOOD | claims).encode())}.c2ln"


def levels(findings: Sequence[Finding]) -> dict[str, FindingLevel]:
    assert all(finding.hint for finding in findings if finding.level is not OK)
    return {finding.what: finding.level for finding in findings}


class TestToken:
    def test_one_that_will_do(self) -> None:
        assert set(levels(token_findings(token(), now=NOW)).values()) == {OK}
        assert levels(token_findings(token(aud="spire-server"), now=NOW))["token audience"] is OK

    @pytest.mark.parametrize(
        ("claims", "what", "level"),
        [
            ({"aud": ["https://kubernetes"]}, "token audience", WARNING),
            ({"aud": []}, "token audience", FAILED),
            ({"aud": {"spire-server": 1}}, "token audience", FAILED),
            ({"exp": (NOW - timedelta(seconds=1)).timestamp()}, "token life", FAILED),
            ({"exp": "soon"}, "token life", FAILED),
            ({"exp": True}, "token life", FAILED),
            ({"exp": 1e300}, "token life", FAILED),
            ({"kubernetes.io": {}}, "token pod", FAILED),
            ({"kubernetes.io": {"pod": "a"}}, "token pod", FAILED),
        ],
    )
    def test_what_is_wrong_with_one(self, claims: dict[str, Any], what: str, level: FindingLevel) -> None:
        found = levels(token_findings(token(**claims), now=NOW))
        assert found.pop(what) is level
        assert set(found.values()) == {OK}

    @pytest.mark.parametrize("text", ["a.b.c", "a", "e30.W10.c2ln", f"e30.{'W1tb' * 10_000}.c2ln"])
    def test_what_is_no_token_is_no_traceback(self, text: str) -> None:
        assert set(levels(token_findings(text, now=NOW)).values()) == {FAILED}

    async def test_the_agents_half_looks_at_its_file(self, tmp_path: Path) -> None:
        file = tmp_path / "token"
        values = {"cluster": "c", "token_path": str(file)}
        prover = k8s_psat.plugin.prover(from_values(values, k8s_psat.plugin.agent_config))
        assert isinstance(prover, Checked)
        assert levels(await prover.check()) == {"token": FAILED}
        file.write_text(token(exp=time.time() + 600))
        assert set(levels(await prover.check()).values()) == {OK}


def verifier(kubeconfig: Path) -> Checked:
    values = {"clusters": {"c": {"service_account_allow_list": ["a:b"], "kube_config_file": str(kubeconfig)}}}
    made = k8s_psat.plugin.verifier(from_values(values, k8s_psat.plugin.server_config), FakeHost())
    assert isinstance(made, Checked)
    return made


class TestPermissions:
    @pytest.mark.real("kube-apiserver")
    @pytest.mark.xdist_group("kube")
    async def test_the_real_api_server_says_what_it_grants(self) -> None:
        cluster = kube_lab()
        found = levels(await verifier(cluster.kubeconfig()).check())
        assert list(found.values()) == [OK, OK, OK]
        found = levels(await verifier(cluster.kubeconfig(cluster.user("checks-nobody"))).check())
        assert list(found.values()) == [FAILED, FAILED, FAILED]
        assert next(iter(found)) == "cluster c: create tokenreviews of authentication.k8s.io"

    async def test_an_api_server_that_cannot_be_asked(self) -> None:
        stand_in = KubeStandIn().start()
        made = verifier(stand_in.kubeconfig())
        stand_in.stop()
        assert set(levels(await made.check()).values()) == {FAILED}


class TestKubelet:
    async def found(self, kubelet: StandInKubelet, directory: Path, secret: str) -> dict[str, FindingLevel]:
        config = from_values(kubelet.config(directory, secret), k8s.plugin.config)
        attestor = k8s.plugin.attestor(config)
        assert isinstance(attestor, Checked)
        return levels(await attestor.check())

    async def test_permission(self, tmp_path: Path) -> None:
        with StandInKubelet(lambda: [pod("web", status("main", "ab" * 32))], LocalGate(agent="secret")) as kubelet:
            assert await self.found(kubelet, tmp_path, "secret") == {"kubelet permission": OK}
            assert await self.found(kubelet, tmp_path, "another") == {"kubelet permission": FAILED}
        assert await self.found(kubelet, tmp_path, "secret") == {"kubelet permission": FAILED}
