"""A stand-in for the agent: gives every Envoy that asks a certificate for the name it asks for, and allows everything.

It makes its own CA and certificates with a short life, and can rotate them. It attests nobody and knows no policy:
tests with the real agent cover that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2, tls_spiffe_validator_config_pb2
from envoy.service.discovery.v3 import discovery_pb2
from envoy.service.extension.v3 import config_discovery_pb2_grpc as ecds_pb2_grpc
from envoy.service.secret.v3 import sds_pb2_grpc

TYPE_URL = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
PEM = serialization.Encoding.PEM
ISSUER = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "double")])


class SdsDouble(sds_pb2_grpc.SecretDiscoveryServiceServicer):
    """Names with a path get a leaf; a trust domain's name gets its bundle for Envoy's SPIFFE validator."""

    def __init__(self, trust_domain: str) -> None:
        self.trust_domain = trust_domain
        self.policies = asyncio.Event()
        self.policies.set()
        self.version = 1
        self._changed = asyncio.Condition()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._ca = self._certificate(f"spiffe://{trust_domain}", self._key, ca=True)

    async def rotate(self) -> None:
        """Push new leaves to every stream."""
        async with self._changed:
            self.version += 1
            self._changed.notify_all()

    async def StreamSecrets(
        self, requests: AsyncIterator[discovery_pb2.DiscoveryRequest], context: Any
    ) -> AsyncIterator[discovery_pb2.DiscoveryResponse]:
        first = await anext(aiter(requests))
        sent = 0
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda seen=sent: self.version != seen)
            sent = self.version
            response = discovery_pb2.DiscoveryResponse(version_info=str(sent), type_url=TYPE_URL, nonce=str(sent))
            for name in first.resource_names:
                response.resources.add().Pack(self._secret(name))
            yield response

    def _secret(self, name: str) -> secret_pb2.Secret:
        secret = secret_pb2.Secret(name=name)
        ca_pem = self._ca.public_bytes(PEM)
        if name == f"spiffe://{self.trust_domain}":
            validator = tls_spiffe_validator_config_pb2.SPIFFECertValidatorConfig()
            validator.trust_domains.add(name=self.trust_domain).trust_bundle.inline_bytes = ca_pem
            custom = secret.validation_context.custom_validator_config
            custom.name = "envoy.tls.cert_validator.spiffe"
            custom.typed_config.Pack(validator)
            return secret
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self._certificate(name, key, ca=False)
        secret.tls_certificate.certificate_chain.inline_bytes = leaf.public_bytes(PEM)
        secret.tls_certificate.private_key.inline_bytes = key.private_bytes(
            PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return secret

    def _certificate(self, uri: str, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(ISSUER if ca else x509.Name([]))
            .issuer_name(ISSUER)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=10))
            .not_valid_after(now + timedelta(seconds=60))
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not ca,
                    key_cert_sign=ca,
                    crl_sign=ca,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .sign(self._key, hashes.SHA256())
        )


class _AllowAll(ecds_pb2_grpc.ExtensionConfigDiscoveryServiceServicer):
    """Whatever filter is asked for denies nothing, as soon as there are policies."""

    def __init__(self, double: SdsDouble) -> None:
        self._double = double

    async def DeltaExtensionConfigs(
        self, requests: AsyncIterator[discovery_pb2.DeltaDiscoveryRequest], context: Any
    ) -> AsyncIterator[discovery_pb2.DeltaDiscoveryResponse]:
        async for request in requests:
            await self._double.policies.wait()
            response = discovery_pb2.DeltaDiscoveryResponse(type_url=request.type_url, nonce="1")
            for name in request.resource_names_subscribe:
                made = TypedExtensionConfig(name=name)
                made.typed_config.Pack(RBAC(rules={"action": "DENY"}))
                response.resources.add(name=name, version="1").resource.Pack(made)
            if response.resources:
                yield response


async def serve_sds(double: SdsDouble, socket: Path) -> grpc.aio.Server:
    """A started server of `double` on a Unix socket that every uid can reach."""
    server = grpc.aio.server()
    sds_pb2_grpc.add_SecretDiscoveryServiceServicer_to_server(double, server)
    ecds_pb2_grpc.add_ExtensionConfigDiscoveryServiceServicer_to_server(_AllowAll(double), server)
    socket.parent.mkdir(mode=0o755, exist_ok=True)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    socket.chmod(0o777)
    return server
