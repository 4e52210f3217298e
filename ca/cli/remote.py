"""Administration over the network: an X.509-SVID whose entry has `admin`, and a server that proves to be the server."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ca.cli.connection import Remote
from ca.errors import Code, InvalidArgument, Unauthenticated
from ca.identity.bundle import TrustBundle
from ca.identity.spiffe_id import SpiffeId, server_id
from ca.identity.svid import X509Svid, parse_x509_svid, verify_x509_svid

if TYPE_CHECKING:
    import grpc

    from ca.runtime.tls import TlsMaterial
    from ca.runtime.tls_relay import TlsRelay

T = TypeVar("T")

FETCH_SECONDS = 10.0
START_SECONDS = 10.0
TRIES = 3
RETRY_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """As whom we come, and by what we know the server."""

    svid: X509Svid
    material: TlsMaterial
    bundle: TrustBundle

    def verify_server(self, chain: Sequence[bytes]) -> X509Svid:
        """Chain and SPIFFE ID of the server. Raises Unauthenticated."""
        return verify_server(chain, self.bundle)


def verify_server(chain: Sequence[bytes], bundle: TrustBundle) -> X509Svid:
    """Chain and SPIFFE ID of the bundle's own server. Raises Unauthenticated."""
    domain = bundle.trust_domain
    shown = verify_x509_svid(chain, {domain: bundle}, now=datetime.now(UTC))
    if shown.id != server_id(domain):
        raise Unauthenticated(
            f"`{shown.id}` is not the server of `{domain}`", reason="SERVER_ID_MISMATCH", hint="see --server"
        )
    return shown


@contextmanager
def remote_channel(remote: Remote) -> Iterator[grpc.Channel]:
    """A channel as whom the files or the Workload API say. Raises what the server reported, or why it was not let
    through."""
    credentials = credentials_of(remote)
    with relayed_channel(remote.address, credentials.verify_server, credentials.material) as opened:
        yield opened


@contextmanager
def relayed_channel(
    address: str, verify: Callable[[Sequence[bytes]], X509Svid], material: TlsMaterial | None
) -> Iterator[grpc.Channel]:
    """A channel through a relay of this process, without `material` as nobody. Raises as `remote_channel` does."""
    import grpc

    from ca.runtime.clock import SystemClock
    from ca.runtime.log import configure
    from ca.runtime.rpc_errors import error_of
    from ca.runtime.tls_relay import TlsRelay

    configure("console", "error")  # what the relay has to say comes out as an error
    directory = Path(tempfile.mkdtemp(prefix="burgee-"))
    try:
        with _background() as run:
            relay = run(
                _started(
                    lambda: TlsRelay(
                        servers=[address],
                        verify=verify,
                        material=material,
                        directory=directory,
                        clock=SystemClock(),
                    )
                )
            )
            options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
            try:
                with grpc.insecure_channel(f"unix:{relay.path}", options=options) as opened:
                    yield opened
            except grpc.RpcError as error:
                reported: Any = error  # the declared type hides that a call's error has code() and details()
                found = error_of(reported)
                if relay.refusal is not None and found.code is Code.UNAVAILABLE:
                    raise relay.refusal.error from error
                raise found from error
            finally:
                run(relay.close())
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _started(make: Callable[[], TlsRelay]) -> TlsRelay:
    relay = make()
    await relay.start()
    return relay


@contextmanager
def _background() -> Iterator[Callable[[Coroutine[Any, Any, T]], T]]:
    """An event loop in a thread of its own, for the length of a `with`; what is given runs a coroutine there."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="relay", daemon=True)
    thread.start()
    try:
        yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(START_SECONDS)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(START_SECONDS)
        loop.close()


def credentials_of(remote: Remote) -> Credentials:
    """From the files or the Workload API, as it says."""
    if remote.svid_dir is None:
        return _from_workload_api(remote.spiffe_id)
    for _ in range(TRIES):  # between two of its replacements a directory holds a key and another's certificate
        try:
            return directory_credentials(remote.svid_dir)
        except InvalidArgument as error:
            if error.reason != "SVID_KEY_MISMATCH":
                raise
        time.sleep(RETRY_SECONDS)
    return directory_credentials(remote.svid_dir)


def directory_credentials(directory: Path) -> Credentials:
    """Raises what `read_svid_dir` does, InvalidArgument (SVID_KEY_MISMATCH) and what is wrong with an SVID."""
    from ca.cli.svid_dir import read_svid_dir
    from ca.identity.bundle_pem import parse_pem

    files = read_svid_dir(directory)
    svid = parse_x509_svid([_der(block) for block in _pem_blocks(files.chain)])
    return _made(svid, files.chain, files.key, parse_pem(files.bundle, svid.id.trust_domain))


def _from_workload_api(spiffe_id: str | None) -> Credentials:
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_der_private_key,
    )

    from ca.cli.mint import pem
    from ca.cli.workload import workload_client
    from ca.cli.workload_values import split_der, x509_bundles

    wanted = None if spiffe_id is None else str(SpiffeId.parse(spiffe_id))
    with workload_client(None) as client:
        given = client.fetch_x509_once(FETCH_SECONDS).svids
    chosen = next((svid for svid in given if wanted in (None, svid.spiffe_id)), None)
    if chosen is None:
        names = ", ".join(svid.spiffe_id for svid in given)
        raise InvalidArgument(
            f"the Workload API gives this process no SVID `{wanted}`", reason="SVID_NOT_GIVEN", hint=f"it gives {names}"
        )
    chain = split_der(chosen.x509_svid)
    svid = parse_x509_svid(chain)
    key = load_der_private_key(chosen.x509_svid_key, None)
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    bundles = x509_bundles({f"spiffe://{svid.id.trust_domain}": chosen.bundle})
    return _made(svid, pem(chain), key_pem, bundles[svid.id.trust_domain])


def _made(svid: X509Svid, chain_pem: bytes, key_pem: bytes, bundle: TrustBundle) -> Credentials:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from ca.runtime.tls import TlsMaterial

    try:
        key = load_pem_private_key(key_pem, None)
    except (ValueError, TypeError) as error:
        raise InvalidArgument("the private key is malformed", reason="SVID_KEY_MISMATCH") from error
    if key.public_key() != x509.load_der_x509_certificate(svid.chain[0]).public_key():
        raise InvalidArgument(
            "key and certificate do not belong together", reason="SVID_KEY_MISMATCH", hint="try again: they are renewed"
        )
    material = TlsMaterial(chain_pem=chain_pem, key_pem=key_pem)
    return Credentials(svid=svid, material=material, bundle=bundle)


def _pem_blocks(data: bytes) -> list[str]:
    text = data.decode("ascii", "replace")
    end = "-----END CERTIFICATE-----"
    return [f"{block}{end}" for block in text.split(end)[:-1]]


def _der(block: str) -> bytes:
    import ssl

    try:
        return ssl.PEM_cert_to_DER_cert(block[block.index("-----BEGIN CERTIFICATE-----") :])
    except ValueError as error:
        raise InvalidArgument("svid.pem holds something that is no certificate", reason="FILE") from error
