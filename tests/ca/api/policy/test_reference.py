"""The REST reference: its examples run as they stand, and it knows every route."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import pytest

from ca.api.policy.reference import described
from tests.ca.api.policy.http import Client
from tests.support.server import RunningServer

PAGE = Path(__file__).resolve().parents[4] / "docs/policy/rest.md"


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="apt-get install curl jq")
async def test_its_examples_run(server: RunningServer, tmp_path: Path) -> None:
    (script,) = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    process = await asyncio.create_subprocess_exec(
        *("bash", "-eu", "-o", "pipefail", "-c", script),
        cwd=tmp_path,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "SOCKET": str(server.config.admin_socket_path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    words = out.decode()
    assert '"equivalent": false' in words
    for line in ("2", "3", "false", "4", '"author"'):
        assert f"\n{line}\n" in words, (line, words)
    assert "method" in words


async def test_the_server_gives_the_same_document(local: Client) -> None:
    given = (await local("GET", "/openapi.json")).body
    made = described()
    assert given["openapi"].startswith("3.1")
    assert made["paths"].keys() == given["paths"].keys() - {"/v1/policy/openapi.json"}
    assert made["components"]["schemas"].keys() <= given["components"]["schemas"].keys()
    operations = [one for path in given["paths"].values() for one in path.values()]
    assert len({one["operationId"] for one in operations}) == len(operations)
    for one in operations:
        assert "422" not in one["responses"]
        assert {"200", "400", "403", "429"} <= one["responses"].keys()
