"""A token that was away is found again once, however many look for it at the same time."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from ca.errors import Unavailable
from ca.keys import pkcs11_token
from ca.keys.pkcs11_token import Pkcs11Token


class Module:
    """One token; `again` ends every session there is, as C_Finalize does."""

    def __init__(self) -> None:
        self.began = 0
        self.api = SimpleNamespace(get_token=lambda **_: self)

    def again(self) -> None:
        self.began += 1

    def open(self, **_: object) -> SimpleNamespace:
        return SimpleNamespace(began=self.began, close=lambda: None)


def test_of_two_that_wait_for_the_last_session_to_end_one_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Module()
    monkeypatch.setattr(pkcs11_token, "pkcs11_module", lambda _: module)
    monkeypatch.setattr(pkcs11_token, "REOPEN_SECONDS", 0.0)
    token = Pkcs11Token(module="m", label="t", serial=None, pin=lambda: "1234")
    token.open()
    with token.session():
        with pytest.raises(Unavailable), token.session():
            raise RuntimeError("pulled out")
        looking = [threading.Thread(target=token.reopen) for _ in range(2)]
        for thread in looking:
            thread.start()
        time.sleep(0.2)  # both wait for the session that is lent
        assert module.began == 0
    for thread in looking:
        thread.join(5)
    assert module.began == 1
    assert token.problem() is None
    with token.session() as session:
        assert session.began == module.began
