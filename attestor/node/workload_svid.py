"""An X.509-SVID of this process, from the Workload API of another agent, with which a node can prove itself."""

from __future__ import annotations

import grpc
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_private_key

from ca.errors import FailedPrecondition, InvalidArgument
from ca.identity.certificate import split_certificates
from ca.proto.burgee import workload_pb2
from ca.runtime.rpc import connect

FETCH_SECONDS = 10.0
HEADER = (("workload.spiffe.io", "true"),)  # SPIFFE Workload Endpoint §6

Svid = tuple[list[bytes], rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey]


async def fetch_svid(path: str) -> Svid:
    """The first one, which is the default (Workload API §5.3): its chain, DER, leaf first, and its key. `path` is the
    socket's. Raises FailedPrecondition."""
    channel = connect(path)
    try:
        call = channel.unary_stream(
            "/SpiffeWorkloadAPI/FetchX509SVID",
            request_serializer=workload_pb2.X509SVIDRequest.SerializeToString,
            response_deserializer=workload_pb2.X509SVIDResponse.FromString,
        )(workload_pb2.X509SVIDRequest(), metadata=HEADER, timeout=FETCH_SECONDS)
        answer = await call.read()
        if not isinstance(answer, workload_pb2.X509SVIDResponse) or not answer.svids:
            raise _none(path, await call.details() or "it gives none")
        return _taken_apart(path, answer.svids[0])
    except grpc.aio.AioRpcError as error:
        raise _none(path, error.details() or error.code().name) from error
    finally:
        await channel.close()


def _taken_apart(path: str, svid: workload_pb2.X509SVID) -> Svid:
    try:
        key = load_der_private_key(svid.x509_svid_key, None)
        chain = split_certificates(svid.x509_svid)
    except (ValueError, TypeError, InvalidArgument) as error:
        raise _none(path, "what it gives cannot be read") from error
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise _none(path, "its key is neither RSA nor EC")
    return chain, key


def _none(path: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"no X.509-SVID from the Workload API at `{path}`: {why}",
        reason="NODE_CREDENTIAL",
        hint="the agent asks again at the next attempt, without a restart",
    )
