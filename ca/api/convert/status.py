"""Per-item statuses of batch calls."""

from __future__ import annotations

from ca.errors import STATUS, BurgeeError
from ca.proto.spire import types_pb2


def ok() -> types_pb2.Status:
    return types_pb2.Status(code=0, message="OK")


def failed(error: BurgeeError, prefix: str = "") -> types_pb2.Status:
    """The item's own error; hints travel behind the detail, since a Status has no other place for them."""
    text = prefix + error.detail
    return types_pb2.Status(code=STATUS[error.code][0], message=f"{text} ({error.hint})" if error.hint else text)
