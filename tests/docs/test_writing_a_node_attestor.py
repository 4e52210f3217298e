"""The tutorial's package is built from the page, passes the contract, and attests a real agent to a real server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.pair import Pair, pair
from tests.support.real import require

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/plugins/writing-a-node-attestor.md"
_FILE = re.compile(r"^\*\*`([^`]+)`\*\*[^\n]*\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMANDS = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILES = dict(_FILE.findall(PAGE.read_text()))
CONTRACT, KEYS = _COMMANDS.findall(PAGE.read_text())


def installed(paths: pytest.TempPathFactory, files: dict[str, str]) -> Path:
    """Where the package is installed, as pip does it: nothing of it is in our own environment."""
    package, target = paths.mktemp("package"), paths.mktemp("site")
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    install = ["install", "-q", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([sys.executable, "-m", "pip", *install, str(target), str(package)], check=True, timeout=120)
    return target


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory, {name: text for name, text in FILES.items() if not name.endswith(".yaml")})


def test_it_keeps_the_contract(site: Path) -> None:
    command = CONTRACT.split()
    assert command[:3] == ["python", "-m", "pytest"]
    done = subprocess.run(
        [sys.executable, *command[1:], "-q", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 7, done.stdout[-500:]
    assert "skipped" not in done.stdout


def test_an_agent_attests_with_it(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require("openssl", subprocess.run(["openssl", "version"], check=False).returncode == 0, "apt-get install openssl")
    subprocess.run(["sh", "-ec", KEYS], cwd=tmp_path, check=True, capture_output=True, timeout=30)
    monkeypatch.setenv("PYTHONPATH", str(site))
    server, agent = (yaml.safe_load(in_directory(FILES[name], tmp_path)) for name in ("server.yaml", "agent.yaml"))
    with pair(server=server, agent=agent) as both:
        assert both.agent_path() == "/spire/agent/machine_key/web-1"
        restart_without_state(both)


def in_directory(text: str, directory: Path) -> str:
    """The page's file names are those of the directory where its commands ran."""
    return re.sub(r"\b(key|web-1)\.pem", lambda found: str(directory / found[0]), text)


def restart_without_state(both: Pair) -> None:
    """It is reattestable: an agent that lost everything proves itself again."""
    both.stop("agent")
    shutil.rmtree(both.home / "agent")
    both.start_agent(token=False)
    assert both.agent_path() == "/spire/agent/machine_key/web-1"
