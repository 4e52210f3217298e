"""Reads policies from YAML and JSON: streams of documents, lists, whole directories' texts.

Everything that is wrong in a text is found in one reading, and nothing of a text is taken if anything is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from policy.authentication import (
    PeerAuthentication,
    RequestAuthentication,
    read_peer_authentication,
    read_request_authentication,
)
from policy.authorization import read_policy
from policy.documents import Node, TooLarge, of_object, read
from policy.fields import Notes, Place
from policy.model import Origin, Policy, Target
from policy.problems import Problem, Refused, shown

ISTIO = ("security.istio.io/v1", "security.istio.io/v1beta1")
OURS = "burgee.io/v1"
DRY_RUN = "istio.io/dry-run"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_METADATA = (
    *("name", "namespace", "labels", "annotations", "uid", "resourceVersion", "generation", "creationTimestamp"),
    *("managedFields", "ownerReferences", "finalizers", "selfLink", "deletionTimestamp", "generateName"),
)


@dataclass(slots=True)
class PolicySet:
    """What a text holds, in its order."""

    policies: tuple[Policy, ...] = ()
    request_authentications: tuple[RequestAuthentication, ...] = ()
    peer_authentications: tuple[PeerAuthentication, ...] = ()
    targets: tuple[Target, ...] = ()
    """Of `Workload` objects."""
    warnings: tuple[Problem, ...] = ()


@dataclass(slots=True)
class _Objects:
    """Reads objects into a set."""

    notes: Notes
    default_namespace: str
    jwks_hosts: frozenset[str]
    policies: list[Policy] = field(default_factory=list)
    request: list[RequestAuthentication] = field(default_factory=list)
    peer: list[PeerAuthentication] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    seen: set[tuple[str, str, str]] = field(default_factory=set)

    def add(self, place: Place, *, in_list: bool = False) -> None:
        value = place.node.value
        if isinstance(value, list) and not in_list:
            for item in place.items():
                self.add(item, in_list=True)
            return
        if not isinstance(value, dict):
            place.refuse("P005", f"must be an object, not {place.node.kind}")
            return
        kind, version = (self._word(place, value, name) for name in ("kind", "apiVersion"))
        if kind == "List" and version == "v1" and not in_list:
            fields = place.fields(("kind", "apiVersion", "metadata", "items"))
            for item in fields["items"].items() if "items" in fields else []:
                self.add(item, in_list=True)
        else:
            self._object(place, kind, version)

    def _word(self, place: Place, value: dict[str, Node], name: str) -> str:
        return (place.inside(name, value[name]).text() or "") if name in value else ""

    def _object(self, place: Place, kind: str, version: str) -> None:
        known = ("AuthorizationPolicy", "RequestAuthentication", "PeerAuthentication")
        if not (version in ISTIO and kind in known) and (version, kind) != (OURS, "Workload"):
            hint = f"known are {', '.join(known)} of {ISTIO[0]} and Workload of {OURS}"
            place.refuse("P007", f"objects of kind {shown(f'{version}/{kind}')} are not read", hint)
            return
        fields = place.fields(("apiVersion", "kind", "metadata", "spec", "status"))
        metadata = fields["metadata"].fields(_METADATA) if "metadata" in fields else {}
        name, namespace = self._names(fields.get("metadata", place), metadata)
        if (kind, namespace, name) in self.seen:
            place.refuse("P009", f"{kind} {shown(f'{namespace}/{name}')} is there twice")
        self.seen.add((kind, namespace, name))
        spec = fields.get("spec") or place.inside("spec", Node({}, place.node.line, place.node.column))
        self._spec(spec, kind, namespace, name, metadata)

    def _spec(self, spec: Place, kind: str, namespace: str, name: str, metadata: dict[str, Place]) -> None:
        if kind == "AuthorizationPolicy":
            annotations = dict(metadata["annotations"].labels()) if "annotations" in metadata else {}
            shadow = annotations.get(DRY_RUN, "").lower() in ("true", "t", "1")
            self.policies.append(read_policy(spec, namespace, name, shadow=shadow))
        elif kind == "RequestAuthentication":
            self.request.append(read_request_authentication(spec, namespace, name, self.jwks_hosts))
        elif kind == "PeerAuthentication":
            self.peer.append(read_peer_authentication(spec, namespace, name))
        else:
            labels = metadata["labels"].labels() if "labels" in metadata else ()
            self.targets.append(_target(spec, namespace, labels))

    def _names(self, place: Place, metadata: dict[str, Place]) -> tuple[str, str]:
        name = (metadata["name"].text() or "") if "name" in metadata else ""
        namespace = (metadata["namespace"].text() or "") if "namespace" in metadata else self.default_namespace
        if not _NAME.fullmatch(name):
            message = f"{shown(name)} is no name of an object" if name else "`metadata.name` is missing"
            metadata.get("name", place).refuse("P008", message, "lower-case letters, digits, `-` and `.`")
        if not _LABEL.fullmatch(namespace):
            message = f"{shown(namespace)} is no namespace" if namespace else "`metadata.namespace` is missing"
            metadata.get("namespace", place).refuse("P008", message, "lower-case letters, digits and `-`")
        return name, namespace


def _target(spec: Place, namespace: str, labels: tuple[tuple[str, str], ...]) -> Target:
    fields = spec.fields(("spiffeId", "normalized", "waypoint", "references"))
    spiffe_id = (fields["spiffeId"].text() or "") if "spiffeId" in fields else ""
    if not spiffe_id.startswith("spiffe://") or len(spiffe_id) > 2048:
        fields.get("spiffeId", spec).refuse("P131", f"{shown(spiffe_id)} is no SPIFFE ID")
    references = []
    for item in fields["references"].items() if "references" in fields else []:
        inner = item.fields(("kind", "name"))
        references.append(tuple((inner[name].text() or "") if name in inner else "" for name in ("kind", "name")))
    return Target(
        spiffe_id=spiffe_id,
        namespace=namespace,
        labels=labels,
        references=tuple((kind, name) for kind, name in references),
        waypoint="waypoint" in fields and fields["waypoint"].boolean(),
        normalized="normalized" in fields and fields["normalized"].boolean(),
    )


def parse(
    text: str | bytes, source: str, *, default_namespace: str = "", jwks_hosts: frozenset[str] = frozenset()
) -> PolicySet:
    """Everything in one text. Raises Refused with all that is wrong."""
    return _collect([(source, read(text, source))], default_namespace, jwks_hosts)


def parse_all(
    texts: Iterable[tuple[str, str | bytes]], *, default_namespace: str = "", jwks_hosts: frozenset[str] = frozenset()
) -> PolicySet:
    """Everything in several texts, (source, text) each: a directory's files."""
    return _collect([(source, read(text, source)) for source, text in texts], default_namespace, jwks_hosts)


