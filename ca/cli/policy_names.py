"""How objects are named on the command line, and how a shell completes them."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer

from ca.cli.connection import SERVER_VARIABLE
from ca.cli.policy_client import PATHS, Api, policy_api
from ca.errors import BurgeeError, InvalidArgument
from policy.book_values import AUTHORIZATION, PEER, REQUEST, WORKLOAD

_SHORT = {"ap": AUTHORIZATION, "ra": REQUEST, "pa": PEER, "wl": WORKLOAD, "policy": AUTHORIZATION}
_KINDS = {
    **_SHORT,
    **{path: kind for kind, path in PATHS.items()},
    **{kind.lower(): kind for kind in PATHS},
    **{f"{kind.lower()}s": kind for kind in PATHS},
}
COMPLETION_SECONDS = 2.0
MAX_COMPLETED = 200


def kind_of(text: str) -> str:
    """A kind by its name, in any case, its plural, its path, or `ap`, `ra`, `pa` or `wl`. Raises InvalidArgument."""
    found = _KINDS.get(text.lower())
    if found is None:
        hint = f"one of {', '.join(PATHS)}, or {', '.join(_SHORT)}"
        raise InvalidArgument(f"`{text}` is no kind of objects", reason="USAGE", hint=hint)
    return found


def names_of(text: str) -> tuple[str, str]:
    """(namespace, name). Raises InvalidArgument."""
    namespace, mark, name = text.partition("/")
    if not mark or not namespace or not name or "/" in name:
        hint = "such as shop/orders; `caadmin policy list` shows both"
        raise InvalidArgument(f"`{text}` is no NAMESPACE/NAME", reason="USAGE", hint=hint)
    return namespace, name


def complete_kind(incomplete: str) -> list[str]:
    """Kinds, as they are written in YAML."""
    return [kind for kind in PATHS if kind.lower().startswith(incomplete.lower())]


def complete_name(context: typer.Context, incomplete: str) -> list[str]:
    """Objects of the kind that was written before."""
    try:
        path = PATHS[kind_of(str(context.params.get("kind")))]
        with _asked(context) as api:
            found = [_name(item) for item in api.pages(f"/{path}", most=5000)]
    except BurgeeError:
        return []
    return [name for name in found if name.startswith(incomplete)][:MAX_COMPLETED]


def complete_revision(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The newest revisions, with their notes."""
    try:
        with _asked(context) as api:
            found = list(api.pages("/revisions", most=50))
    except BurgeeError:
        return []
    told = [(str(one["number"]), f"{one['at']} {one['actor']} {one['note']}") for one in found]
    return [one for one in told if one[0].startswith(incomplete)]


def complete_grant(context: typer.Context, incomplete: str) -> list[str]:
    """Names of grants."""
    try:
        with _asked(context) as api:
            found = [str(one["name"]) for one in api.pages("/grants")]
    except BurgeeError:
        return []
    return [name for name in found if name.startswith(incomplete)]


def _asked(context: typer.Context) -> AbstractContextManager[Api]:
    """The server that the command line names so far."""
    given = context.params.get("socket") or os.environ.get(SERVER_VARIABLE)
    return policy_api(Path(given) if given else None, COMPLETION_SECONDS)


def _name(item: dict[str, Any]) -> str:
    metadata = item["object"]["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}"


KindArgument = Annotated[
    str,
    typer.Argument(
        metavar="KIND",
        help="AuthorizationPolicy (ap), RequestAuthentication (ra), PeerAuthentication (pa) or Workload (wl).",
        autocompletion=complete_kind,
    ),
]
ObjectArgument = Annotated[
    str, typer.Argument(metavar="NAMESPACE/NAME", help="Which one.", autocompletion=complete_name)
]
ObjectsArgument = Annotated[
    list[str], typer.Argument(metavar="NAMESPACE/NAME...", help="Which ones.", autocompletion=complete_name)
]
