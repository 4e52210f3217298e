"""Durations, and what is said where a number of seconds was wanted."""

from __future__ import annotations

import pytest

from ca.errors import ConfigError
from ca.runtime.config import StrictModel, load_yaml
from ca.runtime.durations import MAX_CHARACTERS, parse_duration, seconds_hint
from ca.runtime.server_config import ServerConfig


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("90", 90), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("7d", 604800)]
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "1.5h", "1m1h", "-1", "١h", "1h\n", "1" * (MAX_CHARACTERS + 1)])
def test_what_is_none(text: str) -> None:
    assert parse_duration(text) is None


def test_a_hint_is_for_durations_alone() -> None:
    assert seconds_hint("ttl_seconds", "1h") == "it takes a number of seconds: `ttl_seconds: 3600`"
    assert [seconds_hint("ttl_seconds", value) for value in ("soon", 1, None, ["1h"])] == [""] * 4


def test_a_configuration_is_answered_with_the_number() -> None:
    with pytest.raises(ConfigError) as refused:
        load_yaml("trust_domain: example.org\ndata_dir: /d\nca_ttl_seconds: 7d\n", ServerConfig)
    assert refused.value.detail.startswith("<text>:3: `ca_ttl_seconds`: ")
    assert refused.value.hint == "it takes a number of seconds: `ca_ttl_seconds: 604800`"


class Other(StrictModel):
    """No key of it is about time."""

    pin: int


def test_what_is_no_duration_by_its_key_is_not_repeated() -> None:
    """It could be a secret."""
    with pytest.raises(ConfigError) as refused:
        load_yaml("pin: '4711'", Other)
    assert "4711" not in refused.value.detail + refused.value.hint
