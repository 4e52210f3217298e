"""One object of Kubernetes that is a copy of ours: made, kept as it should be, and told from other people's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ca.errors import AlreadyExists, FailedPrecondition, NotFound, Unavailable
from ca.identity.spiffe_id import TrustDomain
from ca.publish.form import foreign
from ca.runtime.kube import KubeClient, object_path
from ca.runtime.kube_watch import Object, version_of

MARK = "burgee.dev/trust-domain"
"""The annotation that says whose copy an object is."""
LABELS = {"app.kubernetes.io/managed-by": "burgee"}
SOURCE = "the Kubernetes API"
TRIES = 3

_HINT = f"choose another name; to hand the object over, annotate it with `{MARK}: {{}}`"

Wanted = Mapping[str, Any]


def open_client(kube_config_file: Path | None) -> KubeClient:
    """By the kubeconfig, or without one as the service account of this pod. Raises ConfigError (KUBE_CONFIG)."""
    if kube_config_file is None:
        return KubeClient.in_cluster(source=SOURCE)
    return KubeClient.from_kubeconfig(kube_config_file, source=SOURCE)


class KubeCopy:
    """The object `name` in `collection`, whose `head` is its apiVersion and kind."""

    def __init__(
        self,
        client: KubeClient,
        *,
        collection: str,
        name: str,
        head: Mapping[str, str],
        trust_domain: TrustDomain,
        where: str,
    ) -> None:
        self._client = client
        self._collection = collection
        self._path = object_path(collection, name)
        self._name = name
        self._head = dict(head)
        self._trust_domain = trust_domain
        self._where = where
        self.version = ""
        """The object's resourceVersion, as it was when it had what was wanted."""

    async def keep(self, wanted: Wanted, labels: Mapping[str, str]) -> bool:
        """Makes the object have the values of `wanted` (a member → its keys → values), and says whether it had to.

        Other keys, labels and annotations stay. Raises FailedPrecondition PUBLISH_FOREIGN, and what the client raises.
        """
        for _ in range(TRIES):
            try:
                found = await self._client.get(self._path)
            except NotFound:
                if await self._made(wanted, labels):
                    return True
                continue  # somebody was faster: look whose it is
            self._require_ours(found)
            if _has(found, wanted) and _has(found, {"metadata": {"labels": labels}}):
                self.version = version_of(found)
                return False
            try:
                self.version = version_of(await self._client.patch(self._path, self._change(found, wanted, labels)))
            except FailedPrecondition:
                continue  # it changed between our looking and our writing
            return True
        raise Unavailable(f"{self._where} changes all the time", reason="PUBLISH_CONFLICT")

    async def _made(self, wanted: Wanted, labels: Mapping[str, str]) -> bool:
        meta = {"name": self._name, "labels": dict(labels), "annotations": {MARK: self._trust_domain.name}}
        try:
            made = await self._client.create(self._collection, {**self._head, "metadata": meta, **wanted})
        except AlreadyExists:
            return False
        self.version = version_of(made)
        return True

    def _require_ours(self, found: Object) -> None:
        version_of(found)  # whatever has none is no object
        marks = found["metadata"].get("annotations")
        if not isinstance(marks, dict) or marks.get(MARK) != self._trust_domain.name:
            raise foreign(self._where, _HINT.format(self._trust_domain.name))

    def _change(self, found: Object, wanted: Wanted, labels: Mapping[str, str]) -> Wanted:
        """A merge patch that holds for the version that was looked at alone."""
        return {**wanted, "metadata": {"resourceVersion": version_of(found), "labels": dict(labels)}}


def _has(found: Any, wanted: Any) -> bool:
    """Whether all that is wanted is there."""
    if not isinstance(wanted, Mapping):
        return bool(found == wanted)
    return isinstance(found, Mapping) and all(_has(found.get(key), value) for key, value in wanted.items())
