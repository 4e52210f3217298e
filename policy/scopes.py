"""Whom an object is for: `selector`, `targetRef`, `targetRefs`, and ours, `burgee.spiffeIds`."""

from __future__ import annotations

from collections.abc import Mapping

from policy.fields import Place
from policy.model import Match, MatchKind, Scope
from policy.problems import shown

OURS = "burgee"
SCOPE_FIELDS = ("selector", "targetRef", "targetRefs")
MAX_REFERENCES = 16
_KINDS = {
    "Service": ("", "core"),
    "ServiceEntry": ("networking.istio.io",),
    "Gateway": ("gateway.networking.k8s.io",),
    "GatewayClass": ("gateway.networking.k8s.io",),
}


def read_scope(fields: Mapping[str, Place]) -> Scope:
    """The scope that a spec's fields say."""
    used = [fields[name] for name in SCOPE_FIELDS if name in fields and fields[name].node.value != []]
    if len(used) > 1:
        used[1].refuse("P105", "only one of `selector`, `targetRef` and `targetRefs` can be set")
    references = []
    if "targetRef" in fields:
        references.append(_reference(fields["targetRef"]))
    if "targetRefs" in fields:
        items = fields["targetRefs"].items()
        if len(items) > MAX_REFERENCES:
            fields["targetRefs"].refuse("P108", f"more than {MAX_REFERENCES} references", "write several objects")
        references.extend(map(_reference, items))
    ids = _spiffe_ids(fields[OURS]) if OURS in fields else ()
    if ids and used:
        fields[OURS].refuse("P131", "`spiffeIds` cannot stand beside `selector` or `targetRefs`")
    return Scope(
        labels=_labels(fields["selector"]) if "selector" in fields else (),
        spiffe_ids=ids,
        references=tuple(reference for reference in references if reference is not None),
    )


def _labels(place: Place) -> tuple[tuple[str, str], ...]:
    inner = place.fields(("matchLabels",)).get("matchLabels")
    labels = inner.labels() if inner is not None else ()
    if not labels:
        place.warn("W001", "a selector without labels selects the whole namespace", "leave the selector out")
    for name, value in labels:
        if not name or "*" in name or "*" in value:
            hint = "labels are compared as they are"
            (inner or place).refuse("P106", f"{shown(f'{name}={value}')} cannot be selected", hint)
    return labels


def _reference(place: Place) -> tuple[str, str] | None:
    fields = place.fields(("group", "kind", "name", "namespace"))
    texts = {name: (field.text() or "") for name, field in fields.items()}
    kind, name, group = (texts.get(field, "") for field in ("kind", "name", "group"))
    if not name:
        place.refuse("P107", "a reference needs a name")
    if texts.get("namespace"):
        place.refuse("P107", "a reference has no namespace", "objects are for their own namespace")
    if group not in _KINDS.get(kind, ()):
        known = ", ".join(f"{k} ({g[-1]})" for k, g in _KINDS.items())
        place.refuse("P107", f"policies cannot be for {shown(f'{group}/{kind}')}", f"only for {known}")
        return None
    return (kind, name) if name else None


def _spiffe_ids(place: Place) -> tuple[Match, ...]:
    inner = place.fields(("spiffeIds",)).get("spiffeIds")
    return tuple(_spiffe_id(item, text) for item, text in inner.texts()) if inner is not None else ()


def _spiffe_id(place: Place, text: str) -> Match:
    if not text.startswith("spiffe://") or "*" in text[:-1] or len(text) > 2048:
        place.refuse("P131", f"{shown(text)} is no SPIFFE ID", "`spiffe://domain/path`, perhaps with `*` at its end")
    return Match(MatchKind.PREFIX, text[:-1]) if text.endswith("*") else Match(MatchKind.EXACT, text)
