"""`caadmin svid`: mint SVIDs as an administrator; fetch, watch and inspect them as a workload."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ca.cli import mint
from ca.cli.arguments import DURATION_HELP, waiting
from ca.cli.exits import Exit, leave, show_error
from ca.cli.output import Output, OutputOption, columns, emit, until
from ca.cli.svid_files import SvidFiles, command_line, write_all
from ca.cli.workload import workload_client
from ca.errors import BurgeeError, Code, InvalidArgument, Unavailable
from ca.identity.endpoint import DEFAULT_SOCKET, ENVIRONMENT_VARIABLE

if TYPE_CHECKING:
    from ca.proto.burgee import workload_pb2

app = typer.Typer(help="SVIDs: mint them as an administrator; fetch, watch and inspect them as a workload.")
app.add_typer(mint.app, name="mint")

EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        help=f"The Workload API, such as unix://{DEFAULT_SOCKET}. Default: that of the `burgee up` which runs in this "
        f"directory, else {DEFAULT_SOCKET}. Environment: `{ENVIRONMENT_VARIABLE}`.",
        show_default=False,
    ),
]
TimeoutOption = Annotated[str, typer.Option(help=f"How long to wait for an answer. {DURATION_HELP}")]

FIRST_BACKOFF_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 30.0


@app.command()
def fetch(
    audience: Annotated[
        list[str] | None, typer.Option(help="Fetch JWT-SVIDs for this audience. Repeatable.", show_default=False)
    ] = None,
    spiffe_id: Annotated[str, typer.Option(help="With --audience: only of this ID.")] = "",
    write: Annotated[
        Path | None,
        typer.Option(
            help="Write svid.key, svid.pem, bundle.pem and federated bundles (0600) into this directory; of further "
            "SVIDs svid.1.key, svid.1.pem, bundle.1.pem and so on."
        ),
    ] = None,
    timeout: TimeoutOption = "10s",
    endpoint: EndpointOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Fetch what this process may have. Private keys are only ever written to files, with --write."""
    seconds = waiting(timeout)
    if audience:
        _fetch_jwt(audience, spiffe_id, seconds, endpoint, output)
        return
    response = _first_x509(endpoint, seconds)
    data = _x509(response)
    if write is not None:
        data["files"] = write_all(write, response)
    emit(data, output, lambda: "\n".join([_table(data), *(f"wrote {name}" for name in data.get("files", ()))]))


