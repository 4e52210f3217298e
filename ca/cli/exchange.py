"""`caadmin exchange`: an OIDC token for an SVID, by whoever has one: a CI job, without an agent."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ca.cli.arguments import DURATION_HELP, duration
from ca.cli.bundle_values import from_wire, read_bundle
from ca.cli.connection import CALL_SECONDS
from ca.cli.files import write_files
from ca.cli.mint import pem
from ca.cli.output import Output, OutputOption, emit, timestamp
from ca.cli.remote_options import SERVER_VARIABLE
from ca.cli.svid_files import BUNDLE_FILE, CHAIN_FILE, KEY_FILE
from ca.cli.values import id_text
from ca.errors import BurgeeError, InvalidArgument
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.ports import KeyType

if TYPE_CHECKING:
    import grpc

    from ca.identity.svid import X509Svid

MAX_TOKEN_BYTES = 16 * 1024
JWT_FILE = "jwt_svid.token"
_WHY = "the server's log has more under request `{}`"


def exchange(
    oidc_token_file: Annotated[
        Path, typer.Option(help="File with the OIDC token, made for the server's audience; `-` reads it from stdin.")
    ],
    server: Annotated[str, typer.Option(metavar="HOST:PORT", envvar=SERVER_VARIABLE, help="The server.")],
    bundle: Annotated[
        Path,
        typer.Option(
            help="Trust bundle by which the server is known: PEM, or a SPIFFE bundle (`caadmin bundle show` prints it)."
        ),
    ],
    audience: Annotated[
        list[str] | None,
        typer.Option(help="Ask for a JWT-SVID; who may accept it. Repeatable.", show_default=False),
    ] = None,
    x509: Annotated[bool, typer.Option("--x509", help="Ask for an X.509-SVID, for a key that is made here.")] = False,
    issuer: Annotated[
        str, typer.Option(help="The server's name for the token's issuer: no other one's token will do.")
    ] = "",
    spiffe_id: Annotated[
        str, typer.Option("--spiffe-id", help="Which identity, where the token is good for several.")
    ] = "",
    trust_domain: Annotated[
        str,
        typer.Option(
            help="The server's trust domain. Needed where the bundle's roots are those of several. Default: that of "
            "--spiffe-id, else that of the server which the bundle vouches for."
        ),
    ] = "",
    ttl: Annotated[str, typer.Option(help=f"Its life; 0 for the longest that is granted. {DURATION_HELP}")] = "0",
    key_type: Annotated[KeyType, typer.Option(help="Type of the new key.")] = KeyType.EC_P256,
    write: Annotated[
        Path | None,
        typer.Option(help=f"Write svid.key, svid.pem and bundle.pem, or {JWT_FILE} (0600) into this directory."),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Exchange a CI job's OIDC token for a short-lived SVID. No agent takes part; a token serves once.

    Example: caadmin exchange --oidc-token-file token --x509 --write svid --server burgee.example.org:8081
    --bundle bundle.pem
    """
    names = _kind(audience or [], x509=x509)
    token = _token(oidc_token_file)
    asked = {"token": token, "issuer": issuer, "spiffe_id": spiffe_id, "ttl_seconds": duration(ttl)}
    with _channel(server, bundle, _domain(trust_domain, spiffe_id)) as opened:
        found = _jwt(opened, asked, names) if names else _x509(opened, asked, key_type)
    data, files = found
    if write is not None:
        data["files"] = write_files(write, files)
        emit(data, output, lambda: "\n".join(f"wrote {name}" for name in data["files"]))
    else:
        data |= {_MEMBERS[name]: content.decode() for name, content in files.items()}
        emit(data, output, lambda: "".join(content.decode() for content in files.values()).rstrip("\n"))


_MEMBERS = {KEY_FILE: "key", CHAIN_FILE: "svid", BUNDLE_FILE: "bundle", JWT_FILE: "token"}
"""What each file is called in JSON and YAML."""

Found = tuple[dict[str, Any], dict[str, bytes]]
"""What is told, and what files hold."""


