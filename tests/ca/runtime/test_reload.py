"""Reading a configuration again, telling systemd, and taking secrets out of what is shown."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from ca.errors import ConfigError
from ca.runtime import log, notify, redact
from ca.runtime.config import from_values
from ca.runtime.reload import merge, reload
from ca.runtime.server_config import ServerConfig

BASE: dict[str, Any] = {"trust_domain": "example.org", "data_dir": "/d"}
LIVE = frozenset({"log", "admin_socket.admin_uids", "x509_svid_ttl_seconds", "prune"})


def config(**changes: Any) -> ServerConfig:
    return from_values({**BASE, **changes}, ServerConfig)


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with (
        tempfile.TemporaryDirectory(prefix="bg-") as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(f"{directory}/n")
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"{directory}/n")
        yield receiver


class TestMerge:
    def test_live_keys_change_and_the_others_are_named(self) -> None:
        old = config()
        new = config(
            log={"level": "debug"},
            admin_socket={"admin_uids": [7], "path": "/x/a.sock"},
            x509_svid_ttl_seconds=60,
            bind_port=1,
            prune={"audit_retention_seconds": 5},
            keys={"plugin": "memory"},
        )
        merged = merge(old, new, LIVE)
        assert set(merged.applied) == {
            "log.level",
            "admin_socket.admin_uids",
            "x509_svid_ttl_seconds",
            "prune.audit_retention_seconds",
        }
        assert set(merged.waiting) == {"admin_socket.path", "bind_port", "keys.plugin"}
        assert merged.config.log.level == "debug"
        assert merged.config.admin_socket.admin_uids == (7,)
        assert merged.config.admin_socket.path is None
        assert (merged.config.bind_port, merged.config.prune.audit_retention_seconds) == (8081, 5)
        assert merge(merged.config, new, LIVE).applied == ()
        assert old == config(), "values are frozen"

    def test_nothing_changed(self) -> None:
        merged = merge(config(), config(), LIVE)
        assert (merged.applied, merged.waiting) == ((), ())
        assert merged.config == config()


class TestReload:
    def run(self, path: Path, current: ServerConfig, **more: Any) -> tuple[ServerConfig, list[ServerConfig], list[Any]]:
        applied: list[ServerConfig] = []
        with capture_logs() as logs:
            after = reload(path, current, live=LIVE, check=more.get("check", lambda _: None), apply=applied.append)
        return after, applied, logs

    def test_a_changed_file(self, tmp_path: Path) -> None:
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump({**BASE, "log": {"level": "error"}, "bind_port": 1}))
        after, applied, logs = self.run(path, config())
        assert applied == [after]
        assert after.log.level == "error"
        assert [(line["log_level"], line.get("reason")) for line in logs] == [
            ("info", None),
            ("warning", "RESTART_NEEDED"),
        ]
        assert logs[0]["applied"] == ["log.level"]
        assert logs[1]["keys"] == ["bind_port"]

    @pytest.mark.parametrize("text", ["trust_domian: x\n", "log: {level: loud}\n", ":", "\xff"])
    def test_a_broken_file_changes_nothing_and_says_why(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump(BASE) + text)
        old = config()
        after, applied, (line,) = self.run(path, old)
        assert after is old
        assert applied == []
        assert (line["log_level"], line["reason"], line["file"]) == ("error", "RELOAD_FAILED", str(path))
        assert line["detail"]

    def test_a_file_that_is_gone_and_values_that_do_not_fit_together(self, tmp_path: Path) -> None:
        old = config()
        assert self.run(tmp_path / "gone", old)[0] is old

        def refuse(_: ServerConfig) -> None:
            raise ConfigError("too long")

        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump({**BASE, "x509_svid_ttl_seconds": 90_000}))
        after, applied, (line,) = self.run(path, old, check=refuse)
        assert (after, applied, line["detail"]) == (old, [], "too long")

    def test_systemd_hears_of_both_ends(self, tmp_path: Path, systemd: socket.socket) -> None:
        self.run(tmp_path / "gone", config())
        first = systemd.recv(1000).decode().splitlines()
        assert first[0] == "RELOADING=1"
        assert first[1].startswith("MONOTONIC_USEC=")
        assert systemd.recv(1000) == b"READY=1"


class TestNotify:
    def test_states(self, systemd: socket.socket) -> None:
        notify.ready()
        notify.stopping()
        notify.status("two\nlines")
        assert [systemd.recv(1000) for _ in range(3)] == [b"READY=1", b"STOPPING=1", b"STATUS=two lines"]

    def test_an_abstract_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind("\0burgee-test-notify")
            receiver.settimeout(5)
            monkeypatch.setenv("NOTIFY_SOCKET", "@burgee-test-notify")
            notify.ready()
            assert receiver.recv(100) == b"READY=1"

    @pytest.mark.parametrize("address", ["", "vsock:2:1", "/no/such/socket"])
    def test_nobody_listens(self, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify.ready()
        monkeypatch.delenv("NOTIFY_SOCKET")
        notify.ready()


class TestRedact:
    def test_of_a_plugin_only_what_cannot_be_a_secret_is_shown(self) -> None:
        shown = redact.configuration(
            config(
                keys={"plugin": "vault", "config": {"address": "https://u:pw@v", "token": "T0P", "retries": 3}},
                node_attestors={
                    "x": {"secret_file": "/etc/s", "pins": ["hidden"], "deep": {"a": "hidden", "on": True}}
                },
                store={"url": "postgresql://burgee:hunter2@db/burgee?password=hunter3"},
            )
        )
        text = yaml.safe_dump(shown)
        for secret in ("pw@", "T0P", "hidden", "hunter2", "hunter3"):
            assert secret not in text
        assert shown["node_attestors"]["x"]["secret_file"] == "/etc/s"
        assert shown["node_attestors"]["x"]["deep"] == {"a": redact.WITHHELD, "on": True}
        assert shown["keys"]["config"]["retries"] == 3
        assert "@db/burgee" in shown["store"]["url"]
        assert shown["trust_domain"] == "example.org"

    def test_every_own_key_is_there(self) -> None:
        assert set(redact.configuration(config())) == set(ServerConfig.model_fields)

    @pytest.mark.parametrize(
        ("text", "secret"),
        [
            ("a -----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY----- z", "MIGH"),
            ("a -----BEGIN EC PRIVATE KEY-----\nMIGH cut off", "MIGH"),
            ("a token=eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln z", "c2ln"),
            ("a postgresql://user:pass@host/db", "pass"),
        ],
    )
    def test_texts(self, text: str, secret: str) -> None:
        assert secret not in redact.text(text)
        assert redact.text(text).startswith("a ")

    def test_what_is_no_secret_stays(self) -> None:
        assert redact.text("spiffe://example.org/x at 10:00") == "spiffe://example.org/x at 10:00"


def test_the_last_lines_of_the_log_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("json", "info")
    try:
        for number in range(log.RECENT_LINES + 5):
            log.get("ring").info("line", number=number)
        log.get("ring").info("x" * 10_000)
        kept = log.recent()
        assert len(kept) == log.RECENT_LINES
        assert len(kept[-1]) == log.RECENT_LINE_CHARACTERS
        assert log.recent(2)[0] == kept[-2]
        assert f'"number": {log.RECENT_LINES + 4}' in kept[-2]
    finally:
        capsys.readouterr()
