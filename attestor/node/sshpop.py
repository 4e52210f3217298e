"""Node attestation by the host certificate that OpenSSH has already: signed by a host CA, proven with the host key.

The node signs SHA-256 of two nonces with its host key. Payload, challenge and response are SPIRE's.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key
from pydantic import Field, field_validator, model_validator

from attestor.node.files import read_bounded
from attestor.node.node_checks import attempted
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
from attestor.node.ssh_certificate import (
    HostCertificate,
    PrivateKey,
    parse_host_certificate,
    parse_key,
    sign,
    verify_signature,
)
from ca.errors import BurgeeError, ConfigError, Denied, FailedPrecondition, InvalidArgument, Unavailable
from ca.identity.dns_name import check_dns_name
from ca.identity.text import quote
from ca.ports import AttestedNode, Challenge, Finding, FindingLevel, NodeAttestorPlugin, NodeHost
from ca.runtime.config import StrictModel
from ca.runtime.findings import failed, ok
from ca.runtime.notes import note

NAME = "sshpop"
_FIELDS = frozenset({"PluginName", "TrustDomain", "Fingerprint", "Hostname", "KeyId", "Serial"})


class ServerConfig(StrictModel):
    """Whose host certificates prove a node, and how its agent is called."""

    cert_authorities: tuple[str, ...] = Field(
        default=(), description="Public keys of host CAs, each as a line of `authorized_keys`."
    )
    cert_authorities_path: Path | None = Field(
        default=None,
        description="A file with such lines, besides those of `cert_authorities`. It is read at each attestation.",
    )
    canonical_domain: str | None = Field(
        default=None,
        description="The first principal of a certificate must be a name below this domain, which is cut off for the "
        "field `Hostname`.",
    )
    allow_rsa_sha1: bool = Field(
        default=False,
        description="Accept answers by `ssh-rsa`, which is RSA with SHA-1. SPIRE's agents sign so where the host key "
        "is RSA; agents of this server never do.",
    )
    agent_path_template: str = Field(default="/{{ .PluginName }}/{{ .Fingerprint }}", description="The agent's path.")

    @field_validator("cert_authorities")
    @classmethod
    def _are_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        _keys(value)
        return value

    @field_validator("canonical_domain")
    @classmethod
    def _is_domain(cls, value: str | None) -> str | None:
        try:
            check_dns_name(value or "x")
        except InvalidArgument as error:
            raise ValueError(error.detail) from error
        return value

    @field_validator("agent_path_template")
    @classmethod
    def _is_template(cls, value: str) -> str:
        PathTemplate.parse(value, _FIELDS, plugin=NAME)
        return value

    @model_validator(mode="after")
    def _some_authority(self) -> ServerConfig:
        if not self.cert_authorities and self.cert_authorities_path is None:
            raise ValueError("name `cert_authorities` or `cert_authorities_path`")
        return self


class AgentConfig(StrictModel):
    """The host's key and certificate. Both files are read anew at each attestation."""

    host_key_path: Path = Field(
        default=Path("/etc/ssh/ssh_host_rsa_key"),
        description="The host's private key, RSA, ECDSA or Ed25519, not encrypted.",
    )
    host_cert_path: Path = Field(
        default=Path("/etc/ssh/ssh_host_rsa_key-cert.pub"), description="Its certificate, as ssh-keygen writes it."
    )


class SshPopVerifier:
    """Server half."""

    def __init__(self, config: ServerConfig, host: NodeHost) -> None:
        self._config = config
        self._host = host
        self._template = PathTemplate.parse(config.agent_path_template, _FIELDS, plugin=NAME)
        try:
            self._read_authorities()
        except ValueError as error:
            raise ConfigError(f"node_attestors.{NAME}: {error}", reason="NODE_AUTHORITIES") from error

    async def verify(self, payload: bytes, challenge: Challenge) -> AttestedNode:
        certificate = parse_host_certificate(_blob(payload))
        certificate.verify(self._authorities(), now=self._host.clock.now())
        hostname = self._hostname(certificate)
        await _prove_possession(certificate, challenge, sha1=self._config.allow_rsa_sha1)
        path = self._template.render(
            {
                "PluginName": NAME,
                "TrustDomain": self._host.trust_domain.name,
                "Fingerprint": certificate.fingerprint,
                "Hostname": hostname,
                "KeyId": certificate.key_id,
                "Serial": str(certificate.serial),
            }
        )
        return AttestedNode(path=path, reattestable=True)

    async def check(self) -> Sequence[Finding]:
        """Implements ca.ports.Checked: whether the host CAs can be read."""
        try:
            return [ok("host CAs", f"{len(self._read_authorities())}")]
        except ValueError as error:
            hint = "correct the file that `cert_authorities_path` names; no restart is needed"
            return [failed("host CAs", str(error), hint)]

    def _hostname(self, certificate: HostCertificate) -> str:
        """The first principal, without the canonical domain. A certificate for whatever name proves no host."""
        if not certificate.principals:
            raise Denied("the node's certificate names no host", reason="NODE_CERTIFICATE_USAGE")
        name, domain = certificate.principals[0], self._config.canonical_domain
        if domain is None:
            return name
        short = name.removesuffix(f".{domain}")
        if short in ("", name):
            note("principal", f"{quote(name)} is not below {quote(domain)}")
            raise Denied("the node's certificate is for a host of another domain", reason="NODE_CERTIFICATE_USAGE")
        return short

    def _authorities(self) -> frozenset[bytes]:
        try:
            return self._read_authorities()
        except ValueError as error:
            note("authorities", error)
            raise Unavailable("the authorities of nodes cannot be read just now", reason="NODE_AUTHORITIES") from error

    def _read_authorities(self) -> frozenset[bytes]:
        """Raises ValueError."""
        found = _keys(self._config.cert_authorities)
        path = self._config.cert_authorities_path
        if path is not None:
            try:
                found |= _keys(tuple(read_bounded(path).decode("utf-8").splitlines()))
            except (OSError, ValueError, InvalidArgument) as error:
                raise ValueError(f"cannot read authorities from `{path}`: {_why(error)}") from error
        if not found:
            raise ValueError("there is no authority")
        return found


