"""Directories that hold more than policies: objects of other kinds are passed over where that is asked for."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from ca.cli.output import plain

if TYPE_CHECKING:
    from policy.documents import Node

OURS = ("security.istio.io", "burgee.io")
KINDS = ("AuthorizationPolicy", "RequestAuthentication", "PeerAuthentication", "Workload")
SHOWN = 10
Documents = Sequence[tuple[str, Sequence["Node"]]]

IgnoreOthersOption = Annotated[
    bool,
    typer.Option(
        "--ignore-others",
        help="Pass over objects of kinds that are no policies, such as Deployment, and say how many; else refused.",
    ),
]


def sifted(documents: Documents, *, ignore: bool) -> list[tuple[str, list[Node]]]:
    """Without others' objects; or, unless they are to be ignored, with them, and a word on how they could be. What
    may be a policy with a mistake in its kind or version is never passed over."""
    others: Counter[str] = Counter()
    found = [(source, _kept(roots, others, whole=True)) for source, roots in documents]
    if not others:
        return found
    told = ", ".join(f"{count} {kind}" for kind, count in others.most_common(SHOWN))
    more = f" and {len(others) - SHOWN} more kinds" if len(others) > SHOWN else ""
    verb = "passed over" if ignore else "refused; --ignore-others passes over them"
    print(plain(f"objects of other kinds ({told}{more}) are {verb}"), file=sys.stderr)
    return found if ignore else [(source, list(roots)) for source, roots in documents]


def _kept(nodes: Sequence[Node], others: Counter[str], *, whole: bool) -> list[Node]:
    """`whole`: they are documents, which may be lists."""
    kept = []
    for node in nodes:
        value = node.value
        if whole and isinstance(value, list):
            node = replace(node, value=_kept(value, others, whole=False))
        elif isinstance(value, dict):
            kind, version = (_word(value, name) for name in ("kind", "apiVersion"))
            items = value.get("items")
            if whole and (kind, version) == ("List", "v1"):
                if items is not None and isinstance(items.value, list):
                    inner = replace(items, value=_kept(items.value, others, whole=False))
                    node = replace(node, value={**value, "items": inner})
            elif kind and version and kind not in KINDS and version.partition("/")[0] not in OURS:
                others[kind] += 1
                continue
        kept.append(node)
    return kept


def _word(value: dict[str, Node], name: str) -> str:
    found = value[name].value if name in value else ""
    return found if isinstance(found, str) else ""
