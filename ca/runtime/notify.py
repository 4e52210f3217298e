"""Tells systemd how far we are: sd_notify(3) in a few lines; without $NOTIFY_SOCKET nothing happens."""

from __future__ import annotations

import os
import socket
import time

from ca.runtime import log

_log = log.get("notify")


def ready() -> None:
    """Started, or done with reloading."""
    _send("READY=1")


def reloading() -> None:
    """`ready` follows. systemd wants to know when this was (CLOCK_MONOTONIC)."""
    _send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """Shutting down."""
    _send("STOPPING=1")


def status(text: str) -> None:
    """A line for `systemctl status`."""
    _send(f"STATUS={' '.join(text.split())}")


def _send(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # an abstract name (unix(7))
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(1.0)
            sender.connect(address)
            sender.sendall(state.encode())
    except OSError as error:
        _log.warning("systemd was not told", reason="NOTIFY_FAILED", state=state.partition("\n")[0], error=str(error))
