"""The decision log's part of a configuration, the server's and the agent's."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, field_validator

from ca.runtime.config import StrictModel

DEFAULT_MASK = ("authorization", "cookie", "proxy-authorization", "set-cookie", "x-api-key", "x-forwarded-client-cert")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]{1,256}")


class DecisionLogConfig(StrictModel):
    """What is kept of the policies' decisions: one line of JSON for each, in files of bounded size and number."""

    enabled: bool = Field(default=True, description="Whether decisions are kept at all. They are counted anyway.")
    directory: Path | None = Field(
        default=None,
        description="Where, in a directory that nobody else may enter. Default: `<data_dir>/decisions`.",
    )
    max_file_bytes: int = Field(
        default=16 << 20, ge=1 << 16, le=1 << 30, description="A file that has reached this size is put aside."
    )
    max_files: int = Field(
        default=5, ge=1, le=100, description="Files that are kept, the one that is written to included."
    )
    max_asked_files: int = Field(
        default=2,
        ge=1,
        le=100,
        description="The same of what was only asked about, over AuthZEN and `evaluate`: it has files of its own, so "
        "that questions never push out what proxies enforced.",
    )
    max_waiting: int = Field(
        default=8192,
        ge=1,
        le=1_000_000,
        description="Decisions that wait to be written. What comes while so many wait is lost, and the loss is counted "
        "in a metric and in the log itself; no request waits for the log.",
    )
    sample_allowed: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="The share of allowed requests that is kept. Refusals, and what a shadow policy would refuse, are "
        "always kept.",
    )
    mask_headers: tuple[str, ...] = Field(
        default=DEFAULT_MASK,
        description="Headers of which only the name is kept, in lower case. Queries are never kept.",
    )
    mask_claims: tuple[str, ...] = Field(
        default=(), description="Claims of tokens, by their name at the top, of which only the name is kept."
    )

    @field_validator("mask_headers")
    @classmethod
    def _lower_case(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not _HEADER.fullmatch(name):
                raise ValueError(f"`{name}` is no header's name in lower case")
        return value
