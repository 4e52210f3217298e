"""The rule for missing real parts: skipped with the command that would bring them, failed where nothing may be."""

from __future__ import annotations

import pytest

from tests.support.real import require


def test_a_missing_part_skips_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    require("Sunshine", available=True, how="wait")
    monkeypatch.delenv("BURGEE_REQUIRE_REAL", raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs Sunshine: wait"):
        require("Sunshine", available=False, how="wait")
    monkeypatch.setenv("BURGEE_REQUIRE_REAL", "1")
    with pytest.raises(pytest.fail.Exception, match="needs Sunshine: wait"):
        require("Sunshine", available=False, how="wait")
