"""Objects from files as they are to be applied, each with the place of every value in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ca.cli.policy_files import read_texts, refused
from ca.cli.policy_others import sifted
from ca.cli.progress import progress
from ca.errors import InvalidArgument
from policy.book_values import Key, etag_of
from policy.problems import Problem, Refused

if TYPE_CHECKING:
    from policy.documents import Node

MANY = 200
"""Files, or objects, from which on a bar is shown."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An object of a file."""

    key: Key
    body: Mapping[str, Any]
    etag: str
    source: str
    node: Node

    def places(self, below: str) -> Iterator[tuple[str, str]]:
        """(JSON pointer, `file:line:column`) of all that is in it."""
        yield from _places(self.node, self.source, below)

    def __str__(self) -> str:
        return f"{self.key} ({self.source}:{self.node.line})"


@dataclass(frozen=True, slots=True)
class Sources:
    """All objects of some files, and what is strange about them."""

    objects: Mapping[Key, Wanted]
    warnings: tuple[Problem, ...]


def read_sources(paths: Sequence[Path], namespace: str, ignore_others: bool | None = None) -> Sources:
    """From files and directories; objects without a namespace are of `namespace`. Those of other kinds are
    refused, or passed over with `ignore_others`; None: there is no such option. What the server would refuse by itself
    alone is told with its place, and ends the program with 2."""
    from policy.documents import read
    from policy.parse import parse_documents
    from policy.state import ANY_HOST

    texts = list(read_texts(paths))
    try:
        with progress("reading", len(texts), least=MANY) as advance:
            documents = []
            for number, (source, text) in enumerate(texts, 1):
                documents.append((source, read(text, source)))
                advance(number)
        if ignore_others is not None:
            documents = sifted(documents, ignore=ignore_others)
        parsed = parse_documents(documents, default_namespace=namespace, jwks_hosts=ANY_HOST)
        found = [
            _wanted(node, source, namespace) for source, roots in documents for root in roots for node in _objects(root)
        ]
    except Refused as error:
        refused(error)
    return Sources({one.key: one for one in found}, parsed.warnings)


def _objects(node: Node) -> Iterator[Node]:
    """As the parser takes lists apart."""
    items: Any = node.value
    if isinstance(items, dict) and "kind" in items and items["kind"].value == "List":
        items = items["items"].value if "items" in items else []
    if isinstance(items, list):
        yield from items
    else:
        yield node


def _wanted(node: Node, source: str, namespace: str) -> Wanted:
    body = _plain(node)
    body["metadata"].setdefault("namespace", namespace)
    metadata = body["metadata"]
    key = Key(kind=body["kind"], namespace=metadata["namespace"], name=metadata["name"])
    try:
        return Wanted(key, body, etag_of(body), source, node)
    except (ValueError, UnicodeError) as error:
        raise InvalidArgument(f"{key} of `{source}` cannot be written as JSON", reason="FILE") from error


def _plain(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {name: _plain(inner) for name, inner in node.value.items()}
    if isinstance(node.value, list):
        return [_plain(inner) for inner in node.value]
    return node.value


def _places(node: Node, source: str, pointer: str) -> Iterator[tuple[str, str]]:
    yield pointer, f"{source}:{node.line}:{node.column}"
    if isinstance(node.value, dict):
        for name, inner in node.value.items():
            yield from _places(inner, source, f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(node.value, list):
        for number, inner in enumerate(node.value):
            yield from _places(inner, source, f"{pointer}/{number}")
