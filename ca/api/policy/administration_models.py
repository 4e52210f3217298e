"""Grants and invariants over the wire, as models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from ca.api.policy.models import Asked, SpiffeIdText, Told


class GrantDocument(Asked):
    """Who may do what. `spiffe_id` is exact, or has an asterisk at its end. A reader may have the namespace `*`, which
    is all of them; an admin has none."""

    spiffe_id: SpiffeIdText
    role: Literal["reader", "author", "admin"]
    namespaces: Annotated[
        list[Annotated[str, StringConstraints(max_length=63)]], Field(max_length=1000, default_factory=list)
    ]


class InvariantsAsked(Asked):
    """What no policy may ever allow: objects of kind `Invariant`, in YAML."""

    text: Annotated[str, StringConstraints(max_length=200_000)]


class GrantTold(Told):
    """A grant. `effect` is of a dry run: in words, what whom it names would gain and lose by it, beside all
    other grants."""

    name: str
    spiffe_id: str
    role: Literal["reader", "author", "admin"]
    namespaces: list[str]
    etag: str
    effect: list[str] | None = None


class GrantList(Told):
    """A page of grants, by name; `next` is there if another follows."""

    items: list[GrantTold]
    next: str | None = None


class InvariantsDocument(Told):
    """The invariants that every write must keep, as they were written, or with `dry_run` would be."""

    text: str
    etag: str
