"""Node attestation by an X.509 certificate that the machine has already: from its maker, a PKI, or an SVID to exchange.

The certificate chains to an authority that was configured, and the node signs two nonces with its key: RSA-PSS or ECDSA
over SHA-256. Payload, challenge and response are SPIRE's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature, encode_dss_signature
from pydantic import Field, field_validator, model_validator

from attestor.node.credential_files import read_authorities, read_chain, read_key
from attestor.node.node_certificate import NodeCertificate, fingerprint, parse_node_certificate, verify_chain
from attestor.node.node_checks import attempted, authorities, validity
from attestor.node.path_template import PathTemplate
from attestor.node.possession import (
    answer_members,
    challenge_members,
    new_nonce,
    nonce_of,
    octets,
    payload_members,
    refuse_answer,
    refuse_challenge,
    refuse_payload,
    refuse_possession,
    signed_digest,
    text_of,
    wire,
)
from ca.errors import ConfigError, Denied, FailedPrecondition, InvalidArgument, Unauthenticated, Unavailable
from ca.identity.endpoint import UnixEndpoint, parse_endpoint
from ca.identity.selector import Selector
from ca.identity.spiffe_id import is_reserved
from ca.identity.svid import parse_x509_svid
from ca.identity.text import quote
from ca.ports import AttestedNode, Challenge, Finding, NodeAttestorPlugin, NodeHost
from ca.runtime.config import StrictModel
from ca.runtime.findings import failed
from ca.runtime.notes import note

NAME = "x509pop"
MAX_SELECTORS = 256
MAX_RSA_BITS = 16384
_DIGEST = Prehashed(hashes.SHA256())
_MGF = padding.MGF1(hashes.SHA256())
_FIELDS = frozenset(
    {"PluginName", "TrustDomain", "Fingerprint", "SerialNumberHex", "Subject.CommonName", "URISanSelectors.*"}
)
_SVID_PATH = "SVIDPathTrimmed"
_PATHS = frozenset({_SVID_PATH, "URISanSelectors.*"})


class ServerConfig(StrictModel):
    """Which certificates prove a node, and how its agent is called."""

    mode: Literal["external_pki", "spiffe"] = Field(
        default="external_pki",
        description="`external_pki`: certificates of the authorities in `ca_bundle_path` and `ca_bundle_paths`. "
        "`spiffe`: X.509-SVIDs of the own trust domain, below `svid_prefix`.",
    )
    ca_bundle_path: Path | None = Field(
        default=None, description="PEM file with the authorities. It is read at each attestation."
    )
    ca_bundle_paths: tuple[Path, ...] = Field(
        default=(), description="The same in several files; what they hold is added together."
    )
    svid_prefix: str = Field(
        default="/spire-exchange",
        description="With `mode: spiffe`: the path below which SVIDs are exchanged; the rest of the path is the field "
        "`SVIDPathTrimmed`. Empty: any path outside of `/spire`.",
    )
    agent_path_template: str | None = Field(
        default=None,
        description="The agent's path. By default `/{{ .PluginName }}/{{ .Fingerprint }}`, with `mode: spiffe` "
        "`/{{ .PluginName }}/{{ .SVIDPathTrimmed }}`.",
    )
    max_intermediates: int = Field(
        default=4, ge=0, le=9, description="How many certificates may come with the node's own."
    )
    max_rsa_key_size: int = Field(
        default=8192,
        ge=2048,
        le=MAX_RSA_BITS,
        description="The longest RSA key of a node, in bits; the shortest is 2048.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> ServerConfig:
        if (self.mode == "spiffe") == bool(self.bundles):
            raise ValueError(
                "`mode: external_pki` needs `ca_bundle_path` or `ca_bundle_paths`; `mode: spiffe` has neither"
            )
        if self.svid_prefix and (self.svid_prefix[0] != "/" or is_reserved(self.svid_prefix.rstrip("/"))):
            raise ValueError("`svid_prefix` begins with a slash and is not below `/spire`, or is empty")
        self.template()
        return self

    @property
    def bundles(self) -> tuple[Path, ...]:
        return (*((self.ca_bundle_path,) if self.ca_bundle_path else ()), *self.ca_bundle_paths)

    def template(self) -> PathTemplate:
        """Raises ValueError."""
        fields = _FIELDS | {_SVID_PATH} if self.mode == "spiffe" else _FIELDS
        last = _SVID_PATH if self.mode == "spiffe" else "Fingerprint"
        text = self.agent_path_template or f"/{{{{ .PluginName }}}}/{{{{ .{last} }}}}"
        return PathTemplate.parse(text, fields, paths=_PATHS, plugin=NAME)


class AgentConfig(StrictModel):
    """The certificate and its key: in files, which are read anew at each attestation, or an SVID."""

    certificate_path: Path | None = Field(
        default=None, description="PEM file with the node's certificate; intermediate certificates may follow it."
    )
    private_key_path: Path | None = Field(
        default=None, description="PEM file with its private key, RSA or EC, not encrypted."
    )
    intermediates_path: Path | None = Field(
        default=None,
        description="PEM file with further intermediate certificates, where the first has not all of them.",
    )
    spiffe_endpoint_socket: str | None = Field(
        default=None,
        description="Instead of files: the Workload API, `unix:///…`, of another agent, whose first SVID for this "
        "process is used.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> AgentConfig:
        files = (self.certificate_path, self.private_key_path)
        if self.spiffe_endpoint_socket is None:
            if None in files:
                raise ValueError("name `certificate_path` and `private_key_path`, or `spiffe_endpoint_socket`")
        elif any((*files, self.intermediates_path)):
            raise ValueError("`spiffe_endpoint_socket` stands instead of the files")
        return self

    @field_validator("spiffe_endpoint_socket")
    @classmethod
    def _is_socket(cls, value: str | None) -> str | None:
        try:
            if value is not None and not isinstance(parse_endpoint(value), UnixEndpoint):
                raise ValueError("the Workload API of another agent is at a Unix socket: `unix:///…`")
        except InvalidArgument as error:
            raise ValueError(error.detail) from error
        return value


class X509PopVerifier:
    """Server half."""

    def __init__(self, config: ServerConfig, host: NodeHost) -> None:
        self._config = config
        self._host = host
        self._template = config.template()
        try:
            read_authorities(config.bundles)
        except ValueError as error:
            raise ConfigError(f"node_attestors.{NAME}: {error}", reason="NODE_AUTHORITIES") from error

    async def verify(self, payload: bytes, challenge: Challenge) -> AttestedNode:
        chain = self._chain(payload)
        leaf = parse_node_certificate(chain[0], max_rsa_bits=self._config.max_rsa_key_size)
        svid_path = self._svid_path(chain) if self._config.mode == "spiffe" else None
        authorities = await self._authorities()
        above = await asyncio.to_thread(verify_chain, leaf, chain[1:], authorities, now=self._host.clock.now())
        await _prove_possession(leaf, challenge)
        sans = _san_selectors(leaf, self._host.trust_domain.name)
        return AttestedNode(
            path=self._template.render(self._values(leaf, sans, svid_path)),
            selectors=_selectors(leaf, above, sans),
            reattestable=True,
        )

    def _chain(self, payload: bytes) -> list[bytes]:
        """DER, the leaf first."""
        certificates = payload_members(payload).get("certificates")
        if not isinstance(certificates, list) or not certificates:
            refuse_payload("`certificates` is no list of them")
        if len(certificates) > self._config.max_intermediates + 1:
            refuse_payload(f"more than {self._config.max_intermediates} intermediate certificates")
        try:
            return [octets(one, "certificates") for one in certificates]
        except ValueError as error:
            refuse_payload(str(error), error)

    async def _authorities(self) -> list[bytes]:
        if self._config.mode == "spiffe":
            return [one.certificate for one in (await self._host.trust_bundle()).x509_authorities]
        try:
            return read_authorities(self._config.bundles)
        except ValueError as error:
            note("authorities", error)
            raise Unavailable("the authorities of nodes cannot be read just now", reason="NODE_AUTHORITIES") from error

    async def check(self) -> Sequence[Finding]:
        """Implements ca.ports.Checked: who vouches for nodes."""
        try:
            found = await self._authorities()
        except Unavailable as error:
            why = str(error.__cause__ or error.detail)
            return [failed("authorities", why, "correct the file; no restart is needed")]
        mend = "renew what is in `ca_bundle_path`; no restart is needed"
        certificates = [x509.load_der_x509_certificate(der) for der in found]
        return [authorities("authorities", certificates, now=self._host.clock.now(), mend=mend)]

    def _svid_path(self, chain: list[bytes]) -> str:
        """What is left of the SVID's path behind the prefix. Raises Denied."""
        try:
            found = parse_x509_svid(chain).id
        except Unauthenticated as error:
            note("SVID", f"{error.reason}: {error.detail}")
            raise Denied("the node's certificate is no X.509-SVID", reason="NODE_CERTIFICATE_USAGE") from error
        prefix = self._config.svid_prefix.rstrip("/") + "/"
        note("SVID", f"{found}; wanted: trust domain {self._host.trust_domain}, path below {quote(prefix)}")
        if (
            found.trust_domain != self._host.trust_domain
            or is_reserved(found.path)
            or not found.path.startswith(prefix)
        ):
            raise Denied(
                "SVIDs of this ID are not exchanged for an agent's",
                reason="NODE_SVID_FORBIDDEN",
                hint="the server exchanges those of its own trust domain below its `svid_prefix`",
            )
        return found.path.removeprefix(prefix)

    def _values(self, leaf: NodeCertificate, sans: list[tuple[str, str]], svid_path: str | None) -> Mapping[str, str]:
        names = [key for key, _ in sans]
        values = {f"URISanSelectors.{key}": value for key, value in sans if names.count(key) == 1}
        if leaf.common_name:
            values["Subject.CommonName"] = leaf.common_name
        if svid_path is not None:
            values[_SVID_PATH] = svid_path
        return values | {
            "PluginName": NAME,
            "TrustDomain": self._host.trust_domain.name,
            "Fingerprint": leaf.fingerprint,
            "SerialNumberHex": leaf.serial_hex,
        }


