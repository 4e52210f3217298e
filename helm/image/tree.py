"""Makes what an image of Burgee holds beside its base: `python helm/image/tree.py OUT`, from the root of a checkout.

The Dockerfile runs it, and so can anybody who has no container engine. What comes out is the same, byte for byte, for
the same checkout and the same Python 3.11. It needs pip, and what `helm/image/build.lock` lists; no shell.
"""

from __future__ import annotations

import compileall
import hashlib
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "helm/image/requirements.lock"
PACKAGES = Path("opt/burgee")
PROGRAMS = {"burgee": "ca.cli.burgee", "caadmin": "ca.cli.caadmin"}
PYTHON = "/usr/bin/python3"
"""Of the image's base. -P: the current directory is no place to import from."""

TRACES = frozenset({"INSTALLER", "REQUESTED", "direct_url.json", "RECORD"})
SOURCES = frozenset({".c", ".h", ".pxd", ".pxi", ".pyi", ".pyx"})
"""Of compiled modules, and types for checkers."""

EPOCH = "1735689600"
"""The time of every file. It means nothing, and zip has none before 1980."""


def main(out: Path) -> None:
    """Into `out`, which must not be there yet."""
    if os.environ.get("PYTHONHASHSEED") != "0":  # a frozenset in a compiled file has the order of its hashes
        again = [sys.executable, *sys.argv]
        os.execve(sys.executable, again, os.environ | {"PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": EPOCH})  # noqa: S606
    os.umask(0o022)
    packages = out / PACKAGES
    packages.mkdir(parents=True)
    _pip("install", "--require-hashes", "-r", str(LOCK), "--target", str(packages))
    with tempfile.TemporaryDirectory() as wheels:
        _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, str(ROOT))
        (wheel,) = Path(wheels).glob("burgee-*.whl")
        zipfile.ZipFile(wheel).extractall(packages)
    _forget_the_installation(packages)
    _write_programs(out / "usr/local/bin")
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH  # the image is read-only, and its files have no times
    if not compileall.compile_dir(packages, quiet=1, stripdir=str(out), prependdir="/", invalidation_mode=unchecked):
        raise SystemExit("not everything could be compiled")
    _level(out)


def listing(out: Path) -> Iterator[str]:
    """A line for each file: mode, size, SHA-256, path."""
    for path in sorted(out.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            mode = path.stat().st_mode & 0o7777
            yield f"{mode:04o} {len(data):9} {hashlib.sha256(data).hexdigest()} /{path.relative_to(out)}"


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    if arguments[0] == "install":
        command += ["--no-deps", "--no-compile", "--only-binary", ":all:"]
    subprocess.run(command, check=True, cwd=ROOT)


def _forget_the_installation(packages: Path) -> None:
    """Programs of other packages, who installed what from where, and what is for their own developers."""
    for path in sorted(packages.rglob("*"), reverse=True):
        if path.is_dir():
            if path.name == "tests" or path == packages / "bin":
                shutil.rmtree(path)
        elif path.name in TRACES or path.suffix in SOURCES:
            path.unlink()


def _write_programs(directory: Path) -> None:
    directory.mkdir(parents=True)
    for name, module in PROGRAMS.items():
        program = directory / name
        program.write_text(f"#!{PYTHON} -P\nfrom {module} import main\n\nmain()\n")
        program.chmod(0o755)


def _level(out: Path) -> None:
    """One mode for files, one for directories and programs, and one time for all."""
    for path in (out, *out.rglob("*")):
        program = path.parent == out / "usr/local/bin"
        path.chmod(0o755 if path.is_dir() or program else 0o644)
        os.utime(path, (int(EPOCH), int(EPOCH)))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
    print("\n".join(listing(Path(sys.argv[1]).resolve())))
