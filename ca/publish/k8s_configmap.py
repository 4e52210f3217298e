"""The trust bundle under a key of a ConfigMap, for pods that mount it and programs that read it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints

from ca.identity.bundle import TrustBundle
from ca.ports import AuthorityHost, BundlePublisherPlugin
from ca.publish.form import Form, text_of
from ca.publish.kube_copy import LABELS, KubeCopy, open_client
from ca.runtime.config import StrictModel
from ca.runtime.kube import object_path

Namespace = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\z")]
ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?\z")]
Key = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,253}\z")]


class ConfigMapPublisherConfig(StrictModel):
    """Which ConfigMap, and how the bundle looks there."""

    namespace: Namespace
    """Where it is."""

    config_map: ObjectName = "burgee-bundle"
    """Its name. It is made if there is none."""

    config_map_key: Key = "bundle.crt"
    """The key in `data`. Other keys stay as they are."""

    format: Form = Form.PEM
    """`pem` for the X.509 authorities, `spiffe` for the whole SPIFFE bundle document."""

    kube_config_file: Path | None = None
    """A kubeconfig whose current context leads to the cluster; without one the server runs in a pod there and comes as
    its service account."""


class ConfigMapPublisher:
    """One key of one ConfigMap."""

    def __init__(self, config: ConfigMapPublisherConfig, host: AuthorityHost) -> None:
        self._key = config.config_map_key
        self._form = config.format
        self._where = f"ConfigMap `{config.namespace}/{config.config_map}`"
        self._client = open_client(config.kube_config_file)
        self._copy = KubeCopy(
            self._client,
            collection=object_path("/api/v1/namespaces", config.namespace, "configmaps"),
            name=config.config_map,
            head={"apiVersion": "v1", "kind": "ConfigMap"},
            trust_domain=host.trust_domain,
            where=self._where,
        )

    @property
    def where(self) -> str:
        return self._where

    async def publish(self, bundle: TrustBundle) -> bool:
        return await self._copy.keep({"data": {self._key: text_of(bundle, self._form)}}, LABELS)

    async def close(self) -> None:
        self._client.close()


plugin = BundlePublisherPlugin(name="k8s_configmap", config=ConfigMapPublisherConfig, publisher=ConfigMapPublisher)
