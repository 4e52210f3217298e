"""Node attestation by a projected service account token of Kubernetes: the pod that runs the agent proves its node.

The payload is SPIRE's, `{"cluster": …, "token": …}`. The cluster's API server says whether the token holds; the pod and
the node that it was made for are looked up there, and must be the very ones (by UID) that exist now.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints

from attestor.node.psat_check import token_findings
from ca.errors import BurgeeError, Denied, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from ca.identity.selector import Selector
from ca.identity.text import quote
from ca.ports import AttestedNode, Challenge, Finding, FindingLevel, NodeAttestorPlugin, NodeHost
from ca.runtime.config import StrictModel
from ca.runtime.elsewhere import elsewhere
from ca.runtime.kube import object_path
from ca.runtime.kube_cluster import UID, node_of_pod, open_cluster, outward, pod_of_token, refuse_ended, text_at
from ca.runtime.kube_permissions import OF_SERVER
from ca.runtime.kube_permissions import findings as permissions
from ca.runtime.notes import note
from ca.runtime.token_review import MAX_TOKEN_BYTES, ReviewedToken, is_token, review

NAME = "k8s_psat"
PATH_PREFIX = f"/spire/agent/{NAME}/"
TOKEN_PATH = Path("/var/run/secrets/tokens/spire-agent")
MAX_PAYLOAD_BYTES = MAX_TOKEN_BYTES + 1024

_ACCOUNT = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?:[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def _account(text: str) -> str:
    if _ACCOUNT.fullmatch(text) is None:
        raise ValueError("must be `namespace:service-account`")
    return text


ClusterName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,252}\z")]
"""One segment of the agent's SPIFFE ID."""


class ClusterConfig(StrictModel):
    """One cluster whose pods may attest."""

    service_account_allow_list: tuple[Annotated[str, AfterValidator(_account)], ...] = Field(
        min_length=1,
        description="The service accounts whose pods may be agents, each `namespace:service-account`. Whoever can make "
        "pods with one of them can make agents.",
    )
    audience: tuple[Annotated[str, StringConstraints(min_length=1, max_length=1024)], ...] = Field(
        default=("spire-server",), min_length=1, description="The token must be for one of these audiences."
    )
    kube_config_file: Path | None = Field(
        default=None,
        description="A kubeconfig whose current context leads to the cluster's API server, by token, token file or "
        "client certificate. Without one the server runs in a pod of this cluster and comes as its service account.",
    )
    allowed_node_label_keys: tuple[str, ...] = Field(
        default=(), description="Labels of the node that become selectors. Kubelets can set some of their own."
    )
    allowed_pod_label_keys: tuple[str, ...] = Field(
        default=(), description="Labels of the agent's pod that become selectors."
    )
    use_pod_uid_for_agent_id: bool = Field(
        default=False,
        description="Name agents after their pod instead of their node: for several agents on one node, or nodes "
        "without a UID of their own. A new pod is then a new agent.",
    )
    timeout_seconds: float = Field(
        default=10.0, gt=0, le=30, description="For each of the three questions to the API server."
    )


class ServerConfig(StrictModel):
    """The clusters whose nodes may attest, by the name that their agents say."""

    clusters: dict[ClusterName, ClusterConfig] = Field(min_length=1, description="The clusters, by name.")


class AgentConfig(StrictModel):
    """What the agent in a pod presents."""

    cluster: ClusterName = Field(description="The cluster's name in the server's configuration.")
    token_path: Path = Field(
        default=TOKEN_PATH,
        description="The projected service account token. The kubelet renews it; it is read at each attestation.",
    )


@dataclass(frozen=True, kw_only=True)
class Found:
    """The pod and the node that a token was made for, as the API server has them now."""

    token: ReviewedToken
    pod: Mapping[str, Any]
    node: Mapping[str, Any]

    @property
    def pod_name(self) -> str:
        return text_at(self.pod, "metadata", "name")

    @property
    def pod_uid(self) -> str:
        return text_at(self.pod, "metadata", "uid")

    @property
    def node_name(self) -> str:
        return text_at(self.node, "metadata", "name")

    @property
    def node_uid(self) -> str:
        return text_at(self.node, "metadata", "uid")


