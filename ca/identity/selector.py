"""Selectors: facts about a node or a workload, `type:value`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Selector:
    """`type` has no colon and is not empty; `value` is not empty and may hold colons."""

    type: str
    value: str
