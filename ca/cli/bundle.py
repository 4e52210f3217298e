"""`caadmin bundle`: the trust bundle, by which everybody verifies what this server issues, and those of others."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ca.cli.bundle_calls import bundle_of, bundle_stub, complete, federated_bundles
from ca.cli.bundle_changes import delete, set_
from ca.cli.bundle_values import describe, table
from ca.cli.connection import SocketOption, channel, server_socket
from ca.cli.output import Output, OutputOption, emit
from ca.identity.spiffe_id import TrustDomain

if TYPE_CHECKING:
    from ca.identity.bundle import TrustBundle

app = typer.Typer(help="Trust bundles, by which everybody verifies what this server and others issue.")
app.command("set")(set_)
app.command("delete")(delete)


class Format(StrEnum):
    """Shapes of a bundle."""

    PEM = "pem"
    SPIFFE = "spiffe"
    JWKS = "jwks"


@app.callback()
def bundle() -> None:
    """Trust bundles, by which everybody verifies what this server and others issue."""


@app.command()
def show(
    trust_domain: Annotated[
        str | None,
        typer.Argument(
            metavar="TRUST_DOMAIN",
            help="Whose; the server's own otherwise.",
            show_default=False,
            autocompletion=complete,
        ),
    ] = None,
    format_: Annotated[
        Format,
        typer.Option(
            "--format",
            help="pem: X.509 authorities; spiffe: the SPIFFE bundle with all keys; jwks: JWT keys as the Workload API "
            "gives them.",
        ),
    ] = Format.PEM,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Print a bundle. With --output json or yaml: what it holds, described."""
    wanted = None if trust_domain is None else TrustDomain.parse(trust_domain)
    with channel(server_socket(socket)) as opened:
        received = bundle_of(bundle_stub(opened), wanted)
    data = describe(received) if output is not Output.TABLE else None
    emit(data, output, lambda: _format(received, format_).rstrip("\n"))


@app.command("list")
def list_(output: OutputOption = Output.TABLE, socket: SocketOption = None) -> None:
    """List the bundles of other trust domains."""
    with channel(server_socket(socket)) as opened:
        bundles = [describe(found) for found in federated_bundles(bundle_stub(opened))]
    emit({"bundles": bundles}, output, lambda: table(bundles))


def _format(received: TrustBundle, format_: Format) -> str:
    from ca.identity.bundle_json import format_jwks, format_spiffe_bundle
    from ca.identity.bundle_pem import format_pem

    make: dict[Format, Any] = {Format.PEM: format_pem, Format.SPIFFE: format_spiffe_bundle, Format.JWKS: format_jwks}
    return str(make[format_](received))
