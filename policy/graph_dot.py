"""The graph in Graphviz's language, services in a box for each namespace."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from policy.graph import Edge, Effect, Graph, Service

MAX_LABELS = 4
_STYLE = {
    Effect.ALLOW: 'color="#2563eb"',
    Effect.DENY: 'color="#dc2626", style=dashed, arrowhead=tee',
    Effect.ASK: 'color="#d97706", style=dotted',
}


def dot(graph: Graph) -> str:
    """The whole graph."""
    return "\n".join(_lines(graph)) + "\n"


def _lines(graph: Graph) -> Iterator[str]:
    yield "digraph policies {"
    yield '  rankdir=LR; node [shape=box, style=rounded, fontname="sans-serif"];'
    yield '  edge [fontname="sans-serif", fontsize=9];'
    by_namespace: dict[str, list[Service]] = defaultdict(list)
    for service in graph.services.values():
        by_namespace[service.namespace].append(service)
    for number, (namespace, services) in enumerate(sorted(by_namespace.items())):
        yield f"  subgraph cluster_{number} {{"
        yield f"    label={_quoted(namespace)};"
        for service in services:
            yield f"    {_quoted(service.id)} [label={_quoted(service.id.rpartition('/')[2])}];"
        yield "  }"
    for caller in graph.callers.values():
        yield f"  {_quoted(caller.id)} [label={_quoted(caller.label)}, shape=ellipse];"
    for edge in graph.edges:
        yield f"  {_quoted(edge.caller)} -> {_quoted(edge.service)} [{_STYLE[edge.effect]}, label={_label(edge)}];"
    yield "}"


def _label(edge: Edge) -> str:
    """Methods and paths of the first few grants."""
    texts: dict[str, None] = {}
    for grant in edge.grants:
        for operation in grant.operations or ((),):
            words = " ".join(
                f"{'' if name in ('methods', 'paths') else f'{name} '}{','.join(v)}" for name, v in operation
            )
            texts[
                " ".join(filter(None, (words, "…" if grant.conditions else "", "(shadow)" if grant.shadow else "")))
            ] = None
    few = [text for text in list(texts)[:MAX_LABELS] if text]
    return _quoted("\n".join([*few, *(["…"] if len(texts) > MAX_LABELS else [])]))


def _quoted(text: str) -> str:
    """A string of DOT: nothing in it ends it or is an escape of its own."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return (
        '"'
        + "".join("\\n" if c == "\n" else c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in escaped)
        + '"'
    )
