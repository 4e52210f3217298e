"""What policies see of a workload: what its attested selectors tell, or else what `Workload` objects say of its ID."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from policy.model import Target

_NAMESPACE, _LABEL = "ns:", "pod-label:"


def described(spiffe_id: str, selectors: Iterable[tuple[str, str]], given: Sequence[Target]) -> Target:
    """The target that a workload is.

    Namespace and labels are those of the pod, where `k8s` selectors name its namespace; a Workload object cannot say
    otherwise. Whether its proxy normalizes paths, is a waypoint and what references name it, no selector tells: that
    is from the Workload objects, of which all must agree that paths are normalized.
    """
    mine = [target for target in given if target.spiffe_id == spiffe_id]
    namespace, labels = _of_pod(selectors)
    if not namespace and mine:
        namespace, labels = mine[0].namespace, dict(mine[0].labels)
    return Target(
        spiffe_id=spiffe_id,
        namespace=namespace,
        labels=tuple(sorted(labels.items())),
        references=tuple(dict.fromkeys(reference for target in mine for reference in target.references)),
        waypoint=any(target.waypoint for target in mine),
        normalized=bool(mine) and all(target.normalized for target in mine),
    )


def contradictory(selectors: Iterable[tuple[str, str]], given: Sequence[Target]) -> bool:
    """Whether Workload objects of one ID give it several places or labels, and no selector tells which holds. A book
    takes no such objects; what policies are for the workload is not known then."""
    placed = {(target.namespace, tuple(sorted(target.labels))) for target in given}
    return len(placed) > 1 and not _of_pod(selectors)[0]


def _of_pod(selectors: Iterable[tuple[str, str]]) -> tuple[str, dict[str, str]]:
    """Namespace and labels of a pod; nothing where its namespace is not told."""
    values = sorted(value for kind, value in selectors if kind == "k8s")
    namespaces = [value.removeprefix(_NAMESPACE) for value in values if value.startswith(_NAMESPACE)]
    if not namespaces:
        return "", {}
    labels = (value.removeprefix(_LABEL).partition(":") for value in values if value.startswith(_LABEL))
    return namespaces[0], {key: value for key, _, value in labels}
