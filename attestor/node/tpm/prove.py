"""The agent's work on its TPM: what it shows at first, and what it answers. Blocks; leaves nothing loaded.

Between the two the keys wait outside of the TPM, as contexts that only this TPM can read: an attestation that never
comes to its second half keeps no room in it.
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass, field

from attestor.node.tpm.commands import ENDORSEMENT, OWNER, Auth, Made, Tpm, pcr_selection
from attestor.node.tpm.files import DevId, Passwords
from attestor.node.tpm.messages import Answers, Evidence, Questions, Quoted, QuoteRequest
from attestor.node.tpm.public import PublicArea, ec_template, rsa_template
from attestor.node.tpm.refusals import HANDLE, Refusal
from attestor.node.tpm.signatures import answer_of
from attestor.node.tpm.structures import (
    ADMIN_WITH_POLICY,
    ALG_ECDSA,
    ALG_NULL,
    ALG_RSASSA,
    ALG_SHA256,
    BANKS,
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    NO_DA,
    NO_SCHEME,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SIGN,
    USER_WITH_AUTH,
    Malformed,
    Scheme,
    parse_signature,
)
from ca.errors import FailedPrecondition

_FIXED = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN
_NO_SCHEME = struct.pack(">H", ALG_NULL)
_EK_POLICY = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
_EK = _FIXED | ADMIN_WITH_POLICY | RESTRICTED | DECRYPT
EK_RSA, EK_ECC = 0x01C00002, 0x01C0000A
EK_TEMPLATES = {
    EK_RSA: rsa_template(attributes=_EK, scheme=_NO_SCHEME, protects=True, policy=_EK_POLICY, unique=bytes(256)),
    EK_ECC: ec_template(attributes=_EK, policy=_EK_POLICY, coordinate=bytes(32)),
}
"""TCG EK Credential Profile 2.3 §2.2.1.4, §2.2.1.5: where a certificate is stored → how its key is made (L-1, L-2)."""

_STORAGE = _FIXED | USER_WITH_AUTH | NO_DA | RESTRICTED | DECRYPT
SRK_RSA = rsa_template(attributes=_STORAGE, scheme=_NO_SCHEME, protects=True)
SRK_ECC = ec_template(attributes=_STORAGE)
"""TCG Provisioning Guidance: the storage keys below which DevIDs are made, for SPIRE's agents too (H-1, H-2)."""

AK = rsa_template(
    attributes=_FIXED | USER_WITH_AUTH | NO_DA | RESTRICTED | SIGN,
    scheme=struct.pack(">HH", ALG_RSASSA, ALG_SHA256),
    protects=False,
)
"""RSA, because SPIRE's servers know no other attestation key."""

_QUOTE_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """What the second half needs: the keys' contexts, and the attestation key's password."""

    devid: bytes = field(repr=False)
    ak: bytes = field(repr=False)
    ek: bytes = field(repr=False)
    ak_password: bytes = field(repr=False)
    devid_scheme: Scheme


def gather(tpm: Tpm, devid: DevId, passwords: Passwords, ek_certificate: bytes | None) -> tuple[Evidence, Waiting]:
    """The payload. `ek_certificate` (DER) replaces the one that the TPM stores. Raises as `Tpm` does, or Malformed."""
    scheme = _signing_scheme(devid.area)
    certificate, template = endorsement(tpm, ek_certificate)
    ek, ek_public = tpm.create_primary(ENDORSEMENT, Auth(passwords.endorsement), template)
    with tpm.holding(ek):
        ek_context = tpm.context_save(ek)
    password = secrets.token_bytes(32)
    devid_handle, ak_handle, ak = _load_both(tpm, devid, Auth(passwords.owner), password)
    with tpm.holding(devid_handle), tpm.holding(ak_handle):
        certified, certification = tpm.certify(devid_handle, Auth(passwords.devid), ak_handle, Auth(password))
        contexts = tpm.context_save(devid_handle), tpm.context_save(ak_handle)
    evidence = Evidence(
        devid_chain=devid.chain,
        devid_public=devid.key.public,
        ek_certificate=certificate,
        ek_public=ek_public,
        ak_public=ak.public,
        certified=certified,
        certification=certification,
    )
    waiting = Waiting(devid=contexts[0], ak=contexts[1], ek=ek_context, ak_password=password, devid_scheme=scheme)
    return evidence, waiting