class PsatVerifier:
    """Server half."""

    def __init__(self, config: ServerConfig, host: NodeHost) -> None:
        self._host = host
        self._clusters = {name: _Cluster(name, cluster) for name, cluster in config.clusters.items()}

    async def verify(self, payload: bytes, challenge: Challenge) -> AttestedNode:
        name, token = _parse(payload)
        cluster = self._clusters.get(name)
        if cluster is None:
            raise Denied(
                f"no cluster {quote(name)} is configured here",
                reason="K8S_CLUSTER_UNKNOWN",
                hint="compare the agent's `cluster` with the server's `clusters`",
            )
        try:
            async with elsewhere():
                found = await cluster.find(token, self._host)
        except BurgeeError as error:
            note("refused", f"{error.reason}: {error.detail}")
            if (told := outward(error, name, "attest anybody")) is error:
                raise
            raise told from error
        return cluster.attested(found)

    async def check(self) -> Sequence[Finding]:
        """Whether each cluster's API server answers, and grants what is asked of it."""
        groups = await asyncio.gather(*(cluster.check() for cluster in self._clusters.values()))
        return [finding for group in groups for finding in group]


class _Cluster:
    def __init__(self, name: str, config: ClusterConfig) -> None:
        self._name = name
        self._config = config
        self._api = open_cluster(name, config.kube_config_file, config.timeout_seconds)

    async def find(self, text: str, host: NodeHost) -> Found:
        """Token, service account, pod, node, in this order: each is worth asking for only if what it rests on holds.

        Few are asked for at once: whoever waits for that does not wait for ever."""
        try:
            async with asyncio.timeout(3 * self._config.timeout_seconds):
                return await self._find(text, host)
        except TimeoutError as error:
            raise Unavailable("the API server answers too slowly for all who wait", reason="KUBE_STATUS") from error

    async def _find(self, text: str, host: NodeHost) -> Found:
        token = await review(self._api, text, self._config.audience, now=host.clock.now())
        self._check_account(token)
        pod = await pod_of_token(self._api, token)
        refuse_ended(pod)
        node = await self._node(token, node_of_pod(pod))
        return Found(token=token, pod=pod, node=node)

    async def check(self) -> Sequence[Finding]:
        return await permissions(self._api, OF_SERVER, prefix=f"cluster {self._name}:")

    def attested(self, found: Found) -> AttestedNode:
        uid = found.pod_uid if self._config.use_pod_uid_for_agent_id else found.node_uid
        form = "pod/" if self._config.use_pod_uid_for_agent_id else ""
        return AttestedNode(
            path=f"{PATH_PREFIX}{self._name}/{form}{uid}", selectors=self._selectors(found), reattestable=True
        )

    def _check_account(self, token: ReviewedToken) -> None:
        account = f"{token.namespace}:{token.account}"
        note("service account", account)
        if account not in self._config.service_account_allow_list:
            raise Denied(
                f"service account {quote(account)} may not attest nodes",
                reason="K8S_SERVICE_ACCOUNT",
                hint="see the server's `service_account_allow_list`",
            )

    async def _node(self, token: ReviewedToken, name: str) -> Mapping[str, Any]:
        """The node that the pod is bound to. What the token says of it, where it does, must be the same."""
        try:
            node = await self._api.get(object_path("/api/v1/nodes", name))
        except NotFound as error:
            raise Denied("the node of the pod is not known to its cluster", reason="K8S_NODE_UNKNOWN") from error
        uid = text_at(node, "metadata", "uid")
        token_node = f"token for {token.node_name or 'any'} (UID {token.node_uid or 'any'})"
        note("node", f"{token_node}, the pod is bound to {name} (UID {uid or 'none'})")
        if UID.fullmatch(uid) is None:
            raise Unavailable("the node has no UID that could be a name", reason="KUBE_ANSWER")
        if token.node_name not in (None, name) or token.node_uid not in (None, uid):
            raise Denied("the token was made for another node", reason="K8S_NODE_MISMATCH")
        return node

    def _selectors(self, found: Found) -> frozenset[Selector]:
        values = {
            f"cluster:{self._name}",
            f"agent_ns:{found.token.namespace}",
            f"agent_sa:{found.token.account}",
            f"agent_pod_name:{found.pod_name}",
            f"agent_pod_uid:{found.pod_uid}",
            f"agent_node_name:{found.node_name}",
            f"agent_node_uid:{found.node_uid}",
        }
        if address := text_at(found.pod, "status", "hostIP"):
            values.add(f"agent_node_ip:{address}")
        values |= _labels("agent_pod_label", found.pod, self._config.allowed_pod_label_keys)
        values |= _labels("agent_node_label", found.node, self._config.allowed_node_label_keys)
        return frozenset(Selector(NAME, value) for value in values)


