"""`caadmin debug`: what a bug report should bring along, in one file and without secrets."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ca.cli.connection import AgentSocketOption, Remote, SocketOption, agent_socket, channel, server_socket
from ca.cli.exits import Exit, leave
from ca.cli.files import write_file
from ca.cli.output import Output, OutputOption, emit
from ca.errors import BurgeeError

if TYPE_CHECKING:
    from ca.proto.burgee import debug_pb2

app = typer.Typer(help="For bug reports.")

REPORT_SECONDS = 30.0
_READ_ME = """What `caadmin debug bundle` collected for a bug report.

server/ and agent/: status, health, metrics, versions, the configuration and the last log lines, as the running
programs gave them; error.txt where one did not answer. client/: the versions of caadmin itself.

Private keys, unused join tokens, passwords and signed tokens are not in here. SPIFFE IDs, selectors, addresses and
file names are; look through it before you publish it. An agent's SPIFFE ID may hold a join token that was used up.
"""


@app.callback()
def debug() -> None:
    """For bug reports."""


@app.command("bundle")
def bundle(
    file: Annotated[Path, typer.Option("--file", "-f", help="The archive to write, .tar.gz; made private (0600).")],
    log_lines: Annotated[int, typer.Option(help="At most so many log lines of each; 0 for all kept.", min=0)] = 0,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
    agent_socket_path: AgentSocketOption = None,
) -> None:
    """Collect status, health, metrics, logs, versions and configuration of server and agent, without secrets.

    What does not answer is left out and its error noted. Exits with 1 when neither answers.
    """
    parts: dict[str, str] = {"README.txt": _READ_ME}
    server, agent = server_socket(socket), agent_socket(agent_socket_path)
    answered = [
        _collect(parts, "server", lambda: _program(server, "server", log_lines, _server_status)),
        _collect(parts, "agent", lambda: _program(agent, "agent", log_lines, _agent_status)),
    ]
    from ca.runtime.debug_report import versions

    parts["client/versions.json"] = json.dumps(versions(), indent=2)
    _write(file, parts)
    data = {"file": str(file), "parts": sorted(parts), "server": answered[0], "agent": answered[1]}
    emit(data, output, lambda: "\n".join([f"wrote {file}", *(f"  {name}" for name in sorted(parts))]))
    leave(Exit.OK if any(answered) else Exit.FAILED)


def _collect(parts: dict[str, str], name: str, ask: Callable[[], dict[str, str]]) -> bool:
    try:
        parts |= {f"{name}/{part}": text for part, text in ask().items()}
    except BurgeeError as error:
        parts[f"{name}/error.txt"] = f"{error.detail} ({error.reason})\n{error.hint}\n"
        return False
    return True


def _program(
    socket: Path | Remote, who: str, log_lines: int, status: Callable[[Path | Remote], dict[str, Any]]
) -> dict[str, str]:
    from ca.proto.burgee import debug_pb2, debug_pb2_grpc

    with channel(socket, who=who) as opened:
        request = debug_pb2.GetReportRequest(log_lines=log_lines)
        report = debug_pb2_grpc.DebugStub(opened).GetReport(request, timeout=REPORT_SECONDS)
    return {"status.json": json.dumps(status(socket), indent=2), **_files(report)}


def _files(report: debug_pb2.Report) -> dict[str, str]:
    times = {
        "started_at": datetime.fromtimestamp(report.started_at, UTC).isoformat(),
        "now": datetime.fromtimestamp(report.now, UTC).isoformat(),
    }
    return {
        "versions.json": json.dumps({**times, **dict(sorted(report.versions.items()))}, indent=2),
        "config.yaml": report.config_yaml,
        "health.json": report.health_json,
        "metrics.txt": report.metrics_text,
        "log.txt": "\n".join(report.log),
    }


def _server_status(socket: Path | Remote) -> dict[str, Any]:
    from ca.cli.health import server_status

    return server_status(socket)


def _agent_status(socket: Path | Remote) -> dict[str, Any]:
    from ca.cli.health import agent_status

    assert isinstance(socket, Path)
    return agent_status(socket)


def _write(file: Path, parts: dict[str, str]) -> None:
    from ca.runtime.redact import text

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in sorted(parts.items()):
            data = text(content).encode()  # once more: whatever a program says, nothing secret leaves with it
            entry = tarfile.TarInfo(f"burgee-debug/{name}")
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(datetime.now(UTC).timestamp())
            archive.addfile(entry, io.BytesIO(data))
    write_file(file, packed.getvalue())
