"""What was asked of speed and cannot be had, with the arithmetic; each is measured all the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.bench.load import CACHE, ROOT
from tests.support.real import require
from tests.support.softhsm import softhsm_token


@pytest.mark.xfail(
    (os.cpu_count() or 1) <= 2,
    raises=AssertionError,
    strict=True,
    reason="a batch proves possession of each key, signs, and verifies what a module that is not ours signed. Two "
    "P-256 verifications (75 µs), SoftHSM's signature (62 µs) and what makes the certificate (90 µs) take two cores "
    "114 µs a certificate at best, and 150 µs are measured; one and a half times the bare loop is 93 µs",
)
def test_a_batch_with_keys_in_softhsm_within_one_and_a_half_bare_loops() -> None:
    require("Go", (CACHE / "bin/wire").exists(), "install Go, then: make test")
    softhsm_token()
    # A process has one SoftHSM, which other tests here finalize and begin again: what is bare has a process of its own.
    program = "import json; from tests.bench.remote_keys import softhsm; print(json.dumps(softhsm(rounds=5)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200, cwd=ROOT)
    if done.returncode:
        pytest.fail(done.stderr, pytrace=False)
    assert json.loads(done.stdout.splitlines()[-1])["softhsm_worst"] <= 1.5
