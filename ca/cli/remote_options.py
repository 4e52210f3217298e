"""The options by which a command administers another machine's server, given to every command that has `--socket`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from ca.cli.connection import Remote, administering
from ca.errors import InvalidArgument

SERVER_VARIABLE = "BURGEE_SERVER"
SVID_DIR_VARIABLE = "BURGEE_SVID_DIR"

ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="HOST:PORT",
        envvar=SERVER_VARIABLE,
        show_default=False,
        help="Administer this server over the network instead of a local one, with an X.509-SVID whose entry has "
        "`admin`; for `caadmin policy`, with one that a grant is for.",
    ),
]
SvidDirOption = Annotated[
    Path | None,
    typer.Option(
        "--svid-dir",
        envvar=SVID_DIR_VARIABLE,
        show_default=False,
        help="With --server: svid.pem, svid.key and bundle.pem, as `svid watch --write` keeps them. Default: what the "
        "Workload API gives.",
    ),
]
AsOption = Annotated[
    str | None,
    typer.Option(
        "--as", show_default=False, help="With --server: which of several SVIDs of the Workload API; its SPIFFE ID."
    ),
]


def offer(app: typer.Typer) -> None:
    """Give every command that talks to the server the options of remote administration, once."""
    for command in app.registered_commands:
        if command.callback is not None and _wants(inspect.signature(command.callback).parameters):
            command.callback = _with_remote(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            offer(group.typer_instance)


def _wants(parameters: Iterable[str]) -> bool:
    """Whether it talks to the server, and has not got them yet."""
    return {"socket", "as_id"}.intersection(parameters) == {"socket"}


def _with_remote(command: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(command)
    def wrapped(*, server: str | None, svid_dir: Path | None, as_id: str | None, **others: Any) -> Any:
        with administering(_remote(server, svid_dir, as_id)):
            return command(**others)

    signature = inspect.signature(command, eval_str=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    options = {"server": ServerOption, "svid_dir": SvidDirOption, "as_id": AsOption}
    added = [inspect.Parameter(name, kind, default=None, annotation=option) for name, option in options.items()]
    kept = [parameter.replace(kind=kind) for parameter in signature.parameters.values()]
    wrapped.__signature__ = signature.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
    return wrapped


def _remote(server: str | None, svid_dir: Path | None, as_id: str | None) -> Remote | None:
    from ca.runtime.addresses import split_address

    if server is None:
        if as_id is not None:
            raise InvalidArgument("--as is of use with --server alone", reason="USAGE")
        return None
    try:
        split_address(server)
    except ValueError as error:
        raise InvalidArgument(str(error), reason="USAGE") from error
    return Remote(server, svid_dir, as_id)
