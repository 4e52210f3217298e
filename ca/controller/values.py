"""What of the cluster's objects counts, as frozen values; how a kubelet reports a pod's probes is nothing to us."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ca.controller.templates import TRUE
from ca.runtime.kube_watch import Object

MAX_VALUE_CHARACTERS = 2048
"""Annotations that are longer are left out: no template could use them."""
MAX_ANNOTATION_CHARACTERS = 8192
"""Of one object's annotations so much is kept, the shortest first: whoever may make pods must not fill our memory."""
MAX_LABEL_CHARACTERS = 32_768
"""A pod with more labels than that is nobody. None is left out, for a selector may ask that one is not there."""
_ENDED = ("Succeeded", "Failed")
_MIRROR = "kubernetes.io/config.mirror"
_POD_SPEC = {
    "serviceAccountName": "ServiceAccountName",
    "serviceAccount": "DeprecatedServiceAccount",
    "nodeName": "NodeName",
    "hostname": "Hostname",
    "subdomain": "Subdomain",
    "schedulerName": "SchedulerName",
    "priorityClassName": "PriorityClassName",
    "restartPolicy": "RestartPolicy",
    "dnsPolicy": "DNSPolicy",
}
"""As it is on the wire, and as Go names it: so do templates."""
_POD_FLAGS = {"hostNetwork": "HostNetwork", "hostPID": "HostPID", "hostIPC": "HostIPC"}


@dataclass(frozen=True, slots=True)
class Meta:
    """Metadata of a node, a namespace or a pod."""

    name: str
    uid: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    namespace: str = ""
    generate_name: str = ""

    def fields(self, prefix: str) -> Iterator[tuple[str, str]]:
        """As templates name them."""
        yield f"{prefix}.Name", self.name
        yield f"{prefix}.UID", self.uid
        if self.namespace:
            yield f"{prefix}.Namespace", self.namespace
        if self.generate_name:
            yield f"{prefix}.GenerateName", self.generate_name
        for key, value in self.labels.items():
            yield f"{prefix}.Labels.{key}", value
        for key, value in self.annotations.items():
            yield f"{prefix}.Annotations.{key}", value


@dataclass(frozen=True, slots=True)
class Pod:
    """`ended` ones run no more and never will; `spec` has the fields that templates name.

    A kubelet makes `mirror` ones for what its node runs by itself: all that they say is that node's word.
    """

    meta: Meta
    spec: Mapping[str, str]
    ended: bool
    mirror: bool = False

    @property
    def uid(self) -> str:
        return self.meta.uid

    @property
    def node(self) -> str:
        return self.spec.get("NodeName", "")


@dataclass(frozen=True, slots=True)
class Resource:
    """One of our own kinds. `status` is what was written last, by whomever."""

    kind: str
    name: str
    uid: str
    generation: int
    created: str
    spec: Mapping[str, Any]
    status: Mapping[str, Any]

    @property
    def rank(self) -> tuple[str, str]:
        """The oldest first: it keeps what two want."""
        return self.created, self.uid

    def same_spec(self, other: Resource | None) -> bool:
        return other is not None and (self.uid, self.spec) == (other.uid, other.spec)


@dataclass(frozen=True, slots=True)
class Slice:
    """Which pods a service leads to, from an EndpointSlice."""

    namespace: str
    service: str
    pods: frozenset[str]


def read_meta(value: Object) -> Meta:
    meta = _mapping(value, "metadata")
    return Meta(
        name=_text(meta, "name"),
        uid=_text(meta, "uid"),
        namespace=_text(meta, "namespace"),
        labels=_texts(meta, "labels"),
        annotations=_shortest(_texts(meta, "annotations")),
        generate_name=_text(meta, "generateName"),
    )


def read_pod(value: Object) -> Pod | None:
    meta, spec, status = read_meta(value), _mapping(value, "spec"), _mapping(value, "status")
    if not meta.uid or not meta.namespace or _length(meta.labels) > MAX_LABEL_CHARACTERS:
        return None
    fields = {field: found for name, field in _POD_SPEC.items() if (found := _text(spec, name))}
    fields |= _flags(spec, _POD_FLAGS)
    fields |= {f"NodeSelector.{name}": text for name, text in _texts(spec, "nodeSelector").items()}
    mirror = _MIRROR in _mapping(_mapping(value, "metadata"), "annotations")  # however long its value is
    return Pod(meta, fields, _text(status, "phase") in _ENDED, mirror)


def read_node_spec(value: Object) -> Mapping[str, str]:
    spec = _mapping(value, "spec")
    fields = {"PodCIDR": _text(spec, "podCIDR"), "ProviderID": _text(spec, "providerID")}
    return fields | _flags(spec, {"unschedulable": "Unschedulable"})


def read_resource(value: Object) -> Resource | None:
    meta = _mapping(value, "metadata")
    uid, generation = _text(meta, "uid"), meta.get("generation")
    if not uid:
        return None
    return Resource(
        kind=_text(value, "kind"),
        name=_text(meta, "name"),
        uid=uid,
        generation=generation if isinstance(generation, int) else 0,
        created=_text(meta, "creationTimestamp"),
        spec=_mapping(value, "spec"),
        status=_mapping(value, "status"),
    )


def read_slice(value: Object) -> Slice | None:
    meta = read_meta(value)
    service = meta.labels.get("kubernetes.io/service-name", "")
    endpoints = value.get("endpoints")
    endpoints = endpoints if isinstance(endpoints, list) else []
    targets = [_mapping(one, "targetRef") for one in endpoints if isinstance(one, dict)]
    pods = frozenset(_text(target, "uid") for target in targets if _text(target, "kind") == "Pod")
    return Slice(meta.namespace, service, pods) if service and pods else None


def _mapping(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def _text(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key)
    return found if isinstance(found, str) else ""


def _shortest(texts: Mapping[str, str]) -> Mapping[str, str]:
    if _length(texts) <= MAX_ANNOTATION_CHARACTERS:
        return texts
    kept, length = dict[str, str](), 0
    for name, text in sorted(texts.items(), key=lambda item: (len(item[0]) + len(item[1]), item[0])):
        length += len(name) + len(text)
        if length > MAX_ANNOTATION_CHARACTERS:
            break
        kept[name] = text
    return kept


def _length(texts: Mapping[str, str]) -> int:
    return sum(len(name) + len(text) for name, text in texts.items())


def _flags(value: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    """Those that are true."""
    return {field: TRUE for name, field in names.items() if value.get(name) is True}


def _texts(value: Mapping[str, Any], key: str) -> Mapping[str, str]:
    return {
        name: text
        for name, text in _mapping(value, key).items()
        if isinstance(text, str) and len(text) <= MAX_VALUE_CHARACTERS
    }