class X509PopProver:
    """Agent half. The key that was read with the certificate answers the challenge, so that a renewal in between does
    not part them."""

    can_reattest = True

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | None = None

    async def payload(self) -> bytes:
        chain, self._key = await self._credential()
        return wire({"certificates": [text_of(der) for der in chain]})

    async def _credential(self) -> tuple[list[bytes], rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey]:
        config = self._config
        if config.spiffe_endpoint_socket is not None:
            from attestor.node.workload_svid import fetch_svid

            endpoint = parse_endpoint(config.spiffe_endpoint_socket)
            assert isinstance(endpoint, UnixEndpoint)
            return await fetch_svid(endpoint.path)
        assert config.certificate_path is not None
        assert config.private_key_path is not None
        chain = list(read_chain(config.certificate_path))
        if config.intermediates_path is not None:
            chain += read_chain(config.intermediates_path)
        return chain, read_key(config.private_key_path, chain[0])

    async def check(self) -> Sequence[Finding]:
        """Implements ca.ports.Checked: certificate and key, whether they fit, what the one is for and until when."""
        certificates: list[x509.Certificate] = []

        async def read() -> str:
            chain, _ = await self._credential()
            leaf = parse_node_certificate(chain[0], max_rsa_bits=MAX_RSA_BITS)
            certificates.append(leaf.certificate)
            return f"the certificate of {quote(leaf.common_name or leaf.fingerprint)} and its key"

        found = await attempted(
            "credential", read, mend="the node needs a certificate to sign with: correct its profile"
        )
        now = datetime.now(UTC)
        return [
            found,
            *(
                validity("certificate", one.not_valid_before_utc, one.not_valid_after_utc, now=now)
                for one in certificates
            ),
        ]

    async def answer(self, challenge: bytes) -> bytes:
        if self._key is None:
            raise FailedPrecondition("a challenge came before the payload", reason="UNEXPECTED_CHALLENGE")
        kind = "rsa_signature" if isinstance(self._key, rsa.RSAPrivateKey) else "ecdsa_signature"
        asked = challenge_members(challenge).get(kind)
        try:
            nonce = nonce_of(asked.get("nonce") if isinstance(asked, dict) else None, "nonce")
        except ValueError as error:
            refuse_challenge(f"`{kind}`: {error}", error)
        own = new_nonce()
        signature = await asyncio.to_thread(_sign, self._key, signed_digest(nonce, own))
        return wire({kind: {"nonce": text_of(own), **signature}})


