"""What a bug report shows of a configuration and of texts."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from ca.runtime.redact import WITHHELD, configuration, text


class Inner(BaseModel):
    url: str = "postgresql+psycopg://burgee:hunter2@db/burgee?sslpassword=hunter2"
    password: str = "hunter2"
    password_file: str = "/etc/burgee/password"


class Outer(BaseModel):
    store: Inner = Inner()
    plugin: dict[str, Any] = {
        "join_token": {"token": "hunter2", "token_file": "/etc/burgee/token", "anything": "hunter2", "size": 3}
    }
    lists: tuple[str, ...] = ("https://x:hunter2@example.org/",)


def test_secrets_of_a_configuration_are_withheld_and_their_places_shown() -> None:
    shown = configuration(Outer())
    assert "hunter2" not in repr(shown)
    assert shown["store"]["password"] == WITHHELD
    assert shown["store"]["password_file"] == "/etc/burgee/password"
    assert shown["plugin"]["join_token"]["token_file"] == "/etc/burgee/token"
    assert shown["plugin"]["join_token"]["size"] == 3


def test_keys_and_tokens_are_taken_out_of_texts() -> None:
    key = "-----BEGIN PRIVATE KEY-----\nMIIhunter2\n-----END PRIVATE KEY-----"
    addresses = ("https://u:hunter2@h/", "postgresql+psycopg://u:hun/ter2@h/d", "mysql://u:hun@ter2@h/d")
    for secret in (key, key[:30], "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl", *addresses):
        shown = text(f"before {secret} after")
        assert secret not in shown
        assert WITHHELD in shown
        assert "ter2" not in shown
    assert text("nothing of that kind") == "nothing of that kind"
