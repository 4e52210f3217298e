"""Istio's two clients of a CA, imitated on the wire: pilot-agent beside a sidecar, and ztunnel on a node.

What they send and which answers they take follows their sources; neither is here itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.struct_pb2 import Struct

from ca.proto.istio import ca_pb2, ca_pb2_grpc

DAY_SECONDS = 86_400
_ONE_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n", re.S)
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def new_key(kind: str) -> Key:
    """`rsa` is pilot-agent's default."""
    if kind == "rsa":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key({"p256": ec.SECP256R1, "p384": ec.SECP384R1}[kind]())


def pilot_csr(key: Key, identity: str) -> str:
    """With an empty organization, and the identity as a critical alternative name."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "", _validate=False)])
    return _csr(key, subject, identity, critical=True)


def ztunnel_csr(key: Key, identity: str) -> str:
    return _csr(key, x509.Name([]), identity, critical=False)


def _csr(key: Key, subject: x509.Name, identity: str, *, critical: bool) -> str:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(names, critical)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


class IstioClient:
    """A channel that trusts `roots_pem` and insists on `name` in the server's certificate."""

    def __init__(self, address: tuple[str, int], roots_pem: bytes, name: str) -> None:
        credentials = grpc.ssl_channel_credentials(root_certificates=roots_pem)
        options = [("grpc.ssl_target_name_override", name), ("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.aio.secure_channel(f"{address[0]}:{address[1]}", credentials, options=options)
        self.stub: Any = ca_pb2_grpc.IstioCertificateServiceStub(self.channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()

    async def ask(
        self,
        csr: str,
        token: str | None,
        *,
        cluster: str | None = "Kubernetes",
        seconds: int = DAY_SECONDS,
        metadata: dict[str, Any] | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> list[str]:
        """One CreateCertificate; pilot-agent always sends a `CertSigner`, mostly an empty one."""
        values = Struct()
        values.update({"CertSigner": ""} if metadata is None else metadata)
        sent = list(headers)
        if token is not None:
            sent.append(("authorization", f"Bearer {token}"))
        if cluster is not None:
            sent.append(("clusterid", cluster))
        request = ca_pb2.IstioCertificateRequest(csr=csr, validity_duration=seconds, metadata=values)
        answer = await self.stub.CreateCertificate(request, metadata=sent, timeout=20)
        return list(answer.cert_chain)

    async def impersonate(self, csr: str, token: str, identity: str, **more: Any) -> list[str]:
        """As ztunnel asks for a pod on its node."""
        return await self.ask(csr, token, metadata={"ImpersonatedIdentity": identity}, **more)


def read_as_pilot_agent(chain: Sequence[str]) -> tuple[x509.Certificate, list[x509.Certificate]]:
    """The leaf and the roots, by pilot-agent's rules: everything together is the chain, the last element the root."""
    assert len(chain) > 1, "no root"
    whole = x509.load_pem_x509_certificates("".join(chain).encode())
    roots = x509.load_pem_x509_certificates(chain[-1].encode())
    assert whole[-len(roots) :] == roots
    return whole[0], roots


def read_as_ztunnel(chain: Sequence[str], identity: str) -> tuple[x509.Certificate, list[x509.Certificate]]:
    """By ztunnel's: one certificate in each element but the last, and the identity that was asked for."""
    assert chain, "no root certificate present"
    *path, last = chain
    for element in path:
        assert _ONE_PEM.fullmatch(element), "not exactly one certificate"
    leaf = x509.load_pem_x509_certificate(path[0].encode())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [identity]
    return leaf, x509.load_pem_x509_certificates(last.encode())
