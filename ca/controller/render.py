"""Pure: which entries a pod is to have by which rules, and which of those that exist must be left as they are."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from ca.controller.rules import Common, Rule
from ca.controller.templates import NODE_SPEC
from ca.controller.values import Meta, Pod
from ca.errors import BurgeeError, InvalidArgument
from ca.identity.entry import RegistrationEntry, validate_entry
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId, TrustDomain

_NAMES = uuid.UUID("6f0c0d5e-8b1a-5d0e-9a53-7c1a2b3c4d5e")
_COMMON = Common.__slots__


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is the same for all pods. `mark` begins the IDs of our entries; `parent` is None for each pod's node."""

    trust_domain: TrustDomain
    cluster: str
    cluster_domain: str
    mark: str
    parent: SpiffeId | None = None

    def entry_id(self, owner: str, pod: str = "") -> str:
        """The same for the same owner and pod, at any time and by any controller of this mark."""
        return self.mark + _uuid5(f"{owner}/{pod}")

    def is_ours(self, entry_id: str) -> bool:
        """The mark and a UUID, to the letter: a longer cluster name that begins alike is another's."""
        rest = entry_id[len(self.mark) :]
        return entry_id.startswith(self.mark) and len(rest) == 36 and _is_uuid(rest)


@dataclass(frozen=True, slots=True)
class Wanted:
    """An entry that is to be, and the UID of the object that wants it."""

    entry: RegistrationEntry
    owner: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Of one pod, or of the static entries (which have no pod). Owners are UIDs of rules.

    `kept` are IDs of entries that cannot be judged now: they are neither made nor changed nor deleted.
    """

    wanted: Mapping[str, Wanted] = field(default_factory=dict)
    selected: frozenset[str] = frozenset()
    masked: tuple[str, ...] = ()
    failed: Mapping[str, BurgeeError] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()


NOTHING = Plan()


def plan_pod(
    pod: Pod,
    rules: Sequence[Rule],
    *,
    namespace: Meta | None,
    node: Meta | None,
    services: Iterable[tuple[str, str]] | None,
    settings: Settings,
    node_spec: Mapping[str, str] | None = None,
) -> Plan:
    """`rules` in the order of their rank. `services` are (namespace, name) of those that lead to the pod. None for any
    of them where it is not known (yet, or any more)."""
    if pod.ended or not pod.node:
        return NOTHING
    kept = {settings.entry_id(rule.uid, pod.uid) for rule in rules if rule.problem is not None}
    if namespace is None:
        return Plan(kept=frozenset(settings.entry_id(rule.uid, pod.uid) for rule in rules))
    chosen = [rule for rule in rules if rule.problem is None and _selects(rule, pod, namespace)]
    chosen, undecided = _without_fallbacks(chosen, rules)
    known: list[Rule] = []
    unknown: list[Rule] = []
    for rule in chosen:
        waits = (rule.service_names and services is None) or (rule.node_spec and node_spec is None)
        (unknown if waits or node is None else known).append(rule)
    kept |= {settings.entry_id(rule.uid, pod.uid) for rule in (*undecided, *unknown)}
    selected = frozenset(rule.uid for rule in chosen)
    if node is None:
        return Plan(selected=selected, kept=frozenset(kept))
    values = _values(pod, node, node_spec or {}, settings)
    return _rendered(pod, node, known, values, services or (), settings, selected, kept)


def _rendered(
    pod: Pod,
    node: Meta,
    rules: Iterable[Rule],
    values: Mapping[str, str],
    services: Iterable[tuple[str, str]],
    settings: Settings,
    selected: frozenset[str],
    kept: set[str],
) -> Plan:
    names = _service_names(services, settings.cluster_domain)
    wanted: dict[str, Wanted] = {}
    masked: list[str] = []
    failed: dict[str, BurgeeError] = {}
    seen: set[tuple[SpiffeId, frozenset[Selector]]] = set()
    for rule in rules:
        try:
            entry = _entry(rule, pod, node, values, names, settings)
        except BurgeeError as error:
            failed[rule.uid] = error
            continue
        key = (entry.spiffe_id, entry.selectors)
        if key in seen:
            masked.append(rule.uid)
            continue
        seen.add(key)
        wanted[entry.id] = Wanted(entry, rule.uid)
    return Plan(wanted, selected, tuple(masked), failed, frozenset(kept))


def _selects(rule: Rule, pod: Pod, namespace: Meta) -> bool:
    return rule.pods.matches(pod.meta.labels) and rule.namespaces.matches(namespace.labels)


def _without_fallbacks(chosen: list[Rule], rules: Sequence[Rule]) -> tuple[list[Rule], list[Rule]]:
    """Fallbacks count where no other rule selects the pod. Whether one that cannot be read does is not known: then
    fallbacks are undecided."""
    others = [rule for rule in chosen if not rule.fallback]
    if others:
        return others, []
    if any(rule.problem is not None and not rule.fallback for rule in rules):
        return [], chosen
    return chosen, []


def _entry(
    rule: Rule, pod: Pod, node: Meta, values: Mapping[str, str], names: Sequence[str], settings: Settings
) -> RegistrationEntry:
    """Raises InvalidArgument where the values make none."""
    assert rule.spiffe_id is not None
    rendered = [template.render(values) for template in rule.dns_names]
    entry = RegistrationEntry(
        id=settings.entry_id(rule.uid, pod.uid),
        spiffe_id=_spiffe_id(rule.spiffe_id.render(values)),
        parent_id=settings.parent or _node_agent(settings.trust_domain, settings.cluster, node.uid),
        selectors=frozenset(
            [
                Selector("k8s", f"pod-uid:{pod.uid}"),
                *(Selector.parse(template.render(values)) for template in rule.selectors),
            ]
        ),
        dns_names=tuple(sorted({*rendered, *(names if rule.service_names else ())})),
        **{name: getattr(rule.common, name) for name in _COMMON},
    )
    check_entry(entry, settings.trust_domain)
    return entry


def check_entry(entry: RegistrationEntry, trust_domain: TrustDomain) -> None:
    """What the server would say, before it is asked; and that it can be sent at all. Raises as `validate_entry`."""
    validate_entry(entry, trust_domain=trust_domain)
    try:
        "".join([entry.hint, *(f"{one.type}{one.value}" for one in entry.selectors)]).encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument("a selector or the hint is no text", reason="RESOURCE_INVALID") from error


def _spiffe_id(text: str) -> SpiffeId:
    try:
        return SpiffeId.parse(text)
    except InvalidArgument as error:
        raise InvalidArgument(f"`spiffeIDTemplate`: {error.detail}", reason=error.reason) from error


@lru_cache(maxsize=8192)
def _node_agent(domain: TrustDomain, cluster: str, uid: str) -> SpiffeId:
    return SpiffeId.of(domain, f"/spire/agent/k8s_psat/{cluster}/{uid}")


def _values(pod: Pod, node: Meta, node_spec: Mapping[str, str], settings: Settings) -> dict[str, str]:
    values = {
        "TrustDomain": settings.trust_domain.name,
        "ClusterName": settings.cluster,
        "ClusterDomain": settings.cluster_domain,
    }
    values.update(pod.meta.fields("PodMeta"))
    values.update(node.fields("NodeMeta"))
    values.update((f"PodSpec.{name}", value) for name, value in pod.spec.items())
    values.update((f"{NODE_SPEC}{name}", value) for name, value in node_spec.items())
    return values


def _service_names(services: Iterable[tuple[str, str]], cluster_domain: str) -> list[str]:
    """As the cluster's DNS knows a service: from its short name to the whole one."""
    names = []
    for namespace, name in services:
        names += [name, f"{name}.{namespace}", f"{name}.{namespace}.svc"]
        if cluster_domain:
            names.append(f"{name}.{namespace}.svc.{cluster_domain}")
    return names


def _uuid5(name: str) -> str:
    """As `uuid.uuid5` (RFC 9562 §5.5), without an object for each."""
    found = bytearray(hashlib.sha1(_NAMES.bytes + name.encode(), usedforsecurity=False).digest()[:16])
    found[6] = found[6] & 0x0F | 0x50
    found[8] = found[8] & 0x3F | 0x80
    text = found.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
