"""What a bug report shows of a configuration and of texts."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from ca.cli import debug
from ca.proto.burgee import debug_pb2
from ca.runtime import log
from ca.runtime.clock import SystemClock
from ca.runtime.debug_report import DebugReport
from ca.runtime.health import Health
from ca.runtime.redact import WITHHELD, configuration, text


class Inner(BaseModel):
    url: str = "postgresql+psycopg://burgee:hunter2@db/burgee?sslpassword=hunter2"
    password: str = "hunter2"
    password_file: str = "/etc/burgee/password"


class Outer(BaseModel):
    store: Inner = Inner()
    plugin: dict[str, Any] = {
        "join_token": {"token": "hunter2", "token_file": "/etc/burgee/token", "anything": "hunter2", "size": 3}
    }
    lists: tuple[str, ...] = ("https://x:hunter2@example.org/",)


def test_secrets_of_a_configuration_are_withheld_and_their_places_shown() -> None:
    shown = configuration(Outer())
    assert "hunter2" not in repr(shown)
    assert shown["store"]["password"] == WITHHELD
    assert shown["store"]["password_file"] == "/etc/burgee/password"
    assert shown["plugin"]["join_token"]["token_file"] == "/etc/burgee/token"
    assert shown["plugin"]["join_token"]["size"] == 3


def test_keys_and_tokens_are_taken_out_of_texts() -> None:
    key = "-----BEGIN PRIVATE KEY-----\nMIIhunter2\n-----END PRIVATE KEY-----"
    addresses = ["https://u:hunter2@h/", *(f"postgresql+psycopg://u:hun{mark}ter2@h/d" for mark in "/@'\"<>")]
    for secret in (key, key[:30], "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl", *addresses):
        shown = text(f"before {secret} after")
        assert secret not in shown
        assert WITHHELD in shown
        assert "ter2" not in shown
    assert text("nothing of that kind") == "nothing of that kind"


def test_a_long_word_holds_nobody_up() -> None:
    assert text("a" * 400_000) == "a" * 400_000  # many minutes, if it were looked through from each of its letters
    assert text(f"{'a' * 50}://u:hunter2@h") == f"{'a' * 50}://{WITHHELD}@h"


async def test_a_report_has_no_secret_of_configuration_or_log(capsys: pytest.CaptureFixture[str]) -> None:
    log.get("test").warning("cannot connect", address="postgresql://u:hun/ter2@h/d", token="eyJhbGciOi.eyJzdWI.hunter2")
    clock = SystemClock()
    service = DebugReport(program="server", config=Outer, health=Health(), clock=clock, started_at=clock.now())
    context: Any = None
    report = await service.GetReport(debug_pb2.GetReportRequest(log_lines=1), context)  # what others logged is theirs
    assert "password_file: /etc/burgee/password" in report.config_yaml
    assert any("cannot connect" in line and WITHHELD in line for line in report.log)
    assert "ter2" in capsys.readouterr().err, "it was logged"
    assert "ter2" not in str(report)


def test_what_a_program_of_another_version_says_is_redacted_when_it_is_packed(tmp_path: Path) -> None:
    debug._write(tmp_path / "b.tgz", {"server/log.txt": "at https://u:hunter2@h/ with eyJhbGciOi.eyJzdWI.hunter2"})
    with tarfile.open(tmp_path / "b.tgz") as archive:
        packed = archive.extractfile("burgee-debug/server/log.txt")
        assert packed is not None
        assert packed.read().decode() == f"at https://{WITHHELD}@h/ with {WITHHELD}"
