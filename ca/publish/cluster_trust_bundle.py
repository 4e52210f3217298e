"""The trust bundle as a ClusterTrustBundle, which pods of every namespace can project into a volume."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from ca.identity.bundle import TrustBundle
from ca.identity.signer_name import DEFAULT_SIGNER, bundle_prefix
from ca.ports import AuthorityHost, BundlePublisherPlugin
from ca.publish.form import Form, text_of
from ca.publish.kube_copy import LABELS, KubeCopy, open_client
from ca.runtime.config import StrictModel
from ca.runtime.config_values import SignerName

COLLECTION = "/apis/certificates.k8s.io/v1/clustertrustbundles"
_DNS = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?"

BundleName = Annotated[str, StringConstraints(pattern=rf"^({_DNS}:{_DNS}:)?{_DNS}\z", max_length=253)]
LabelKey = Annotated[str, StringConstraints(pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?\z")]
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?\z")]


class ClusterTrustBundleConfig(StrictModel):
    """Which ClusterTrustBundle. It holds X.509 authorities alone."""

    signer_name: SignerName | None = DEFAULT_SIGNER
    """The signer whose certificates it verifies, `domain/path`; null for a bundle that is no signer's. Writing it takes
    the permission to `attest` for that signer."""

    name: BundleName | None = None
    """The object's name. It begins with the signer's, with colons; by default the trust domain stands behind that."""

    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    """More labels, for pods that choose by `signerName` and `labelSelector`."""

    kube_config_file: Path | None = None
    """A kubeconfig whose current context leads to the cluster; without one the server runs in a pod there and comes as
    its service account."""

    @model_validator(mode="after")
    def _names(self) -> ClusterTrustBundleConfig:
        prefix = bundle_prefix(self.signer_name) if self.signer_name else ""
        if self.name is not None and prefix and not self.name.startswith(prefix):
            raise ValueError(f"`name` must begin with `{prefix}`, as `signer_name` has it")
        if self.name is not None and not prefix and ":" in self.name:
            raise ValueError("a `name` with colons is a signer's: name it as `signer_name`")
        return self

    def object_name(self, trust_domain: str) -> str:
        """The name, with its default filled in."""
        prefix = bundle_prefix(self.signer_name) if self.signer_name else ""
        return self.name or prefix + trust_domain.replace("_", "-")


class ClusterTrustBundlePublisher:
    """One ClusterTrustBundle."""

    def __init__(self, config: ClusterTrustBundleConfig, host: AuthorityHost) -> None:
        name = config.object_name(host.trust_domain.name)
        self._signer = config.signer_name
        self._labels = config.labels | LABELS
        self._where = f"ClusterTrustBundle `{name}`"
        self._client = open_client(config.kube_config_file)
        self._copy = KubeCopy(
            self._client,
            collection=COLLECTION,
            name=name,
            head={"apiVersion": "certificates.k8s.io/v1", "kind": "ClusterTrustBundle"},
            trust_domain=host.trust_domain,
            where=self._where,
        )

    @property
    def where(self) -> str:
        return self._where

    async def publish(self, bundle: TrustBundle) -> bool:
        spec = {"trustBundle": text_of(bundle, Form.PEM)}
        if self._signer:
            spec["signerName"] = self._signer
        return await self._copy.keep({"spec": spec}, self._labels)

    async def close(self) -> None:
        self._client.close()


plugin = BundlePublisherPlugin(
    name="cluster_trust_bundle", config=ClusterTrustBundleConfig, publisher=ClusterTrustBundlePublisher
)
