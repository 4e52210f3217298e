"""The page of reason codes names every code that the code gives, and no other."""

from __future__ import annotations

import re

from tests.docs.reason_codes import NO_REASONS, ROOT, reason_codes

PAGE = ROOT / "docs/reference/reasons.md"
IN_BACKTICKS = re.compile(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*)`")


def documented() -> set[str]:
    return set(IN_BACKTICKS.findall(PAGE.read_text())) - NO_REASONS


def test_every_reason_of_the_code_is_documented() -> None:
    """A new code needs its row: what it means, and what to do."""
    there = documented()
    missing = {code: sorted(files) for code, files in reason_codes().items() if code not in there}
    assert not missing, f"add these to {PAGE.name}: {missing}"


def test_no_documented_reason_is_a_ghost() -> None:
    """What no code gives any more must not be promised."""
    assert documented() <= set(reason_codes())


def test_the_reader_of_codes_sees_each_way_of_giving_one() -> None:
    """By name, by place, as a class's default, returned, in a table: one known example of each."""
    codes = reason_codes()
    for code in ("NO_IDENTITY", "HANDSHAKE_TIMEOUT", "PART_FAILED", "CONNECTION_LIMIT", "SVID_ISSUER_NOT_CA"):
        assert code in codes
