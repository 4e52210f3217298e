"""Ports in use are named with their holder."""

from __future__ import annotations

import os
import socket

import pytest

from ca.errors import FailedPrecondition
from ca.up.ports import claim, free_port, holder


def test_a_port_in_use_names_who_holds_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(FailedPrecondition) as caught:
            claim(port)
    assert caught.value.reason == "PORT_IN_USE"
    assert f"port {port} is in use by `" in caught.value.detail
    assert f"(pid {os.getpid()})" in caught.value.detail
    assert "--port" in caught.value.hint


def test_zero_means_any_and_a_free_port_is_kept() -> None:
    assert claim(0) > 0
    port = free_port()
    assert claim(port) == port


def test_nobody_holds_a_free_port() -> None:
    assert holder(free_port()) == ""
