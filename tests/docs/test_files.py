"""The tables of files: whatever a server and an agent leave on disk has a row, with its mode, and no row is a ghost."""

from __future__ import annotations

import re
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from ca.cli.workload import workload_client
from tests.docs.reason_codes import ROOT
from tests.support.pair import Pair, until

SECTION = (ROOT / "docs/operations.md").read_text().partition("## Files and sockets")[2].partition("\n## ")[0]
ROW = re.compile(r"^\| (`.+?`) \| (?:([0-7]{4}) ?)?(?:in ([0-7]{4}))? *\| .* \|$", re.M)
OPTIONAL = {"cache.directory/seal.key", "data_dir/state/attesting.sealed", "data_dir/state/seal.key"}
"""By the machine, on whose keyring and systemd it depends where the key is put; or by the moment."""


@dataclass(frozen=True)
class Row:
    """A pattern of paths, the mode of what is there and of the directory that holds it, None where none is told."""

    name: str
    pattern: str
    mode: int | None
    directory: int | None

    def is_for(self, path: Path) -> bool:
        """Component by component: `*` is one name."""
        names, patterns = path.parts, Path(self.pattern).parts
        return len(names) == len(patterns) and all(map(fnmatchcase, names, patterns))

    def complaint(self, path: Path) -> str:
        modes = [(path, self.mode), (path.parent, self.directory)]
        wrong = [f"{p} has {mode_of(p):04o}" for p, mode in modes if mode is not None and mode_of(p) != mode]
        return ", ".join(wrong)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def table(heading: str, places: dict[str, Path]) -> list[Row]:
    """The rows of one table; a path begins with the name of a configuration key."""
    text = SECTION.partition(heading)[2].partition("\n\n")[2].partition("\n\n")[0]
    rows = []
    for names, mode, directory in ROW.findall(text):
        for name in re.findall(r"`([^`]+)`", names):
            key = next(key for key in places if name == key or name.startswith(f"{key}/"))
            path = f"{places[key]}{name.removeprefix(key)}"
            rows.append(Row(name, path, *(int(digits, 8) if digits else None for digits in (mode, directory))))
    assert len(rows) == text.count("\n| `") + text.count("`, `") + text.startswith("| `"), "a row was not understood"
    return rows


def server_rows(home: Path) -> list[Row]:
    return table("What the server keeps:", {"data_dir": home / "server", "bundle_file": home / "out" / "bundle.pem"})


def agent_rows(home: Path) -> list[Row]:
    places = {
        "data_dir": home / "agent",
        "cache.directory": home / "agent" / "cache",
        "workload_socket": home / "w" / "workload.sock",
    }
    return table("What the agent keeps:", places)


@pytest.fixture
def made() -> Iterator[Pair]:
    """Everything where it is by default, which is below the data directories, but for the workload socket; the cache
    where it is without a tmpfs."""
    home = Path(tempfile.mkdtemp(prefix="bg-"))
    home.chmod(0o755)
    (home / "out").mkdir()
    pair = Pair(home, agent={"cache": {"directory": str(home / "agent" / "cache")}})
    pair.admin_socket, pair.agent_admin_socket = home / "server/run/admin.sock", home / "agent/run/admin.sock"
    pair.bundle_file = home / "out" / "bundle.pem"
    yield pair
    pair.close()
    shutil.rmtree(home)


def found(home: Path) -> set[Path]:
    """All files and sockets of server and agent, and the directories that have a row of their own."""
    roots = [home / name for name in ("server", "agent", "out", "w")]
    below = {path for root in roots for path in root.rglob("*") if not path.is_dir()}
    return below | {root for root in (home / "server", home / "agent", home / "agent" / "cache") if root.exists()}


def judged(home: Path, rows: list[Row]) -> tuple[set[Row], list[str]]:
    """The rows that something was there for, and what has no row or another mode than its row says."""
    used: set[Row] = set()
    complaints: list[str] = []
    for path in found(home):
        mine = [row for row in rows if row.is_for(path)]
        used |= set(mine)
        wrong = [row.complaint(path) for row in mine] or ["has no row"]
        complaints += [f"{path}: {words}" for words in wrong if words]
    return used, complaints


def settled(home: Path, rows: list[Row]) -> set[Row]:
    """The rows in use. What is being written at this moment has a passing name: it is looked for again."""
    last: list[str] = []

    def all_well() -> set[Row]:
        used, last[:] = judged(home, rows)
        return set() if last else used

    try:
        return until("every file has a row", all_well, seconds=5)
    except AssertionError:
        raise AssertionError(f"no row, or another mode, in docs/operations.md: {last}") from None


@pytest.mark.slow
def test_whatever_a_pair_leaves_has_a_row_and_every_row_is_true(made: Pair) -> None:
    """While both run, after both were killed, and after both were stopped."""
    everything = server_rows(made.home) + agent_rows(made.home)
    made.start_server()
    made.start_agent()
    made.create_entry("/me")
    with workload_client(f"unix://{made.workload_socket}") as client:
        until("an SVID", lambda: client.fetch_x509_once(10))
    until("the cache", lambda: list(made.home.glob("agent/cache/svids.sealed")))
    used = settled(made.home, everything)
    for name in ("server", "agent"):
        made.stop(name, sign=signal.SIGKILL)
    used |= settled(made.home, everything)
    made.start_server()
    made.start_agent(token=False)
    for name in ("agent", "server"):
        made.stop(name)
    used |= settled(made.home, everything)
    assert [row for row in everything if row not in used and row.name not in OPTIONAL] == [], "nothing is for them"


def test_the_reader_of_the_tables_can_fail(tmp_path: Path) -> None:
    """A file without a row, and one with another mode."""
    rows = server_rows(tmp_path)
    keys = tmp_path / "server" / "keys"
    keys.mkdir(mode=0o700, parents=True)
    (tmp_path / "server").chmod(0o700)
    (keys / "x509.pem").touch(0o600)
    used, complaints = judged(tmp_path, rows)
    assert ({row.name for row in used}, complaints) == ({"data_dir", "data_dir/keys/*.pem"}, [])
    (keys / "x509.pem").chmod(0o640)
    (keys / "surprise").touch()
    complaints = sorted(judged(tmp_path, rows)[1])
    assert complaints == [f"{keys / 'surprise'}: has no row", f"{keys / 'x509.pem'}: {keys / 'x509.pem'} has 0640"]
    keys.chmod(0o755)
    assert any(f"{keys} has 0755" in words for words in judged(tmp_path, rows)[1])