class SshPopProver:
    """Agent half. The key that was read with the certificate answers the challenge."""

    can_reattest = True

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._key: PrivateKey | None = None

    async def payload(self) -> bytes:
        blob = _read_certificate(self._config.host_cert_path)
        self._key = _read_key(self._config.host_key_path, blob)
        return wire({"Certificate": text_of(blob)})

    async def check(self) -> Sequence[Finding]:
        """Implements ca.ports.Checked: the certificate, its time, and that the key is its own."""

        async def read() -> str:
            _read_key(self._config.host_key_path, _read_certificate(self._config.host_cert_path))
            return f"`{self._config.host_cert_path}` and its key"

        found = await attempted("host certificate", read, mend="let the host CA sign the host key again")
        if found.level is not FindingLevel.OK:
            return [found]
        certificate = parse_host_certificate(_read_certificate(self._config.host_cert_path))
        return [found, *_of_host(certificate, datetime.now(UTC))]

    async def answer(self, challenge: bytes) -> bytes:
        if self._key is None:
            raise FailedPrecondition("a challenge came before the payload", reason="UNEXPECTED_CHALLENGE")
        try:
            nonce = nonce_of(challenge_members(challenge).get("Nonce"), "Nonce")
        except ValueError as error:
            refuse_challenge(str(error), error)
        own = new_nonce()
        kind, blob = await asyncio.to_thread(sign, self._key, signed_digest(nonce, own))
        return wire({"Nonce": text_of(own), "Signature": {"Format": kind, "Blob": text_of(blob), "Rest": None}})


def _of_host(certificate: HostCertificate, now: datetime) -> Sequence[Finding]:
    what = "host certificate's use"
    try:
        certificate.verify({certificate.authority}, now=now)  # whether the server knows that CA is for the server
    except Denied as error:
        return [
            failed(
                what, f"{error.detail} ({error.reason})", "let the host CA sign the host key again (`ssh-keygen -h`)"
            )
        ]
    if not certificate.principals:
        return [failed(what, "it names no host", "name the host when it is signed (`ssh-keygen -n`)")]
    return [ok(what, f"for {quote(', '.join(certificate.principals))}, valid now")]


async def _prove_possession(certificate: HostCertificate, challenge: Challenge, *, sha1: bool) -> None:
    nonce = new_nonce()
    answer = answer_members(await challenge(wire({"Nonce": text_of(nonce)})))
    try:
        digest = signed_digest(nonce, nonce_of(answer.get("Nonce"), "Nonce"))
        kind, blob = _signature(answer.get("Signature"))
    except ValueError as error:
        refuse_answer(str(error), error)
    try:
        verify_signature(certificate.key, kind, blob, digest, sha1=sha1)
    except (InvalidSignature, ValueError, UnsupportedAlgorithm) as error:
        note("signature", f"by {quote(kind)}: {error or 'wrong'}")
        refuse_possession(error)


def _signature(value: Any) -> tuple[str, bytes]:
    """Raises ValueError."""
    if not isinstance(value, dict) or not isinstance(value.get("Format"), str):
        raise ValueError("`Signature` is missing or has no `Format`")
    if value.get("Rest") not in (None, ""):  # only keys in security tokens have more, and no host has those
        raise ValueError("`Rest` of the signature is not empty")
    return value["Format"], octets(value.get("Blob"), "Blob")


def _blob(payload: bytes) -> bytes:
    try:
        return octets(payload_members(payload).get("Certificate"), "Certificate")
    except ValueError as error:
        refuse_payload(str(error), error)


def _keys(lines: tuple[str, ...]) -> frozenset[bytes]:
    """Raises ValueError."""
    return frozenset(key for line in lines if (key := parse_key(line)) is not None)


def _read_certificate(path: Path) -> bytes:
    """The blob of a `-cert.pub` file."""
    try:
        words = read_bounded(path).split()
        if len(words) < 2:
            raise ValueError("no certificate in it")
        blob = base64.b64decode(words[1], validate=True)
        parse_host_certificate(blob)
    except (OSError, ValueError, binascii.Error, BurgeeError) as error:
        raise _no_credential(path, _why(error)) from error
    return blob


def _read_key(path: Path, certificate: bytes) -> PrivateKey:
    try:
        text = read_bounded(path)
        load = load_ssh_private_key if b"BEGIN OPENSSH PRIVATE KEY" in text else load_pem_private_key
        key = load(text, None)
    except (OSError, InvalidArgument) as error:
        raise _no_credential(path, _why(error)) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_credential(path, "no unencrypted private key") from error
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise _no_credential(path, "neither RSA, ECDSA nor Ed25519")
    if key.public_key() != parse_host_certificate(certificate).key:
        raise _no_credential(path, "not the key of the certificate")
    return key


def _why(error: Exception) -> str:
    if isinstance(error, BurgeeError):
        return error.detail
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _no_credential(path: Path, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"cannot prove this node with `{path}`: {why}",
        reason="NODE_CREDENTIAL",
        hint="the agent reads it again at the next attempt, without a restart",
    )


plugin = NodeAttestorPlugin(
    name=NAME,
    server_config=ServerConfig,
    agent_config=AgentConfig,
    verifier=SshPopVerifier,
    prover=SshPopProver,
)
