"""Per-item statuses of batch calls."""

from __future__ import annotations

from ca.errors import STATUS, BurgeeError
from ca.proto.spire import types_pb2
from ca.runtime.item_status import item_message


def ok() -> types_pb2.Status:
    return types_pb2.Status(code=0, message="OK")


def failed(error: BurgeeError) -> types_pb2.Status:
    """The item's own error; hint and reason travel behind the detail, since a Status has no other place for them."""
    return types_pb2.Status(code=STATUS[error.code][0], message=item_message(error))
