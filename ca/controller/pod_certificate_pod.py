"""The pod that a PodCertificateRequest is for: looked up, compared, and what is certain of it as selectors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from ca.controller.pod_certificate_request import Request
from ca.errors import Denied, NotFound
from ca.identity.selector import Selector
from ca.ports import Clock
from ca.runtime.kube import KubeClient, object_path
from ca.runtime.pod_list import parse_pod
from ca.runtime.pod_selectors import standing_selectors

MAX_NODES = 10_000
NODE_FRESH_SECONDS = 10.0
"""So long a node that was there is believed to be."""
_ENDED = ("Succeeded", "Failed")


class PodFinder:
    """Asks the API server for each pod, and for each node once in a while."""

    def __init__(self, kube: KubeClient, signer: str, clock: Clock) -> None:
        self._kube = kube
        self._signer = signer
        self._clock = clock
        self._nodes: OrderedDict[tuple[str, str], float] = OrderedDict()

    async def selectors(self, request: Request) -> frozenset[Selector]:
        """Of the pod that is there now. Raises Denied (K8S_*), and what the client raises."""
        try:
            value = await self._kube.get(object_path("/api/v1/namespaces", request.namespace, "pods", request.pod_name))
        except NotFound as error:
            raise Denied("the pod is gone", reason="K8S_POD_DELETED") from error
        pod = parse_pod(value)
        if pod.uid != request.pod_uid:
            raise Denied("there is another pod of this name", reason="K8S_POD_UID")
        if pod.service_account != request.account:
            raise Denied("the pod has another service account", reason="K8S_POD_ACCOUNT")
        if pod.node_name != request.node_name:
            raise Denied("the pod is bound to another node", reason="K8S_NODE_MISMATCH")
        if value["metadata"].get("deletionTimestamp"):
            raise Denied("the pod is being deleted", reason="K8S_POD_DELETED")
        if _mapping(value, "status").get("phase") in _ENDED:
            raise Denied("the pod has ended", reason="K8S_POD_ENDED")
        if self._signer not in _signers(value):
            raise Denied("the pod mounts no certificate of this signer", reason="K8S_POD_NO_VOLUME")
        await self._check_node(request)
        return frozenset(Selector("k8s", text) for text in standing_selectors(pod))

    async def _check_node(self, request: Request) -> None:
        """A kubelet cannot say another node; who else may create requests could."""
        name, now = request.node_name, self._clock.monotonic()
        known = (name, request.node_uid)
        if now - self._nodes.get(known, float("-inf")) < NODE_FRESH_SECONDS:
            return
        self._nodes.pop(known, None)
        try:
            node = await self._kube.get(object_path("/api/v1/nodes", name))
        except NotFound as error:
            raise Denied("the node is not known to its cluster", reason="K8S_NODE_UNKNOWN") from error
        if _mapping(node, "metadata").get("uid") != request.node_uid:
            raise Denied("there is another node of this name", reason="K8S_NODE_MISMATCH")
        self._nodes[known] = now
        if len(self._nodes) > MAX_NODES:
            self._nodes.popitem(last=False)


def _signers(pod: Mapping[str, Any]) -> set[str]:
    """Of all certificates that the pod's volumes ask for."""
    found = set()
    for volume in _list(_mapping(pod, "spec"), "volumes"):
        for source in _list(_mapping(volume, "projected"), "sources"):
            found.add(str(_mapping(source, "podCertificate").get("signerName")))
    return found


def _mapping(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def _list(value: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = value.get(key)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
