"""A SoftHSM token for a test: software that speaks PKCS#11 as an HSM does.

A process has one SoftHSM, whose tokens are directories; all tests of a process share it and make tokens of their own.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.real import require

PIN = "246810"
_SO_PIN = "13579"
_MODULES = (
    Path("/usr/lib/softhsm/libsofthsm2.so"),
    Path("/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"),
    Path("/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so"),
)


@dataclass(frozen=True, kw_only=True)
class SoftHsmToken:
    """A fresh token. `directory` is where it is."""

    module: Path
    label: str
    directory: Path

    def config(self, pin_file: Path) -> dict[str, Any]:
        """For the pkcs11 key manager; the PIN is written to `pin_file`."""
        pin_file.write_text(PIN + "\n")
        pin_file.chmod(0o600)
        return {"module": str(self.module), "token_label": self.label, "pin_file": str(pin_file)}

    def pull_out(self) -> None:
        self.directory.rename(self._elsewhere)

    def put_back(self) -> None:
        self._elsewhere.rename(self.directory)

    @property
    def _elsewhere(self) -> Path:
        return self.directory.parent.parent / f"out-{self.directory.name}"


def softhsm_token() -> SoftHsmToken:
    """Skips where SoftHSM cannot be had."""
    module = next((path for path in _MODULES if path.exists()), None)
    require("SoftHSM", module is not None and shutil.which("softhsm2-util") is not None, "apt-get install softhsm2")
    assert module is not None
    tokens = _tokens()
    before = set(tokens.iterdir())
    label = f"test-{secrets.token_hex(6)}"
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", _SO_PIN],
        check=True,
        capture_output=True,
    )
    (made,) = set(tokens.iterdir()) - before
    return SoftHsmToken(module=module, label=label, directory=made)


@cache
def _tokens() -> Path:
    """Where this process's tokens are; the module reads the variable when it is loaded."""
    home = Path(tempfile.mkdtemp(prefix="burgee-softhsm-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    tokens = home / "tokens"
    tokens.mkdir()
    (home / "softhsm2.conf").write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\n")
    os.environ["SOFTHSM2_CONF"] = str(home / "softhsm2.conf")
    return tokens
