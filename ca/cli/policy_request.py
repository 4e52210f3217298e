"""The request that `caadmin policy explain` is about, as its options say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from ca.errors import InvalidArgument

TargetArgument = Annotated[
    str, typer.Argument(metavar="TARGET", help="Who is called: a SPIFFE ID, or its last part where that is enough.")
]
CallerOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="Who calls: a SPIFFE ID, or its last part where that is enough. Default: no certificate.",
        show_default=False,
    ),
]
MethodOption = Annotated[str | None, typer.Option(help="The method. Default: GET.", show_default=False)]
PathOption = Annotated[str | None, typer.Option(help="The path. Default: /.", show_default=False)]
HostOption = Annotated[str | None, typer.Option(help="The authority.", show_default=False)]
PortOption = Annotated[int | None, typer.Option(help="The port that is called.", show_default=False)]
HeaderOption = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A header.", show_default=False)]
ClaimOption = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="A claim of a verified token.", show_default=False)
]
SourceIpOption = Annotated[str | None, typer.Option(help="Where the connection is from.", show_default=False)]
RemoteIpOption = Annotated[str | None, typer.Option(help="The client's address.", show_default=False)]
SniOption = Annotated[str | None, typer.Option(help="The name in the TLS handshake.", show_default=False)]
TcpOption = Annotated[bool, typer.Option("--tcp", help="A connection that is not HTTP.")]


def request_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the options say, by the fields of `policy.model.Request`; what they do not say is left out. Raises
    InvalidArgument (USAGE)."""
    from policy.paths import without_query

    http = not given["tcp"]
    asked = {
        **{name: given[name] for name in ("principal", "source_ip", "remote_ip", "sni")},
        "http": http,
        "destination_port": given["port"],
        "method": (given["method"] or "GET") if http else None,
        "path": without_query(given["path"] or "/") if http else None,
        "host": given["host"] if http else None,
        "headers": {name.lower(): value for name, value in _pairs(given["header"], "--header")},
        "claims": dict(_pairs(given["claim"], "--claim")) or None,
    }
    return {name: value for name, value in asked.items() if value is not None}


def _pairs(texts: list[str] | None, option: str) -> list[tuple[str, str]]:
    """(name, value) of each."""
    parts = [text.partition("=") for text in texts or ()]
    if any(not mark or not name for name, mark, _ in parts):
        raise InvalidArgument(f"{option} wants NAME=VALUE", reason="USAGE")
    return [(name, value) for name, _, value in parts]
