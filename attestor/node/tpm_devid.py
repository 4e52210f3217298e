"""Node attestation by a TPM 2.0 and the device identity (LDevID, IEEE 802.1AR) that was provisioned in it.

Payload, challenge and answer are SPIRE's. The DevID certificate says who the node is, its key's signature that it is
here, the attestation key that this key lives in a TPM, and credential activation in which: the one whose manufacturer's
certificate was shown. Beside SPIRE: a quote of the PCRs, held against a policy, where the server is given one.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from cryptography import x509
from cryptography.x509.oid import NameOID
from pydantic import Field, model_validator

from attestor.node.node_certificate import fingerprint
from attestor.node.node_checks import attempted, authorities, validity
from attestor.node.possession import refuse_answer, refuse_challenge, refuse_payload
from attestor.node.tpm.authorities import read_authorities
from attestor.node.tpm.commands import Tpm
from attestor.node.tpm.credential import make_credential
from attestor.node.tpm.device import Device, find_device
from attestor.node.tpm.files import DevId, Passwords, read_certificates, read_devid, read_password
from attestor.node.tpm.messages import Answers, Evidence, Questions
from attestor.node.tpm.policy import PcrPolicy
from attestor.node.tpm.prove import Waiting, answer, endorsement, gather
from attestor.node.tpm.structures import BANKS, DIGEST_BYTES, Malformed
from attestor.node.tpm.verify import Authorities, Claimed, verify_activation, verify_evidence, verify_possession
from ca.errors import ConfigError, FailedPrecondition, Unavailable
from ca.identity.selector import Selector
from ca.ports import AttestedNode, Challenge, Finding, FindingLevel, NodeAttestorPlugin, NodeHost
from ca.runtime.config import StrictModel
from ca.runtime.findings import failed
from ca.runtime.notes import note
from ca.runtime.threads import to_thread

NAME = "tpm_devid"
PATH_PREFIX = f"/spire/agent/{NAME}/"
NONCE_BYTES = 32
PCRS = frozenset(str(index) for index in range(24))
RESETTABLE_PCRS = frozenset({"16", "23"})

T = TypeVar("T")


class PcrPolicyConfig(StrictModel):
    """What a node may have booted: for each PCR that is named, the values that it may have."""

    bank: Literal["sha256", "sha384", "sha512"] = Field(
        default="sha256", description="The bank of PCRs that is quoted."
    )
    pcrs: dict[str, list[str]] = Field(
        min_length=1,
        description='PCR (`"0"` to `"23"`) → the values that are allowed, in hex; one of them must be there.',
    )

    @model_validator(mode="after")
    def _possible(self) -> PcrPolicyConfig:
        digits = DIGEST_BYTES[BANKS[self.bank]] * 2
        for index, values in self.pcrs.items():
            if index not in PCRS:
                raise ValueError(f"`{index}` is no PCR: 0 to 23")
            if index in RESETTABLE_PCRS:
                raise ValueError(f"PCR {index} says nothing: every program can reset it")
            if not values:
                raise ValueError(f"PCR {index} has no allowed value")
            if not all(len(value) == digits and set(value) <= set("0123456789abcdefABCDEF") for value in values):
                raise ValueError(f"a value of PCR {index} is not {digits} hexadecimal digits")
        return self

    def policy(self) -> PcrPolicy:
        allowed = {int(index): frozenset(map(bytes.fromhex, values)) for index, values in self.pcrs.items()}
        return PcrPolicy(bank=self.bank, allowed=allowed)


class ServerConfig(StrictModel):
    """Which DevIDs and which TPMs are believed. Both files are read at each attestation."""

    devid_ca_path: Path = Field(description="PEM file of the CAs that issue DevID certificates.")
    endorsement_ca_path: Path = Field(
        description="PEM file of the manufacturers' CAs for endorsement certificates, with intermediate ones: agents "
        "send none."
    )
    pcr_policy: PcrPolicyConfig | None = Field(
        default=None,
        description="Measured boot that a node must show by a quote of its PCRs; none is asked for by default. SPIRE's "
        "agents cannot.",
    )


class AgentConfig(StrictModel):
    """Where the TPM is, and the DevID that was provisioned in it. The files are read at each attestation."""

    tpm_device_path: Path | None = Field(
        default=None,
        description="A TPM's character device, or the Unix socket of a software TPM; by default the machine's only "
        "one, `/dev/tpmrm0` rather than `/dev/tpm0`.",
    )
    devid_cert_path: Path = Field(
        description="PEM file of the DevID certificate, followed by its intermediate certificates."
    )
    devid_priv_path: Path = Field(
        description="The DevID's private part as the TPM gave it (`tpm2_create -r`); only that TPM can read it."
    )
    devid_pub_path: Path = Field(description="The DevID's public part as the TPM gave it (`tpm2_create -u`).")
    ek_cert_path: Path | None = Field(
        default=None,
        description="PEM file of the endorsement certificate where the TPM stores none; by default what it stores.",
    )
    devid_password_file: Path | None = Field(
        default=None, description="A private file with the DevID key's password; none by default."
    )
    owner_hierarchy_password_file: Path | None = Field(
        default=None, description="A private file with the owner hierarchy's password; none by default."
    )
    endorsement_hierarchy_password_file: Path | None = Field(
        default=None, description="A private file with the endorsement hierarchy's password; none by default."
    )


class TpmDevIdVerifier:
    """Server half. Every attestation is over nonces of its own, so nothing that was recorded serves again."""

    def __init__(
        self, config: ServerConfig, host: NodeHost, *, random: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        self._config = config
        self._host = host
        self._random = random
        self._policy = None if config.pcr_policy is None else config.pcr_policy.policy()
        try:
            self._authorities()
        except ValueError as error:
            raise ConfigError(f"node_attestors.{NAME}: {error}", reason="NODE_AUTHORITIES") from error

    async def verify(self, payload: bytes, challenge: Challenge) -> AttestedNode:
        try:
            evidence = Evidence.decode(payload)
        except Malformed as error:
            refuse_payload(str(error), error)
        claimed, questions, secret = await asyncio.to_thread(self._ask, evidence)
        try:
            answers = Answers.decode(await challenge(questions.encode()))
        except Malformed as error:
            refuse_answer(str(error), error)
        await asyncio.to_thread(self._judge, claimed, questions, secret, answers)
        return AttestedNode(
            path=PATH_PREFIX + claimed.devid.fingerprint, selectors=_selectors(claimed), reattestable=True
        )

    async def check(self) -> Sequence[Finding]:
        """Implements ca.ports.Checked: whether the authorities can be read, and are still any."""
        try:
            found = await asyncio.to_thread(self._authorities)
        except ValueError as error:
            return [failed("authorities", str(error), "correct the file; no restart is needed")]
        now = self._host.clock.now()
        return [
            authorities(
                f"authorities of {whose}s",
                [x509.load_der_x509_certificate(der) for der in ders],
                now=now,
                mend=f"renew what is in `{path}`; no restart is needed",
            )
            for whose, ders, path in (
                ("DevID", found.devid, self._config.devid_ca_path),
                ("TPM", found.endorsement, self._config.endorsement_ca_path),
            )
        ]

    def _ask(self, evidence: Evidence) -> tuple[Claimed, Questions, bytes]:
        """(evidence that holds together, what is asked about it, the secret that only the right TPM can read)"""
        try:
            authorities = self._authorities()
        except ValueError as error:
            note("authorities", error)
            raise Unavailable("the authorities of nodes cannot be read just now", reason="NODE_AUTHORITIES") from error
        claimed = verify_evidence(evidence, authorities, now=self._host.clock.now())
        nonce, secret = self._random(NONCE_BYTES), self._random(NONCE_BYTES)
        credential = make_credential(claimed.ek, claimed.ak.name, secret, self._random)
        quote = None if self._policy is None else self._policy.question(self._random(NONCE_BYTES))
        questions = Questions(
            devid_nonce=nonce, credential=credential.credential, secret=credential.secret, quote=quote
        )
        return claimed, questions, secret

    def _authorities(self) -> Authorities:
        config = self._config
        return Authorities(
            devid=read_authorities(config.devid_ca_path), endorsement=read_authorities(config.endorsement_ca_path)
        )

    def _judge(self, claimed: Claimed, questions: Questions, secret: bytes, answers: Answers) -> None:
        verify_possession(claimed, nonce=questions.devid_nonce, signature=answers.devid_signature)
        verify_activation(secret=secret, activated=answers.activated)
        if self._policy is not None and questions.quote is not None:
            self._policy.check(answers.quoted, asked=questions.quote, ak=claimed.ak)


class TpmDevIdProver:
    """Agent half. A TPM's commands block, the making of keys for seconds: they have a thread to themselves."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._waiting: Waiting | None = None

    @property
    def can_reattest(self) -> bool:
        return True

    async def payload(self) -> bytes:
        evidence, self._waiting = await to_thread(self._gather)
        return evidence.encode()

    async def answer(self, challenge: bytes) -> bytes:
        try:
            questions = Questions.decode(challenge)
        except Malformed as error:
            refuse_challenge(str(error), error)
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            raise FailedPrecondition(
                "the server sent another challenge, which TPMs do not have", reason="UNEXPECTED_CHALLENGE"
            )
        answers = await to_thread(self._answer, waiting, questions)
        return answers.encode()

    async def check(self) -> Sequence[Finding]:
        """Implements ca.ports.Checked: the TPM, its endorsement certificate, and the files; no key is made."""

        async def tpm() -> str:
            return await to_thread(self._with_tpm, self._endorsed)

        async def files() -> str:
            return await to_thread(self._provisioned)

        found = [
            await attempted("TPM", tpm, mend="see how a DevID is provisioned, on the plugin's page"),
            await attempted("DevID", files, mend="see how a DevID is provisioned, on the plugin's page"),
        ]
        if found[1].level is FindingLevel.OK:
            leaf = x509.load_der_x509_certificate(self._devid().chain[0])
            begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
            found.append(validity("DevID certificate", begins, ends, now=datetime.now(UTC)))
        return found

    def _endorsed(self, tpm: Tpm) -> str:
        path = self._config.ek_cert_path
        endorsement(tpm, None if path is None else read_certificates(path)[0])
        return "it answers, and has the certificate of an endorsement key"

    def _provisioned(self) -> str:
        self._passwords()
        return f"{len(self._devid().chain)} certificates, both parts of the key, and what passwords are named"

    def _devid(self) -> DevId:
        config = self._config
        return read_devid(config.devid_pub_path, config.devid_priv_path, config.devid_cert_path)

    def _gather(self) -> tuple[Evidence, Waiting]:
        config = self._config
        devid = self._devid()
        ek_certificate = None if config.ek_cert_path is None else read_certificates(config.ek_cert_path)[0]
        passwords = self._passwords()
        return self._with_tpm(lambda tpm: gather(tpm, devid, passwords, ek_certificate))

    def _answer(self, waiting: Waiting, questions: Questions) -> Answers:
        passwords = self._passwords()
        return self._with_tpm(lambda tpm: answer(tpm, waiting, questions, passwords))

    def _passwords(self) -> Passwords:
        config = self._config
        return Passwords(
            owner=read_password(config.owner_hierarchy_password_file),
            endorsement=read_password(config.endorsement_hierarchy_password_file),
            devid=read_password(config.devid_password_file),
        )

    def _with_tpm(self, work: Callable[[Tpm], T]) -> T:
        with Device(self._config.tpm_device_path or find_device()) as device:
            try:
                return work(Tpm(device))
            except Malformed as error:
                raise Unavailable(f"the TPM's response is not understood: {error}", reason="TPM_RESPONSE") from error


def _selectors(claimed: Claimed) -> frozenset[Selector]:
    """SPIRE's. It documents `fingerprint:` and gives `ca:fingerprint:`; entries written for either must match."""
    names = claimed.devid.certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    issuer = str(names[0].value) if len(names) == 1 else ""
    values = {f"{key}:cn:{name}" for key, name in (("subject", claimed.devid.common_name), ("issuer", issuer)) if name}
    for one in map(fingerprint, claimed.above):
        values |= {f"fingerprint:{one}", f"ca:fingerprint:{one}"}
    return frozenset(Selector(NAME, value) for value in values)


plugin = NodeAttestorPlugin(
    name=NAME,
    server_config=ServerConfig,
    agent_config=AgentConfig,
    verifier=TpmDevIdVerifier,
    prover=TpmDevIdProver,
)