async def _prove_possession(leaf: NodeCertificate, challenge: Challenge) -> None:
    kind = "rsa_signature" if isinstance(leaf.key, rsa.RSAPublicKey) else "ecdsa_signature"
    nonce = new_nonce()
    asked: dict[str, Any] = {"rsa_signature": None, "ecdsa_signature": None, kind: {"nonce": text_of(nonce)}}
    answer = answer_members(await challenge(wire(asked))).get(kind)
    if not isinstance(answer, dict):
        refuse_answer(f"`{kind}` is missing")
    try:
        digest = signed_digest(nonce, nonce_of(answer.get("nonce"), "nonce"))
        if isinstance(leaf.key, rsa.RSAPublicKey):
            signature = octets(answer.get("signature"), "signature")
        else:
            signature = encode_dss_signature(*(_integer(answer.get(name), name, leaf.key) for name in ("r", "s")))
    except ValueError as error:
        refuse_answer(str(error), error)
    try:
        _check_signature(leaf.key, signature, digest)
    except (InvalidSignature, ValueError, UnsupportedAlgorithm) as error:
        refuse_possession(error)


def _integer(value: object, name: str, key: ec.EllipticCurvePublicKey) -> int:
    """Big endian, no longer than the curve's order. Raises ValueError."""
    found = octets(value, name)
    if len(found) > (key.key_size + 7) // 8:
        raise ValueError(f"`{name}` is too long")
    return int.from_bytes(found, "big")