def parse_documents(
    texts: Iterable[tuple[str, list[Node]]], *, default_namespace: str = "", jwks_hosts: frozenset[str] = frozenset()
) -> PolicySet:
    """Everything in texts whose documents were read already, (source, documents) each. Raises Refused."""
    return _collect(texts, default_namespace, jwks_hosts)


def parse_object(
    value: Any, source: str, *, default_namespace: str = "", jwks_hosts: frozenset[str] = frozenset()
) -> PolicySet:
    """One object that was read elsewhere; problems have JSON pointers and no lines."""
    try:
        node = of_object(value)
    except TooLarge as error:
        raise Refused([Problem("P002", str(error), Origin(source), error.pointer)]) from None
    return _collect([(source, [node])], default_namespace, jwks_hosts)


def _collect(texts: Iterable[tuple[str, list[Node]]], namespace: str, jwks_hosts: frozenset[str]) -> PolicySet:
    objects = _Objects(Notes(""), namespace, jwks_hosts)
    for source, documents in texts:
        notes = Notes(source, objects.notes.problems, objects.notes.warnings)
        for node in documents:
            objects.add(Place(node, notes))
    objects.notes.raise_for_problems()
    return PolicySet(
        policies=tuple(objects.policies),
        request_authentications=tuple(objects.request),
        peer_authentications=tuple(objects.peer),
        targets=tuple(objects.targets),
        warnings=tuple(objects.notes.warnings),
    )
