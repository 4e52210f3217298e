"""Every reason code that the code can give, read from its syntax trees."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from tests.docs.syntax import parse

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("ca", "sds", "attestor", "policy")
NO_REASONS = {
    "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
    "ACTIONS_ID_TOKEN_REQUEST_URL",
    "MY_NODE_IP",
    "MY_NODE_NAME",
    "SPIFFE_ENDPOINT_SOCKET",
}
"""What only looks like one."""

_CODE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def reason_codes() -> dict[str, set[str]]:
    """Code → the files that give it.

    A reason is what stands in an argument `reason`, by name or by place; in an attribute `reason`; or in a constant
    whose name says that it holds reasons, or in an enumeration of them.
    """
    trees = {path: parse(path) for path in _files()}
    places = _reason_places(trees.values())
    found: dict[str, set[str]] = {}
    for path, tree in trees.items():
        for node in ast.walk(tree):
            for value in _values(node, places):
                for code in _codes(value):
                    found.setdefault(code, set()).add(str(path.relative_to(ROOT)))
    return found


def _files() -> Iterator[Path]:
    for room in ROOMS:
        yield from (path for path in (ROOT / room).rglob("*.py") if "proto" not in path.parts)


def _reason_places(trees: Iterable[ast.AST]) -> dict[str, set[int]]:
    """Name of a function → the positions (without self) at which it takes a reason."""
    places: dict[str, set[int]] = {}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, _Function):
                names = [a.arg for a in node.args.posonlyargs + node.args.args if a.arg not in ("self", "cls")]
                if "reason" in names:
                    places.setdefault(node.name, set()).add(names.index("reason"))
    return places


def _values(node: ast.AST, places: dict[str, set[int]]) -> Iterator[ast.expr]:
    if isinstance(node, ast.Call):
        yield from (keyword.value for keyword in node.keywords if keyword.arg == "reason")
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        yield from (node.args[place] for place in places.get(name, ()) if place < len(node.args))
    elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(_holds_reasons(getattr(target, "id", "")) for target in targets):
            yield node.value
    elif isinstance(node, ast.ClassDef) and node.name in ("Reason", "Refusal"):
        yield from (inner.value for inner in node.body if isinstance(inner, ast.Assign))
    elif isinstance(node, ast.Tuple):
        yield from filter(_has_underscore, node.elts)
    elif isinstance(node, ast.Return) and node.value is not None:
        choices = [node.value.body, node.value.orelse] if isinstance(node.value, ast.IfExp) else [node.value]
        yield from filter(_has_underscore, choices)
    elif isinstance(node, _Function):
        defaults = dict(zip([a.arg for a in node.args.args][::-1], node.args.defaults[::-1], strict=False))
        if "reason" in defaults:
            yield defaults["reason"]


def _has_underscore(node: ast.AST) -> bool:
    """What looks like a reason wherever it stands; a single word may be anything."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and "_" in node.value


def _holds_reasons(name: str) -> bool:
    return name == "reason" or "REASON" in name or name == "VERDICTS"


def _codes(value: ast.expr) -> Iterator[str]:
    for node in ast.walk(value):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _CODE.fullmatch(node.value):
            yield from {node.value} - NO_REASONS
