"""The bundle publishers that the contract is asked of, each with the place where its copies are, and hands on that."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ca.ports import BundlePublisher, BundlePublisherPlugin
from ca.publish import cluster_trust_bundle, file, k8s_configmap
from ca.runtime.config import from_values
from tests.support.authority_host import authority_host
from tests.support.kube import Object, Refused, fresh, kube_lab

BUNDLES = "/apis/certificates.k8s.io/v1/clustertrustbundles"
_numbers = itertools.count(1)


@dataclass(kw_only=True)
class Stand:
    """`read` gives the copy's text, None where there is none; `spoil` writes another text into it, `remove` takes it
    away. `occupy` makes what somebody else would have at the place, and `others` says how that is now. `block` makes
    the place unreachable, `heal` undoes that."""

    plugin: BundlePublisherPlugin
    values: dict[str, Any]
    directory: Path
    read: Callable[[], str | None]
    spoil: Callable[[], object]
    remove: Callable[[], object]
    occupy: Callable[[], object]
    others: Callable[[], object]
    block: Callable[[], object]
    heal: Callable[[], object]

    def open(self, trust_domain: str = "example.org") -> BundlePublisher:
        """A publisher of a server of that trust domain."""
        config = from_values(self.values, self.plugin.config, name="config")
        publisher: BundlePublisher = self.plugin.publisher(
            config, authority_host(self.directory, trust_domain=trust_domain)
        )
        return publisher


def file_stand(directory: Path, form: str = "pem") -> Stand:
    place = directory / "place"
    place.mkdir()
    path = place / "bundle"
    return Stand(
        plugin=file.plugin,
        values={"path": str(path), "format": form},
        directory=directory,
        read=lambda: path.read_text() if path.exists() else None,
        spoil=lambda: path.write_text(path.read_text().replace("MII", "MIX").replace('"keys"', '"kez"')),
        remove=path.unlink,
        occupy=lambda: path.write_text("root:x:0:0\n"),
        others=lambda: path.read_text(),
        block=lambda: place.rename(directory / "away"),
        heal=lambda: (directory / "away").rename(place),
    )


def _kube_stand(
    plugin: BundlePublisherPlugin,
    directory: Path,
    path: str,
    own: dict[str, Any],
    texts: Callable[[Object], str],
    spoiled: Object,
    occupied: Object,
) -> Stand:
    cluster = kube_lab()
    collection, _, name = path.rpartition("/")
    kubeconfig = directory / "kubeconfig"
    good = cluster.kubeconfig().read_text()
    kubeconfig.write_text(good)

    def get() -> Object | None:
        try:
            return cluster.admin.call("GET", path)
        except Refused as refused:
            if refused.status != 404:
                raise
            return None

    def read() -> str | None:
        found = get()
        return None if found is None else texts(found)

    def others() -> object:
        found = get()
        assert found is not None
        return found["metadata"]["resourceVersion"]

    return Stand(
        plugin=plugin,
        values={**own, "kube_config_file": str(kubeconfig)},
        directory=directory,
        read=read,
        spoil=lambda: cluster.admin.call("PATCH", path, spoiled),
        remove=lambda: cluster.admin.call("DELETE", path),
        occupy=lambda: cluster.admin.call("POST", collection, {**occupied, "metadata": {"name": name}}),
        others=others,
        block=lambda: kubeconfig.write_text(good.replace(f":{cluster.port}", ":1")),
        heal=lambda: kubeconfig.write_text(good + "\n"),
    )


def config_map_stand(directory: Path) -> Stand:
    namespace, name = kube_lab().namespace(), fresh("bundle")
    return _kube_stand(
        k8s_configmap.plugin,
        directory,
        f"/api/v1/namespaces/{namespace}/configmaps/{name}",
        {"namespace": namespace, "config_map": name},
        lambda found: str(found["data"]["bundle.crt"]),
        {"data": {"bundle.crt": "nothing"}},
        {"apiVersion": "v1", "kind": "ConfigMap", "data": {"bundle.crt": "theirs"}},
    )


def trust_bundle_stand(directory: Path) -> Stand:
    signer = f"t{next(_numbers)}.example.com/svid"
    name = f"{signer.replace('/', ':')}:example.org"
    other = kube_lab().ca.pem.decode()
    return _kube_stand(
        cluster_trust_bundle.plugin,
        directory,
        f"{BUNDLES}/{name}",
        {"signer_name": signer, "name": name},
        lambda found: str(found["spec"]["trustBundle"]),
        {"spec": {"trustBundle": other}},
        {
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "ClusterTrustBundle",
            "spec": {"signerName": signer, "trustBundle": other},
        },
    )


STANDS: dict[str, Callable[[Path], Stand]] = {
    "file": file_stand,
    "file-spiffe": lambda directory: file_stand(directory, "spiffe"),
    "k8s_configmap": config_map_stand,
    "cluster_trust_bundle": trust_bundle_stand,
}
