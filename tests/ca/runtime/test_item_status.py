"""The reason of an item of a batch, written into its message and found there again."""

from __future__ import annotations

import pytest

from ca.errors import AlreadyExists, BurgeeError, Denied, Exhausted, NotFound
from ca.proto.spire import types_pb2
from ca.runtime.item_status import item_message, split_message
from sds.wire import status_error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (AlreadyExists("similar entry already exists", reason="ENTRY_SIMILAR"), "similar entry already exists"),
        (Exhausted("too many (10)", reason="LIMIT", hint="come\nagain"), "too many (10); come\nagain"),
        (NotFound("no `(NOT_THIS)`"), "no `(NOT_THIS)`"),
    ],
)
def test_what_is_written_is_read(error: BurgeeError, message: str) -> None:
    assert item_message(error) == f"{message} ({error.reason})"
    assert split_message(item_message(error)) == (message, error.reason)


@pytest.mark.parametrize(
    "message", ["", "OK", "entry not found", "a hint (try again)", "(ALONE)", "x (A1)", "x (UP) y"]
)
def test_what_has_no_reason_stays_as_it_is(message: str) -> None:
    assert split_message(message) == (message, "")


def test_an_agent_hears_the_reason_of_an_item() -> None:
    ours = status_error(types_pb2.Status(code=7, message="it may not (ENTRY_NOT_AUTHORIZED)"))
    assert isinstance(ours, Denied)
    assert (ours.detail, ours.reason) == ("it may not", "ENTRY_NOT_AUTHORIZED")
    assert status_error(types_pb2.Status(code=5, message="entry not found")).reason == "NOT_FOUND"