@app.command()
def watch(
    count: Annotated[int, typer.Option(help="End after so many updates; 0 for never.", min=0)] = 0,
    once: Annotated[bool, typer.Option("--once", help="End after the first update, as --count 1 does.")] = False,
    write: Annotated[
        Path | None,
        typer.Option(
            help="Keep svid.key, svid.pem, bundle.pem and federated bundles (0600) in this directory, each replaced "
            "atomically, with the first SVID or that of --spiffe-id."
        ),
    ] = None,
    reload: Annotated[
        str | None,
        typer.Option(
            help="With --write: run this command after each change, such as 'systemctl reload nginx'. It is split "
            "into arguments and run without a shell.",
            show_default=False,
        ),
    ] = None,
    spiffe_id: Annotated[
        str | None, typer.Option("--spiffe-id", help="With --write: the SVID to be kept.", show_default=False)
    ] = None,
    endpoint: EndpointOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show X.509-SVIDs and each update of them, or keep them in files, reconnecting as a workload would.

    A restart of the agent, or an identity that is taken away, leaves the files as they are. JSON: one object per line.
    """
    if write is None and (reload is not None or spiffe_id is not None):
        raise InvalidArgument("--reload and --spiffe-id need --write", reason="USAGE")
    files = None if write is None else SvidFiles(write, command_line(reload) if reload is not None else (), spiffe_id)
    _follow(endpoint, _Updates(files, output, 1 if once else count).take)


def _follow(endpoint: str | None, take: Callable[[workload_pb2.X509SVIDResponse], bool]) -> None:
    """Every update, until `take` has had enough. A stream that ends, or that brought what could not be taken, is opened
    again, ever more slowly: its first update is the newest."""
    backoff = FIRST_BACKOFF_SECONDS
    while True:
        try:
            with workload_client(endpoint) as client:
                for response in client.fetch_x509():
                    if take(response):
                        return
                    backoff = FIRST_BACKOFF_SECONDS
            error: BurgeeError = Unavailable("the stream ended", reason="STREAM_ENDED")
        except BurgeeError as failed:
            if failed.code is Code.INVALID_ARGUMENT:  # SPIFFE Workload Endpoint §6: not to be retried
                raise
            error = failed
        except _NotTaken as failed_here:
            if failed_here.last:
                raise failed_here.error from failed_here
            error = failed_here.error
        show_error(error)
        print(f"trying again in {backoff:g} s", file=sys.stderr)
        time.sleep(backoff)
        backoff = min(2 * backoff, LONGEST_BACKOFF_SECONDS)


@dataclass
class _Updates:
    """Shows updates, or writes them. What could not be written, or told to the reload command, is told and comes again
    until it can; what goes wrong with the last one ends the program."""

    files: SvidFiles | None
    output: Output
    last: int
    seen: int = 0

    def take(self, response: workload_pb2.X509SVIDResponse) -> bool:
        """True after the last one. Raises _NotTaken."""
        self.seen += 1
        if self.files is None:
            _show_update(self.seen, response, self.output)
            return self.seen == self.last
        try:
            names = self.files.take(response)
        except BurgeeError as error:
            last = self.seen == self.last
            if error.code is not Code.NOT_FOUND or last:
                self.seen -= 1
                raise _NotTaken(error, last=last) from error
            show_error(error)  # the SVID may come with the next update
            names = []
        for name in names:
            print(f"wrote {name}", file=sys.stderr, flush=True)
        return self.seen == self.last


class _NotTaken(Exception):
    """Carries what went wrong on this side past the errors of the Workload API."""

    def __init__(self, error: BurgeeError, *, last: bool) -> None:
        super().__init__(error.detail)
        self.error = error
        self.last = last


@app.command()
def inspect(
    timeout: TimeoutOption = "10s", endpoint: EndpointOption = None, output: OutputOption = Output.TABLE
) -> None:
    """Show everything that a Workload API gives this process, and whether it would be accepted.

    Exits with 1 when an SVID does not verify against the bundle that came with it.
    """
    from ca.cli.workload_values import bundle_values, jwt_bundle_values, x509_bundles

    seconds = waiting(timeout)
    response = _first_x509(endpoint, seconds)
    with workload_client(endpoint) as client:
        x509 = bundle_values(x509_bundles(dict(client.fetch_x509_bundles(seconds).bundles)))
        jwt = jwt_bundle_values(dict(client.fetch_jwt_bundles(seconds).bundles))
    data = {**_x509(response), "x509_bundles": x509, "jwt_bundles": jwt}
    emit(data, output, lambda: "\n\n".join([_table(data), _authorities(x509), _keys(jwt)]))
    leave(Exit.FAILED if any(svid["problem"] for svid in data["svids"]) else Exit.OK)


def _fetch_jwt(audience: list[str], spiffe_id: str, seconds: float, endpoint: str | None, output: Output) -> None:
    with workload_client(endpoint) as client:
        response = client.fetch_jwt(audience, spiffe_id, seconds)
    svids = [{"spiffe_id": svid.spiffe_id, "hint": svid.hint, "token": svid.svid} for svid in response.svids]
    emit({"svids": svids}, output, lambda: "\n".join(f"{svid['spiffe_id']}\n{svid['token']}" for svid in svids))


def _first_x509(endpoint: str | None, seconds: float) -> workload_pb2.X509SVIDResponse:
    with workload_client(endpoint) as client:
        return client.fetch_x509_once(seconds)


def _x509(response: workload_pb2.X509SVIDResponse) -> dict[str, Any]:
    from ca.cli.workload_values import bundles_of, svid_value

    bundles = bundles_of(response)
    return {
        "svids": [svid_value(svid, bundles) for svid in response.svids],
        "trust_domains": sorted(trust_domain.name for trust_domain in bundles),
    }


def _show_update(number: int, response: workload_pb2.X509SVIDResponse, output: Output) -> None:
    data = {"update": number, "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), **_x509(response)}
    if output is Output.JSON:
        import json

        print(json.dumps(data), flush=True)
        return
    emit(data, output, lambda: f"update {number} at {data['at']}\n{_table(data)}\n")
    sys.stdout.flush()


def _table(data: dict[str, Any]) -> str:
    from ca.cli.workload_values import svid_table

    return svid_table(data["svids"])


def _authorities(bundles: list[dict[str, Any]]) -> str:
    rows = (
        [bundle["trust_domain"], authority["authority_id"], until(authority["not_after"])]
        for bundle in bundles
        for authority in bundle["x509_authorities"]
    )
    return columns(["TRUST DOMAIN", "X.509 AUTHORITY", "EXPIRES"], rows, empty="no X.509 bundle")


def _keys(bundles: list[dict[str, Any]]) -> str:
    rows = ([bundle["trust_domain"], key_id] for bundle in bundles for key_id in bundle["key_ids"])
    return columns(["TRUST DOMAIN", "JWT KEY"], rows, empty="no JWT bundle")
