"""What a kubelet or an API server says of pods: the few fields that count, out of core/v1 in JSON.

The rest of a pod, ten times as much, is never made an object of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from ca.errors import Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStatus:
    """One container as the runtime runs it; `container_id` is empty until it does. `image_id` has the digest."""

    name: str
    container_id: str
    image: str
    image_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """An owner reference."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod. Restartable init containers (sidecars) are in `init_containers`, as Kubernetes has them."""

    uid: str
    config_hash: str
    name: str
    namespace: str
    service_account: str
    node_name: str
    labels: tuple[tuple[str, str], ...]
    owners: tuple[Owner, ...]
    containers: tuple[ContainerStatus, ...]
    init_containers: tuple[ContainerStatus, ...]
    ephemeral_containers: tuple[ContainerStatus, ...]

    def all_containers(self) -> Iterator[ContainerStatus]:
        """Of all three kinds."""
        yield from self.containers
        yield from self.init_containers
        yield from self.ephemeral_containers


@dataclass(frozen=True, kw_only=True)
class Pods:
    """Pods by UID (and what static pods are called in cgroups), and by the ids of their containers.

    What two pods claim belongs to neither: it is in `claimed_twice` alone. `malformed` counts pods that are none.
    """

    by_uid: Mapping[str, Pod]
    by_container: Mapping[str, tuple[Pod, ContainerStatus]]
    claimed_twice: frozenset[str]
    malformed: int = 0


def parse_pods(body: bytes) -> Pods:
    """`body` is the answer to GET /pods. Raises Unavailable (KUBELET_ANSWER) when it is no list of pods."""
    try:
        items = _ListJson.model_validate_json(body).items or ()
    except ValidationError as error:
        raise Unavailable("the kubelet's answer is no list of pods", reason="KUBELET_ANSWER") from error
    pods = [_pod(item) for item in items if item is not None]
    return _indexed(pods, malformed=len(items) - len(pods))


def parse_pod(value: Mapping[str, Any]) -> Pod:
    """One pod as the API server has it. Raises Unavailable (KUBE_ANSWER) when it is none."""
    try:
        return _pod(_PodJson.model_validate(value))
    except ValidationError as error:
        raise Unavailable("a Kubernetes API answered with a pod that is none", reason="KUBE_ANSWER") from error


def _indexed(pods: list[Pod], malformed: int) -> Pods:
    by_uid: dict[str, Pod] = {}
    by_container: dict[str, tuple[Pod, ContainerStatus]] = {}
    twice: set[str] = set()
    for pod in pods:
        for name in {pod.uid, pod.config_hash} - {""}:
            if name in by_uid:
                twice.add(name)
            by_uid[name] = pod
        for status in pod.all_containers():
            if status.container_id in by_container:
                twice.add(status.container_id)
            elif status.container_id:
                by_container[status.container_id] = (pod, status)
    for claimed in twice:
        by_uid.pop(claimed, None)
        by_container.pop(claimed, None)
    return Pods(by_uid=by_uid, by_container=by_container, claimed_twice=frozenset(twice), malformed=malformed)


# As it is on the wire. Kubernetes leaves out what is empty, and reads null as empty.

_Text = Annotated[str, Field(pattern=r"^[ -~]*$")]
"""What becomes a selector is printable ASCII, as every name, label and image of Kubernetes is."""
_Name = Annotated[_Text, Field(min_length=1)]


class _Json(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _OwnerJson(_Json):
    kind: _Text = ""
    name: _Text = ""
    uid: _Text = ""


class _AnnotationsJson(_Json):
    """Those of a static pod: what the kubelet calls it in its cgroup, and where it read it. The kubelet itself sets the
    second on every pod: `api` on those whose author might have written the first."""

    config_hash: _Text = Field(default="", alias="kubernetes.io/config.hash")
    config_source: str = Field(default="", alias="kubernetes.io/config.source")


class _MetadataJson(_Json):
    uid: _Name
    name: _Name
    namespace: _Name
    labels: dict[_Text, _Text] | None = None
    annotations: _AnnotationsJson | None = None
    owners: list[_OwnerJson] | None = Field(default=None, alias="ownerReferences")


class _SpecJson(_Json):
    service_account: _Text = Field(default="", alias="serviceAccountName")
    node_name: _Text = Field(default="", alias="nodeName")


class _ContainerJson(_Json):
    name: _Text = ""
    container_id: _Text = Field(default="", alias="containerID")
    image: _Text = ""
    image_id: _Text = Field(default="", alias="imageID")


class _StatusJson(_Json):
    containers: list[_ContainerJson] | None = Field(default=None, alias="containerStatuses")
    init: list[_ContainerJson] | None = Field(default=None, alias="initContainerStatuses")
    ephemeral: list[_ContainerJson] | None = Field(default=None, alias="ephemeralContainerStatuses")


class _PodJson(_Json):
    metadata: _MetadataJson
    spec: _SpecJson = _SpecJson()
    status: _StatusJson = _StatusJson()


class _OrNone:
    """None for what does not fit; its neighbours are none the worse for it."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_default_schema(handler(source), default=None, on_error="default")


class _ListJson(_Json):
    kind: Literal["PodList"]
    items: list[Annotated[_PodJson | None, _OrNone]] | None = None


def _pod(item: _PodJson) -> Pod:
    metadata, status = item.metadata, item.status
    annotations = metadata.annotations or _AnnotationsJson()
    return Pod(
        uid=metadata.uid,
        config_hash=annotations.config_hash if annotations.config_source in ("file", "http") else "",
        name=metadata.name,
        namespace=metadata.namespace,
        service_account=item.spec.service_account,
        node_name=item.spec.node_name,
        labels=tuple((metadata.labels or {}).items()),
        owners=tuple(Owner(kind=one.kind, name=one.name, uid=one.uid) for one in metadata.owners or ()),
        containers=_statuses(status.containers),
        init_containers=_statuses(status.init),
        ephemeral_containers=_statuses(status.ephemeral),
    )


def _statuses(items: list[_ContainerJson] | None) -> tuple[ContainerStatus, ...]:
    """`containerID` is `<runtime>://<id>`."""
    return tuple(
        ContainerStatus(
            name=item.name,
            container_id=item.container_id.rpartition("://")[2],
            image=item.image,
            image_id=item.image_id,
        )
        for item in items or ()
    )
