"""Real parts: a test that lacks one is skipped and says how to get it, or fails where nothing may be skipped."""

from __future__ import annotations

import os

import pytest


def require(part: str, available: bool, how: str) -> None:
    """Go on if the part is here; else skip with `needs <part>: <how>`, the form that the closing table reads.

    `how` is the command that would bring the part. With BURGEE_REQUIRE_REAL=1 its absence is a failure.
    """
    if available:
        return
    reason = f"needs {part}: {how}"
    if os.environ.get("BURGEE_REQUIRE_REAL") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
