"""Where the programs that judge us are, and how to get them."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.real import require

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("BURGEE_CACHE", ROOT / ".cache"))


def go_program(name: str) -> Path:
    """A program of ours that tests/support/build-go.sh builds."""
    path = CACHE / "bin" / name
    require(f"Go (for {name})", path.exists(), "install Go, then bash tests/support/build-go.sh")
    return path


def java_program() -> Path:
    """The jar that tests/support/build-java.sh builds."""
    path = CACHE / "java" / "conformance.jar"
    how = "apt-get install default-jdk-headless maven, then bash tests/support/build-java.sh"
    require("a JDK (for java-spiffe)", path.exists(), how)
    return path