class PsatProver:
    """Agent half: reads the token anew each time, for the kubelet renews it."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config

    @property
    def can_reattest(self) -> bool:
        return True

    async def payload(self) -> bytes:
        return json.dumps({"cluster": self._config.cluster, "token": self._token()}).encode()

    async def answer(self, challenge: bytes) -> bytes:
        raise FailedPrecondition(
            "the server sent a challenge, which service account tokens do not have", reason="UNEXPECTED_CHALLENGE"
        )

    async def check(self) -> Sequence[Finding]:
        """What the token says of itself."""
        try:
            return token_findings(self._token(), now=datetime.now(UTC))
        except FailedPrecondition as error:
            return [Finding(what="token", level=FindingLevel.FAILED, detail=error.detail, hint=error.hint)]

    def _token(self) -> str:
        path = self._config.token_path
        try:
            with path.open("rb") as file:
                text = file.read(MAX_TOKEN_BYTES + 2).decode("ascii").strip()
        except (OSError, UnicodeDecodeError):
            text = ""
        if not is_token(text):
            raise FailedPrecondition(
                f"there is no service account token in {quote(str(path))}",
                reason="K8S_TOKEN_MISSING",
                hint="mount a projected volume with a serviceAccountToken there",
            )
        return text


def _parse(payload: bytes) -> tuple[str, str]:
    """Cluster and token: two texts, each once, and nothing else."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise InvalidArgument(f"the payload has at most {MAX_PAYLOAD_BYTES} bytes", reason="ATTESTATION_PAYLOAD")
    try:
        pairs = json.loads(payload.decode("utf-8"), object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument("the payload is no JSON", reason="ATTESTATION_PAYLOAD") from error
    fields = dict(pairs) if isinstance(pairs, tuple) and len(pairs) == 2 else {}
    cluster, token = fields.get("cluster"), fields.get("token")
    if not isinstance(cluster, str) or not isinstance(token, str):
        raise InvalidArgument("the payload is not a `cluster` and a `token`", reason="ATTESTATION_PAYLOAD")
    if not is_token(token):
        raise InvalidArgument("the payload's token is no JWT", reason="ATTESTATION_PAYLOAD")
    return cluster, token


def _labels(kind: str, value: Mapping[str, Any], allowed: tuple[str, ...]) -> set[str]:
    meta = value.get("metadata")
    labels = meta.get("labels") if isinstance(meta, dict) else None
    if not isinstance(labels, dict):
        return set()
    return {f"{kind}:{key}:{labels[key]}" for key in allowed if isinstance(labels.get(key), str)}


plugin = NodeAttestorPlugin(
    name=NAME,
    server_config=ServerConfig,
    agent_config=AgentConfig,
    verifier=PsatVerifier,
    prover=PsatProver,
)