def _kind(audience: Sequence[str], *, x509: bool) -> Sequence[str]:
    if x509 == bool(audience):
        raise InvalidArgument(
            "say either --audience, for a JWT-SVID, or --x509", reason="USAGE", hint="a token serves once, for one SVID"
        )
    return audience


def _token(file: Path) -> str:
    try:
        if str(file) == "-":
            data = sys.stdin.buffer.read(MAX_TOKEN_BYTES + 2)
        else:
            with file.open("rb") as opened:
                data = opened.read(MAX_TOKEN_BYTES + 2)
    except OSError as error:
        raise InvalidArgument(f"cannot read `{file}`: {error.strerror}", reason="FILE") from error
    token = data.decode("ascii", "replace").strip()
    if not token:
        raise InvalidArgument(f"there is no OIDC token in the file `{file}`", reason="OIDC_TOKEN_MISSING")
    return token


def _domain(named: str, spiffe_id: str) -> TrustDomain | None:
    if named:
        return TrustDomain(named)
    return SpiffeId.parse(spiffe_id).trust_domain if spiffe_id else None


@contextmanager
def _channel(address: str, bundle: Path, domain: TrustDomain | None) -> Iterator[grpc.Channel]:
    """To a server that the bundle vouches for, as nobody. Its errors say under which id its log has more."""
    from ca.cli.remote import relayed_channel, verify_server
    from ca.identity.svid import parse_x509_svid
    from ca.runtime.addresses import split_address

    try:
        split_address(address)
    except ValueError as error:
        raise InvalidArgument(str(error), reason="USAGE") from error
    roots = read_bundle(bundle, domain or TrustDomain("unknown"), pem=None)

    def verify(chain: Sequence[bytes]) -> X509Svid:
        shown = domain or parse_x509_svid(chain).id.trust_domain
        return verify_server(chain, replace(roots, trust_domain=shown))

    try:
        with relayed_channel(address, verify, None) as opened:
            yield opened
    except BurgeeError as error:
        if error.request_id:
            error.hint = "; ".join(filter(None, (error.hint, _WHY.format(error.request_id))))
        raise


def _x509(opened: grpc.Channel, asked: dict[str, Any], key_type: KeyType) -> Found:
    """The key never leaves this machine."""
    from ca.cli.request import new_key, private_pem, request_der
    from ca.identity.bundle_pem import format_pem
    from ca.proto.burgee import exchange_pb2, exchange_pb2_grpc
    from ca.proto.spire import server_bundle_pb2, server_bundle_pb2_grpc

    bundles = server_bundle_pb2_grpc.BundleStub(opened)
    trusted = bundles.GetBundle(server_bundle_pb2.GetBundleRequest(), timeout=CALL_SECONDS)  # before the token is used
    key = new_key(key_type)
    request = exchange_pb2.ExchangeX509SVIDRequest(csr=request_der(key, "", ()), **asked)
    svid = exchange_pb2_grpc.ExchangeStub(opened).ExchangeX509SVID(request, timeout=CALL_SECONDS).svid
    files = {
        KEY_FILE: private_pem(key),
        CHAIN_FILE: pem(svid.cert_chain),
        BUNDLE_FILE: format_pem(from_wire(trusted)).encode(),
    }
    return {"spiffe_id": id_text(svid.id), "expires_at": timestamp(svid.expires_at)}, files


def _jwt(opened: grpc.Channel, asked: dict[str, Any], audience: Sequence[str]) -> Found:
    from ca.proto.burgee import exchange_pb2, exchange_pb2_grpc

    request = exchange_pb2.ExchangeJWTSVIDRequest(audience=audience, **asked)
    svid = exchange_pb2_grpc.ExchangeStub(opened).ExchangeJWTSVID(request, timeout=CALL_SECONDS).svid
    data = {
        "spiffe_id": id_text(svid.id),
        "issued_at": timestamp(svid.issued_at),
        "expires_at": timestamp(svid.expires_at),
    }
    return data, {JWT_FILE: svid.token.encode()}
