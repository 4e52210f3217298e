"""`caadmin svid mint`: SVIDs made for an administrator, past all entries."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ca.cli.arguments import DURATION_HELP, duration, wire_id
from ca.cli.bundle_values import from_wire
from ca.cli.connection import CALL_SECONDS, SocketOption, channel, server_socket
from ca.cli.files import write_files
from ca.cli.output import Output, OutputOption, emit, plain, span, timestamp
from ca.cli.svid_files import BUNDLE_FILE, CHAIN_FILE, KEY_FILE
from ca.cli.values import id_text, lifetime_value
from ca.ports import KeyType

if TYPE_CHECKING:
    from ca.proto.burgee import admin_pb2

app = typer.Typer(help="Make an SVID without an entry, as an administrator.")

SpiffeIdOption = Annotated[str, typer.Option("--spiffe-id", help="The SPIFFE ID to be made.")]
TtlOption = Annotated[str, typer.Option(help=f"Its life; 0 for the server's default. {DURATION_HELP}")]


@app.command("x509")
def mint_x509(
    spiffe_id: SpiffeIdOption,
    ttl: TtlOption = "0",
    dns_name: Annotated[list[str] | None, typer.Option(help="A DNS name. Repeatable.", show_default=False)] = None,
    key_type: Annotated[KeyType, typer.Option(help="Type of the new key.")] = KeyType.EC_P256,
    write: Annotated[
        Path | None,
        typer.Option(
            help="Write svid.key, svid.pem and bundle.pem (0600) into this directory, which --svid-dir can then name."
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Make a key here and have an X.509-SVID issued for it. The key never leaves this machine."""
    from ca.cli.request import new_key, private_pem, request_der
    from ca.identity.bundle_pem import format_pem
    from ca.proto.burgee import admin_pb2
    from ca.proto.spire import server_bundle_pb2, server_bundle_pb2_grpc

    wire_id(spiffe_id)
    key = new_key(key_type)
    request = admin_pb2.MintX509SVIDRequest(csr=request_der(key, spiffe_id, dns_name or []), ttl_seconds=duration(ttl))
    with channel(server_socket(socket)) as opened:
        minted = _mint_x509(opened, request)
        stub = server_bundle_pb2_grpc.BundleStub(opened)
        bundle = from_wire(stub.GetBundle(server_bundle_pb2.GetBundleRequest(), timeout=CALL_SECONDS))
    files = {
        KEY_FILE: private_pem(key),
        CHAIN_FILE: pem(minted.svid.cert_chain),
        BUNDLE_FILE: format_pem(bundle).encode(),
    }
    data: dict[str, Any] = {
        "spiffe_id": id_text(minted.svid.id),
        "expires_at": timestamp(minted.svid.expires_at),
        "lifetime": lifetime_value(minted.lifetime),
    }
    _note_lifetime(minted.lifetime)
    if write is not None:
        data["files"] = write_files(write, files)
        emit(data, output, lambda: "\n".join(f"wrote {name}" for name in data["files"]))
    else:
        shown = {"svid": files[CHAIN_FILE], "key": files[KEY_FILE], "bundle": files[BUNDLE_FILE]}
        data |= {name: text.decode() for name, text in shown.items()}
        emit(data, output, lambda: "".join(text.decode() for text in shown.values()).rstrip("\n"))


@app.command("jwt")
def mint_jwt(
    spiffe_id: SpiffeIdOption,
    audience: Annotated[list[str], typer.Option(help="Who may accept it. Repeatable.")],
    ttl: TtlOption = "0",
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Have a JWT-SVID issued and print it."""
    from ca.proto.burgee import admin_pb2

    request = admin_pb2.MintJWTSVIDRequest(id=wire_id(spiffe_id), audience=audience, ttl_seconds=duration(ttl))
    with channel(server_socket(socket)) as opened:
        minted = _mint_jwt(opened, request)
    data = {
        "spiffe_id": id_text(minted.svid.id),
        "token": minted.svid.token,
        "issued_at": timestamp(minted.svid.issued_at),
        "expires_at": timestamp(minted.svid.expires_at),
        "lifetime": lifetime_value(minted.lifetime),
    }
    _note_lifetime(minted.lifetime)
    emit(data, output, lambda: minted.svid.token)


def pem(chain: Any) -> bytes:
    """DER certificates as PEM, in the same order."""
    import ssl

    return "".join(ssl.DER_cert_to_PEM_cert(der) for der in chain).encode()


def _mint_x509(opened: Any, request: admin_pb2.MintX509SVIDRequest) -> admin_pb2.MintX509SVIDResponse:
    from ca.proto.burgee import admin_pb2, admin_pb2_grpc
    from ca.proto.spire import server_svid_pb2, server_svid_pb2_grpc

    def plain() -> admin_pb2.MintX509SVIDResponse:
        older = server_svid_pb2.MintX509SVIDRequest(csr=request.csr, ttl=request.ttl_seconds)
        svid = server_svid_pb2_grpc.SVIDStub(opened).MintX509SVID(older, timeout=CALL_SECONDS).svid
        return admin_pb2.MintX509SVIDResponse(svid=svid)

    stub = admin_pb2_grpc.AdminStub(opened)
    answer: admin_pb2.MintX509SVIDResponse = _or_spire(lambda: stub.MintX509SVID(request, timeout=CALL_SECONDS), plain)
    return answer


def _mint_jwt(opened: Any, request: admin_pb2.MintJWTSVIDRequest) -> admin_pb2.MintJWTSVIDResponse:
    from ca.proto.burgee import admin_pb2, admin_pb2_grpc
    from ca.proto.spire import server_svid_pb2, server_svid_pb2_grpc

    def plain() -> admin_pb2.MintJWTSVIDResponse:
        older = server_svid_pb2.MintJWTSVIDRequest(id=request.id, audience=request.audience, ttl=request.ttl_seconds)
        svid = server_svid_pb2_grpc.SVIDStub(opened).MintJWTSVID(older, timeout=CALL_SECONDS).svid
        return admin_pb2.MintJWTSVIDResponse(svid=svid)

    stub = admin_pb2_grpc.AdminStub(opened)
    answer: admin_pb2.MintJWTSVIDResponse = _or_spire(lambda: stub.MintJWTSVID(request, timeout=CALL_SECONDS), plain)
    return answer


def _or_spire(ours: Callable[[], Any], spires: Callable[[], Any]) -> Any:
    """Our RPC, which explains lifetimes; against a SPIRE server, which lacks it, SPIRE's."""
    import grpc

    try:
        return ours()
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise
        return spires()


def _note_lifetime(lifetime: admin_pb2.Lifetime) -> None:
    """Say on stderr why the life is shorter than asked."""
    if not lifetime.caps:
        return
    print(f"note: granted {span(lifetime.granted_seconds)} of {span(lifetime.requested_seconds)}", file=sys.stderr)
    for cap in lifetime.caps:
        print(f"  {plain(cap.detail)} ({plain(cap.reason)})", file=sys.stderr)