def _check_signature(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey, signature: bytes, digest: bytes) -> None:
    """Raises InvalidSignature."""
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, digest, padding.PSS(mgf=_MGF, salt_length=padding.PSS.AUTO), _DIGEST)
    else:
        key.verify(signature, digest, ec.ECDSA(_DIGEST))


def _sign(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, digest: bytes) -> dict[str, str]:
    if isinstance(key, rsa.RSAPrivateKey):
        return {"signature": text_of(key.sign(digest, padding.PSS(_MGF, padding.PSS.DIGEST_LENGTH), _DIGEST))}
    r, s = decode_dss_signature(key.sign(digest, ec.ECDSA(_DIGEST)))
    return {
        name: text_of(number.to_bytes((number.bit_length() + 7) // 8, "big")) for name, number in (("r", r), ("s", s))
    }


def _san_selectors(leaf: NodeCertificate, trust_domain: str) -> list[tuple[str, str]]:
    """(key, value) of each URI SAN `x509pop://<trust domain>/<key>/<value>`."""
    found = []
    for uri in leaf.uris:
        with suppress(ValueError):
            parts = urlsplit(uri)
            key, slash, value = parts.path[1:].partition("/")
            # What the parser would leave out of the value is not left out: such a URI is none of ours.
            plain = uri.isascii() and uri.isprintable() and not {"?", "#", " "} & set(uri)
            if (parts.scheme, parts.netloc) == (NAME, trust_domain) and plain and key and slash and value:
                found.append((key, value))
    return found[:MAX_SELECTORS]


def _selectors(leaf: NodeCertificate, above: tuple[bytes, ...], sans: list[tuple[str, str]]) -> frozenset[Selector]:
    values = [f"ca:fingerprint:{fingerprint(der)}" for der in above]
    values.append(f"serialnumber:{leaf.serial_hex}")
    values += [f"san:{key}:{value}" for key, value in sans]
    if leaf.common_name:
        values.append(f"subject:cn:{leaf.common_name}")
    return frozenset(Selector(NAME, value) for value in values)


plugin = NodeAttestorPlugin(
    name=NAME,
    server_config=ServerConfig,
    agent_config=AgentConfig,
    verifier=X509PopVerifier,
    prover=X509PopProver,
)
