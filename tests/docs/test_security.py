"""The threat model names tests that exist, defines each label that it uses, and leaves no room or table out."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from ca.store.tables import metadata
from tests.docs.pages import spans
from tests.docs.reason_codes import ROOT
from tests.docs.syntax import parse

PAGE = ROOT / "docs/security.md"
TEXT = PAGE.read_text()
LINK = re.compile(r"(tests/[\w/]+\.py)::(\w+)")
LABEL = re.compile(r"\b([A-Z]{1,2})(\d{1,2})(?:–\1(\d{1,2}))?(?=\W)|\b(Z)\b")
DEFINITION = re.compile(r"^- \*\*([A-Z]{1,2}\d{1,2}|Z)\*\* (.*)$", re.M)
named = sorted({(file, test) for span in spans(PAGE) for file, test in LINK.findall(span)})


@cache
def functions(file: Path) -> frozenset[str]:
    """Names of all functions in a file, those of classes too."""
    tree = parse(file)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize(("file", "test"), named, ids=[test for _, test in named])
def test_each_named_test_exists(file: str, test: str) -> None:
    """And pytest would collect it."""
    assert (ROOT / file).is_file()
    assert Path(file).name.startswith("test_")
    assert test.startswith("test_")
    assert test in functions(ROOT / file)


def defined() -> set[str]:
    """Labels that have their line under "Which test shows it"."""
    return {label for label, _ in DEFINITION.findall(TEXT)}


def used() -> set[str]:
    """Labels in the last column of every table, ranges spelled out."""
    found: set[str] = set()
    for line in TEXT.splitlines():
        if line.startswith("| ") and line.count("|") >= 5:
            for letter, first, last, alone in LABEL.findall(line.rstrip("| ").rpartition("|")[2] + " "):
                found |= {alone} if alone else {f"{letter}{n}" for n in range(int(first), int(last or first) + 1)}
    return found


def test_labels_are_defined_and_used() -> None:
    assert len(defined()) > 100
    assert len(defined()) == len(re.findall(r"^- \*\*(?:[A-Z]+\d|Z\*)", TEXT, re.M)), (
        "each label once, and each is read"
    )
    assert used() == defined()


def test_every_label_names_a_test() -> None:
    assert [label for label, line in DEFINITION.findall(TEXT) if not LINK.search(line)] == []


BAD_DAYS = [
    *("tests/ca/test_bad_*.py", "tests/e2e/test_bad_*.py"),
    *("tests/e2e/test_kill_*.py", "tests/e2e/test_hostile_neighbour.py"),
]


def test_no_test_of_a_bad_day_is_left_out() -> None:
    """What it shows is claimed: a new one needs its place on the page."""
    files = {path for pattern in BAD_DAYS for path in ROOT.glob(pattern)}
    assert len(files) >= 7
    there = {
        (str(file.relative_to(ROOT)), name) for file in files for name in functions(file) if name.startswith("test_")
    }
    assert there - set(named) == set()


def test_no_table_of_the_store_is_left_out() -> None:
    assert set(metadata.tables) <= spans(PAGE)


def test_no_room_is_left_out() -> None:
    inner = {f"ca/{path.parent.name}" for path in (ROOT / "ca").glob("*/__init__.py")}
    assert inner - {"ca/proto"} | {"attestor", "sds", "policy"} <= spans(PAGE)


LISTENS = re.compile(
    r"\.listen(?:_tcp|_unix)?\(|start_(?:unix_)?server\(|(?<!_)server\.add_insecure_port\(|sock\.bind\(b"
)
LISTENERS = {
    "ca/api/istio_server.py": "`istio.bind_address`",
    "ca/runtime/gate.py": "abstract names of the gate",
    "ca/runtime/gate_unix.py": "agent `workload_socket`",
    "ca/runtime/rpc.py": "server `private/grpc.sock`",
    "ca/runtime/status_server.py": "`metrics_address`",
    "ca/runtime/tls_relay.py": "agent `private/`, `relay/`",
    "ca/runtime/vacancy.py": "server `bind_address`:`bind_port`",
    "ca/server.py": "server `run/admin.sock`",
    "ca/up/": "sockets and ports of `burgee up`",
    "sds/agent.py": "agent `run/admin.sock`",
    "sds/sockets.py": "agent `workload_socket`",
    "attestor/node/challenge_server.py": "agent `http_challenge`'s port",
}
"""Every module that listens, and how the row of the page begins that tells of it."""

WRITES = re.compile(r"atomic_write\(|write_files?\(|\.write_(?:text|bytes)\(|os\.O_CREAT|\.open\(\"[wax]")
WRITERS = {
    "ca/cli/debug.py": "archive of `caadmin debug bundle`",
    "ca/cli/exchange.py": "`caadmin exchange`",
    "ca/cli/files.py": "`caadmin svid fetch`",
    "ca/cli/mint.py": "`caadmin svid fetch`",
    "ca/cli/svid_files.py": "`caadmin svid fetch`",
    "ca/cli/token.py": "`caadmin svid fetch`",
    "ca/keys/disk.py": "server `keys/`",
    "ca/publish/file.py": "what the bundle publisher `file` writes",
    "ca/runtime/decision_log.py": "server and agent `decisions/`",
    "ca/service/leftover_keys.py": "server `server-id`, `store-epoch`",
    "ca/service/server_name.py": "server `server-id`, `store-epoch`",
    "ca/store/database.py": "server `store.sqlite3`",
    "ca/store/lock.py": "server `server-id`, `store-epoch`; `store.sqlite3.lock`",
    "ca/up/": "directory of `burgee up`",
    "sds/data_dir.py": "server `server-id`, `store-epoch`; `store.sqlite3.lock`",
    "sds/sealing.py": "agent `state/agent.sealed`, `state/attesting.sealed`",
}
PUBLIC = {"ca/runtime/files.py", "ca/cli/policy_offline.py"}
"""The means by which the others write, and what somebody asked to have of files of their own."""


def modules(pattern: re.Pattern[str]) -> set[str]:
    """Modules with such a call; those of `burgee up`, which is for trying out, together."""
    rooms = [path for room in ("ca", "attestor", "sds", "policy") for path in (ROOT / room).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in rooms if pattern.search(path.read_text())}
    return {"ca/up/" if name.startswith("ca/up/") else name for name in found if not name.startswith("ca/proto/")}


def rows(section: str) -> list[str]:
    """Rows of the table of a section."""
    table = TEXT.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return [line.removeprefix("| ") for line in table.splitlines() if line.startswith("| ")]


def untold(section: str, where: dict[str, str]) -> list[str]:
    return [module for module, start in where.items() if not any(start in row.split(" | ")[0] for row in rows(section))]


def test_no_socket_is_left_out() -> None:
    assert modules(LISTENS) == LISTENERS.keys()
    assert untold("Sockets and ports", LISTENERS) == []


def test_no_file_is_left_out() -> None:
    assert modules(WRITES) - PUBLIC == WRITERS.keys()
    assert untold("Files", WRITERS) == []


def test_the_reader_of_functions_can_fail() -> None:
    assert "test_there_is_no_such_test" not in functions(Path(__file__))