def answer(tpm: Tpm, waiting: Waiting, questions: Questions, passwords: Passwords) -> Answers:
    """Raises as `Tpm` does, or Malformed."""
    with tpm.holding(tpm.context_load(waiting.devid)) as devid:
        signature = tpm.sign(devid, Auth(passwords.devid), questions.devid_nonce, waiting.devid_scheme)
    ak_auth = Auth(waiting.ak_password)
    with tpm.holding(tpm.context_load(waiting.ak)) as ak:
        quoted = None if questions.quote is None else _quote(tpm, ak, ak_auth, questions.quote)
        with (
            tpm.holding(tpm.context_load(waiting.ek)) as ek,
            tpm.endorsement_session(Auth(passwords.endorsement)) as session,
        ):
            activated = tpm.activate(ak, ak_auth, ek, session, questions.credential, questions.secret)
    return Answers(devid_signature=answer_of(parse_signature(signature)), activated=activated, quoted=quoted)


def endorsement(tpm: Tpm, certificate: bytes | None) -> tuple[bytes, bytes]:
    """(the endorsement key's certificate, the template of its key)"""
    for index, template in EK_TEMPLATES.items():
        try:
            stored = tpm.nv_read(index)
        except Refusal as refusal:
            if not refusal.means(HANDLE):
                raise
            continue
        return certificate or first_der(stored), template
    if certificate is not None:
        return certificate, EK_TEMPLATES[EK_RSA]
    raise FailedPrecondition(
        "the TPM stores no certificate of its endorsement key",
        reason="TPM_EK_CERTIFICATE_MISSING",
        hint="get it from the manufacturer and name it in `ek_cert_path`",
    )


def first_der(stored: bytes) -> bytes:
    """The certificate at the start: some manufacturers pad what they store. Raises Malformed."""
    if len(stored) < 4 or stored[:2] != b"\x30\x82":
        raise Malformed("what the TPM stores as its endorsement certificate is none")
    end = 4 + int.from_bytes(stored[2:4], "big")
    if end > len(stored):
        raise Malformed("the TPM's endorsement certificate is cut short")
    return stored[:end]


def _load_both(tpm: Tpm, devid: DevId, owner: Auth, password: bytes) -> tuple[int, int, Made]:
    """(DevID key, attestation key), both loaded, and the latter itself, made anew below the same parent."""
    template = SRK_ECC if devid.area.is_ec else SRK_RSA
    srk, _ = tpm.create_primary(OWNER, owner, template)
    with tpm.holding(srk):
        ak = tpm.create(srk, password, AK)
        devid_handle = tpm.load(srk, devid.key)
        try:
            return devid_handle, tpm.load(srk, ak), ak
        except BaseException:
            with tpm.holding(devid_handle):
                raise


def _signing_scheme(area: PublicArea) -> Scheme:
    """What to ask for; servers verify SHA-256 alone. Raises FailedPrecondition."""
    wanted = Scheme(ALG_ECDSA if area.is_ec else ALG_RSASSA, ALG_SHA256)
    if not area.has(SIGN) or area.scheme not in (NO_SCHEME, wanted):
        raise FailedPrecondition(
            "the DevID key is not one that signs with SHA-256",
            reason="NODE_CREDENTIAL",
            hint="make it with: tpm2_create -G rsa2048:rsassa-sha256 or -G ecc256:ecdsa-sha256",
        )
    return NO_SCHEME if area.scheme == wanted else wanted


def _quote(tpm: Tpm, ak: int, auth: Auth, asked: QuoteRequest) -> Quoted:
    """Values and quote are two commands: they are asked for again when a PCR changed in between."""
    bank, pcrs = BANKS[asked.bank], list(asked.pcrs)
    selection = pcr_selection(bank, pcrs)
    for _ in range(_QUOTE_ATTEMPTS):
        before = tpm.pcr_read(bank, pcrs)
        attest, signature = tpm.quote(ak, auth, asked.nonce, selection)
        if len(before) == len(pcrs) and tpm.pcr_read(bank, pcrs) == before:
            return Quoted(attest=attest, signature=signature, values=tuple(before))
    raise FailedPrecondition(
        f"the PCRs of bank {asked.bank} cannot be quoted: the TPM lacks that bank, or they change all the time",
        reason="TPM_PCR_BANK",
        hint="tpm2_getcap pcrs shows the banks, tpm2_pcrallocate changes them",
    )
