"""Entries from files: YAML, JSON, SPIRE's own JSON, standard input; many of them; and what fails part-way."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ca.cli import entry_batches
from ca.cli.progress import progress
from tests.ca.cli.conftest import Caadmin
from tests.support.pair import TRUST_DOMAIN

ID = f"spiffe://{TRUST_DOMAIN}"


def entries(prefix: str, count: int) -> list[dict[str, Any]]:
    return [
        {"spiffe_id": f"{ID}/{prefix}/{number}", "parent_id": f"{ID}/node", "selectors": [f"n:{number}"]}
        for number in range(count)
    ]


class Stdin:
    """Standard input that holds these bytes."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


def test_yaml_by_the_short_option(live: Caadmin, tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(entries("yaml", 3)))
    ran = live("entry", "create", "-f", "e.yaml", "-o", "json")
    assert ran.code == 0, ran.err
    assert ran.json["summary"] == {"created": 3, "failed": 0, "not_sent": 0, "total": 3}


def test_standard_input_and_spires_own_json(live: Caadmin, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `spire-server entry show -output json` prints, and as its -data files are."""
    printed = {
        "entries": [
            {
                "admin": False,
                "created_at": "1795448694",
                "dns_names": [],
                "downstream": False,
                "expires_at": "0",
                "federates_with": [],
                "hint": "h",
                "id": "",
                "jwt_svid_ttl": 0,
                "parent_id": {"path": "/node", "trust_domain": TRUST_DOMAIN},
                "revision_number": "2",
                "selectors": [{"type": "unix", "value": "uid:0"}],
                "spiffe_id": {"path": "/printed", "trust_domain": TRUST_DOMAIN},
                "store_svid": False,
                "x509_svid_ttl": 70,
            }
        ]
    }
    data = {
        "entries": [
            {
                "selectors": [{"type": "a", "value": "b"}],
                "spiffe_id": f"{ID}/data1",
                "parent_id": f"{ID}/spire/server",
                "ttl": 60,
                "x509_svid_ttl": 70,
                "jwt_svid_ttl": 30,
                "admin": True,
                "dns_names": ["d.example.org"],
                "hint": "h",
            }
        ]
    }
    for document in (printed, data):
        monkeypatch.setattr(sys, "stdin", Stdin(json.dumps(document).encode()))
        ran = live("entry", "create", "-f", "-", "-o", "json")
        assert ran.code == 0, ran.err
        assert ran.json["results"][0]["entry"]["x509_svid_ttl_seconds"] == 70


def test_many_are_sent_in_batches_and_summed_up(live: Caadmin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_batches, "BATCH", 10)
    wanted = entries("many", 45)
    wanted[17] = wanted[16]
    wanted[30] = {**wanted[30], "selectors": []}
    (tmp_path / "e.json").write_text(json.dumps({"entries": wanted}))
    ran = live("entry", "create", "-f", "e.json")
    assert ran.code == 1
    lines = ran.out.splitlines()
    assert lines[0] == f"item 18 ({ID}/many/16) not created: similar entry already exists (ENTRY_SIMILAR)"
    assert lines[1].startswith(f"item 31 ({ID}/many/30) not created:")
    assert lines[2] == "43 of 45 created, 2 failed"
    assert len(lines) == 3


def test_a_server_that_goes_away_part_way(live: Caadmin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was done is told; the rest is said to be not sent, and the exit code is the error's."""
    from ca.errors import Unavailable

    monkeypatch.setattr(entry_batches, "BATCH", 10)
    real = entry_batches.creating()
    calls: list[int] = []

    def failing(stub: Any, some: list[Any]) -> Any:
        calls.append(len(some))
        if len(calls) == 3:
            raise Unavailable("gone", reason="UNREACHABLE")
        return real(stub, some)

    monkeypatch.setattr("ca.cli.entry.creating", lambda: failing)
    (tmp_path / "e.json").write_text(json.dumps(entries("partial", 45)))
    ran = live("entry", "create", "-f", "e.json", "-o", "json")
    assert ran.code == 1
    assert ran.json["summary"] == {"created": 20, "failed": 0, "not_sent": 25, "total": 45}
    assert "error: gone (UNREACHABLE)" in ran.err


def test_a_bar_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, total, shown in ((Terminal(), 40, True), (Terminal(), 5, False), (io.StringIO(), 40, False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress("entries", total, least=10) as advance:
            advance(total // 2)
            advance(total)
        assert ("20/40" in stream.getvalue()) is shown
        assert stream.getvalue().endswith(f"] {total}/{total}\n") is shown
