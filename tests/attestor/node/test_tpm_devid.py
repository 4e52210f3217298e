"""The tpm_devid attestor between a real (software) TPM and the server's half: who comes through, and who does not."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from attestor.node.tpm.credential import make_credential
from attestor.node.tpm.messages import Answers, Evidence, Questions
from attestor.node.tpm.public import parse_public
from attestor.node.tpm_devid import ServerConfig, plugin
from ca.errors import ConfigError, FailedPrecondition
from ca.identity.selector import Selector
from ca.runtime.config import from_values
from ca.runtime.notes import collecting
from tests.attestor.node.tpm_lab import (
    UNTOUCHED,
    SameNonces,
    always,
    other_tpm,
    policy,
    prover,
    recording,
    refusal,
    verifier,
)
from tests.contracts.attestors import NodeSample
from tests.support.device_ca import DeviceCa
from tests.support.node_host import FakeHost
from tests.support.swtpm import SoftTpm, factory, usual_tpm

pytestmark = [pytest.mark.real("swtpm"), pytest.mark.xdist_group("swtpm")]


def contract_sample() -> NodeSample:
    """Skips where there is no software TPM: the agent's half speaks to nothing else."""
    return NodeSample(host=FakeHost(), server=factory().server, agent=usual_tpm().agent())


@pytest.fixture
def tpm() -> SoftTpm:
    return usual_tpm()


@pytest.fixture
def lone() -> Iterator[SoftTpm]:
    """One to be spoiled."""
    made = factory().tpm(devid="ecc")
    yield made
    made.remove()


async def attest(machine: SoftTpm, changes: dict[str, Any] | None = None, **agent: Any) -> Any:
    node = prover(machine, **agent)
    return await verifier(changes).verify(await node.payload(), node.answer)


def certificate(machine: SoftTpm, name: str = "devid") -> x509.Certificate:
    return x509.load_pem_x509_certificate((machine.home / f"{name}.pem").read_bytes())


# The right node


def all_of_curves() -> SoftTpm:
    return factory().tpm(ek="ecc", devid="ecc")


@pytest.mark.parametrize("machine_of", [usual_tpm, other_tpm, all_of_curves], ids=["rsa", "rsa and ecc", "ecc"])
async def test_the_right_tpm_is_the_node_that_its_devid_names(machine_of: Callable[[], SoftTpm]) -> None:
    machine = machine_of()
    node = await attest(machine)
    root = factory().owner.certificate.fingerprint(hashes.SHA1()).hex()
    assert node.path == f"/spire/agent/tpm_devid/{certificate(machine).fingerprint(hashes.SHA1()).hex()}"
    wanted = {"subject:cn:devid-42", "issuer:cn:DevID CA", f"fingerprint:{root}", f"ca:fingerprint:{root}"}
    assert node.selectors == {Selector("tpm_devid", value) for value in wanted}
    assert node.reattestable


async def test_a_tpm_that_somebody_else_manufactured_is_believed_by_that_manufacturers_ca() -> None:
    """Keys, certificates and their places in the TPM are swtpm_setup's, as those of virtual machines are."""
    machine = SoftTpm(manufactured=True)
    try:
        machine.provision(factory().owner, kind="ecc")
        assert await attest(machine, {"endorsement_ca_path": str(machine.manufacturer)})
        assert await refusal(attest(machine)) == "TPM_EK_UNTRUSTED"
    finally:
        machine.remove()


async def test_nothing_stays_in_the_tpm(tpm: SoftTpm) -> None:
    node = prover(tpm)
    payload = await node.payload()
    assert not tpm.loaded(), "between the two halves"
    await verifier(policy()).verify(payload, node.answer)
    assert not tpm.loaded(), "afterwards"


async def test_what_travels_is_what_spire_has(tpm: SoftTpm) -> None:
    """pkg/common/plugin/tpmdevid/devid.go: names and kinds of all members."""
    node, heard = prover(tpm), []
    payload = await node.payload()

    async def answer(challenge: bytes) -> bytes:
        heard.extend((challenge, await node.answer(challenge)))
        return heard[1]

    await verifier().verify(payload, answer)
    shown, challenge, answers = (json.loads(message) for message in (payload, *heard))
    text = {"DevIDPub", "EKCert", "EKPub", "AKPub", "CertifiedDevID", "CertificationSignature"}
    assert set(shown) == text | {"DevIDCert"}
    assert base64.b64decode(shown["DevIDCert"][0]) == certificate(tpm).public_bytes(Encoding.DER)
    assert base64.b64decode(shown["EKCert"]) == (tpm.home / "ek.crt").read_bytes()
    assert base64.b64decode(shown["DevIDPub"]) == (tpm.home / "devid.pub").read_bytes()[2:], "TPMT_PUBLIC, no length"
    assert set(challenge) == {"DevID", "CredActivation"}
    assert set(challenge["CredActivation"]) == {"Credential", "Secret"}
    assert set(answers) == {"DevID", "CredActivation"}


async def test_intermediate_certificates_are_sent_along(tpm: SoftTpm) -> None:
    between = DeviceCa("DevID intermediate", parent=factory().owner)
    leaf = between.devid(certificate(tpm).public_key(), "device-43")
    (tpm.home / "chain.pem").write_bytes(leaf.public_bytes(Encoding.PEM) + between.pem)
    node = await attest(tpm, devid_cert_path=str(tpm.home / "chain.pem"))
    above = {one.certificate.fingerprint(hashes.SHA1()).hex() for one in (between, factory().owner)}
    found = {selector.value.removeprefix("ca:fingerprint:") for selector in node.selectors}
    assert above <= found
    assert Selector("tpm_devid", "issuer:cn:DevID intermediate") in node.selectors


async def test_an_endorsement_certificate_may_come_from_a_file(tpm: SoftTpm) -> None:
    stranger = DeviceCa("somebody")
    other = stranger.endorsement(x509.load_der_x509_certificate((tpm.home / "ek.crt").read_bytes()).public_key())
    (tpm.home / "other-ek.pem").write_bytes(other.public_bytes(Encoding.PEM))
    assert await refusal(attest(tpm, ek_cert_path=str(tpm.home / "other-ek.pem"))) == "TPM_EK_UNTRUSTED"
    own = x509.load_der_x509_certificate((tpm.home / "ek.crt").read_bytes())
    (tpm.home / "own-ek.pem").write_bytes(own.public_bytes(Encoding.PEM))
    assert await attest(tpm, ek_cert_path=str(tpm.home / "own-ek.pem"))


async def test_passwords_come_from_private_files(lone: SoftTpm, tmp_path: Path) -> None:
    lone.provision(factory().owner, kind="ecc", name="locked", password="devid-secret")
    lone.tool("tpm2_changeauth", "-c", "o", "owner-secret")
    lone.tool("tpm2_changeauth", "-c", "e", "endorsement-secret")
    files = {}
    for name in ("devid", "owner", "endorsement"):
        path = tmp_path / name
        path.write_text(f"{name}-secret\n")
        path.chmod(0o600)
        files[f"{name}_password_file" if name == "devid" else f"{name}_hierarchy_password_file"] = str(path)
    node = prover(lone, "locked", **files)
    assert await verifier().verify(await node.payload(), node.answer)
    for missing in files:
        with pytest.raises(FailedPrecondition) as caught:
            await prover(lone, "locked", **{key: path for key, path in files.items() if key != missing}).payload()
        assert (caught.value.reason, "password" in caught.value.detail) == ("TPM_REFUSED", True)
    assert not lone.loaded(), "nor after a refusal"
    (tmp_path / "devid").chmod(0o644)
    with pytest.raises(FailedPrecondition) as caught:
        await prover(lone, "locked", **files).payload()
    assert caught.value.reason == "NOT_PRIVATE"


# Somebody else


async def test_ek_of_one_tpm_and_ak_of_another_is_refused(tpm: SoftTpm) -> None:
    """The issue itself: neither machine can open the credential, and a guess does not help."""
    mine, theirs = prover(tpm), prover(other_tpm())
    shown, borrowed = Evidence.decode(await mine.payload()), Evidence.decode(await theirs.payload())
    mixed = replace(shown, ek_certificate=borrowed.ek_certificate, ek_public=borrowed.ek_public).encode()
    refusals = []

    async def answer(challenge: bytes) -> bytes:
        for machine in (mine, theirs):
            with pytest.raises(FailedPrecondition) as caught:
                await machine.answer(challenge)
            refusals.append(caught.value.reason)
        return replace(await help_of(tpm, challenge), activated=secrets.token_bytes(32)).encode()

    assert await refusal(verifier().verify(mixed, answer)) == "TPM_ACTIVATION"
    assert refusals == ["TPM_REFUSED", "TPM_REFUSED"]
    assert not tpm.loaded() + other_tpm().loaded(), "nor after a refusal"


async def test_the_devid_key_of_another_tpm_is_refused(tpm: SoftTpm) -> None:
    """With its own machine's certification, and with this machine's of another key."""
    shown, stolen = await _evidence(tpm), await _evidence(other_tpm())
    whole = replace(shown, devid_chain=stolen.devid_chain, devid_public=stolen.devid_public)
    certified = replace(whole, certified=stolen.certified, certification=stolen.certification)
    for claim in (whole, certified):
        assert await refusal(verifier().verify(claim.encode(), always(b""))) == "TPM_DEVID_UNCERTIFIED"


async def test_a_certificate_for_another_key_is_refused(tpm: SoftTpm) -> None:
    shown, other = await _evidence(tpm), await _evidence(other_tpm())
    for claim, reason in (
        (replace(shown, devid_chain=other.devid_chain), "TPM_DEVID_MISMATCH"),
        (replace(shown, ek_certificate=other.ek_certificate), "TPM_EK_MISMATCH"),
    ):
        assert await refusal(verifier().verify(claim.encode(), always(b""))) == reason


@pytest.mark.parametrize(
    ("key", "reason"), [("devid_ca_path", "NODE_CERTIFICATE_UNTRUSTED"), ("endorsement_ca_path", "TPM_EK_UNTRUSTED")]
)
async def test_who_no_configured_ca_vouches_for_is_refused(tpm: SoftTpm, tmp_path: Path, key: str, reason: str) -> None:
    """Also by a CA that has the right one's name."""
    right = {"devid_ca_path": factory().owner, "endorsement_ca_path": factory().manufacturer}[key]
    for name in ("somebody", right.certificate.subject.rfc4514_string().removeprefix("CN=")):
        changes = {key: str(DeviceCa(name).write(tmp_path / "ca.pem"))}
        assert await refusal(attest(tpm, changes)) == reason


async def test_keys_that_may_leave_their_tpm_are_refused(tpm: SoftTpm) -> None:
    tpm.provision(factory().owner, kind="ecc", name="loose", attributes="sensitivedataorigin|userwithauth|sign")
    node = prover(tpm, "loose")
    with collecting() as notes:
        assert await refusal(verifier().verify(await node.payload(), node.answer)) == "TPM_KEY_ATTRIBUTES"
    assert any(note.what == "attributes of the DevID key" for note in notes)


async def test_another_devid_key_signs_in_vain(tpm: SoftTpm) -> None:
    node = prover(tpm)

    async def answer(challenge: bytes) -> bytes:
        foreign = (await help_of(other_tpm(), challenge)).devid_signature
        return replace(Answers.decode(await node.answer(challenge)), devid_signature=foreign).encode()

    assert await refusal(verifier().verify(await node.payload(), answer)) == "POSSESSION_UNPROVEN"


async def test_a_recorded_attestation_serves_nobody(tpm: SoftTpm) -> None:
    """The server's nonces are new each time; not even the TPM with that DevID helps without the attestation key."""
    recorded = await recording()
    payload = recorded.evidence.encode()
    assert await refusal(verifier().verify(payload, always(recorded.answers.encode()))) == "POSSESSION_UNPROVEN"

    async def half_anew(challenge: bytes) -> bytes:
        signed = (await help_of(tpm, challenge)).devid_signature
        return replace(recorded.answers, devid_signature=signed).encode()

    assert await refusal(verifier().verify(payload, half_anew)) == "TPM_ACTIVATION"


async def test_authorities_may_change_while_the_server_runs(tpm: SoftTpm, tmp_path: Path) -> None:
    server = verifier({"devid_ca_path": str(DeviceCa("somebody").write(tmp_path / "ca.pem"))})

    async def again() -> Any:
        node = prover(tpm)
        return await server.verify(await node.payload(), node.answer)

    assert await refusal(again()) == "NODE_CERTIFICATE_UNTRUSTED"
    factory().owner.write(tmp_path / "ca.pem")
    assert await again()
    (tmp_path / "ca.pem").write_bytes(b"")
    assert await refusal(again()) == "NODE_AUTHORITIES"


# Measured boot


async def test_a_policy_that_is_met_lets_in(tpm: SoftTpm) -> None:
    assert await attest(tpm, policy(p8=["ff" * 32, UNTOUCHED.hex().upper()]))


@pytest.mark.parametrize("bank", ["sha384", "sha512"])
async def test_other_banks_are_quoted_as_well(tpm: SoftTpm, bank: str) -> None:
    size = {"sha384": 48, "sha512": 64}[bank]
    pcrs = {str(index): [bytes(size).hex()] for index in range(16)}
    assert await attest(tpm, {"pcr_policy": {"bank": bank, "pcrs": pcrs}}), "more than one command reads"


async def test_a_policy_that_is_not_met_is_its_own_reason_and_tells_administrators_which_pcr(lone: SoftTpm) -> None:
    lone.tool("tpm2_pcrextend", "8:sha256=" + "aa" * 32)
    with collecting() as notes:
        assert await refusal(attest(lone, policy())) == "TPM_PCR_REFUSED"
    found = {note.what: note.value for note in notes}
    assert found["pcr sha256:8"].endswith("not allowed")
    assert not found["pcr sha256:7"].endswith("not allowed")
    assert await attest(lone), "who asks for no quote does not mind"


async def test_an_agent_that_sends_no_quote_is_refused_where_a_policy_is(tpm: SoftTpm) -> None:
    """SPIRE's agents pass over the question."""
    node = prover(tpm)

    async def answer(challenge: bytes) -> bytes:
        known = {key: value for key, value in json.loads(challenge).items() if key != "Quote"}
        return await node.answer(json.dumps(known).encode())

    assert await refusal(verifier(policy()).verify(await node.payload(), answer)) == "TPM_QUOTE_MISSING"


async def test_a_quote_of_another_tpm_is_refused(lone: SoftTpm) -> None:
    """A node that booted something else borrows the quote of one that did not."""
    lone.tool("tpm2_pcrextend", "8:sha256=" + "aa" * 32)
    node = prover(lone)

    async def answer(challenge: bytes) -> bytes:
        borrowed = await help_of(other_tpm(), challenge)
        assert borrowed.quoted is not None
        return replace(Answers.decode(await node.answer(challenge)), quoted=borrowed.quoted).encode()

    assert await refusal(verifier(policy()).verify(await node.payload(), answer)) == "TPM_QUOTE_INVALID"


async def test_who_tells_other_values_than_its_tpm_quotes_is_refused(lone: SoftTpm) -> None:
    """The quote is true and the node has booted something else: the values that the policy is held against come from
    the agent, and are worth what the quote says of them."""
    lone.tool("tpm2_pcrextend", "8:sha256=" + "aa" * 32)
    node = prover(lone)

    async def answer(challenge: bytes) -> bytes:
        told = Answers.decode(await node.answer(challenge))
        assert told.quoted is not None
        values = (UNTOUCHED,) * len(told.quoted.values)
        assert values != told.quoted.values
        return replace(told, quoted=replace(told.quoted, values=values)).encode()

    with collecting() as notes:
        assert await refusal(verifier(policy()).verify(await node.payload(), answer)) == "TPM_QUOTE_INVALID"
    assert any("not those that were quoted" in note.value for note in notes)


async def test_the_quote_of_another_time_is_refused(tpm: SoftTpm) -> None:
    """By the right keys, over another nonce: only the quote is old."""
    recorded = await recording()
    random = OtherLastNonce()

    async def judged() -> Any:
        server = verifier(policy(), random=random)
        return await server.verify(recorded.evidence.encode(), always(recorded.answers.encode()))

    with collecting() as notes:
        assert await refusal(judged()) == "TPM_QUOTE_INVALID"
    assert any("another nonce" in note.value for note in notes)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"24": ["00" * 32]},
        {"x": ["00" * 32]},
        {"16": ["00" * 32]},
        {"23": ["00" * 32]},
        {"7": []},
        {"7": ["00" * 48]},
        {"7": ["zz" * 32]},
    ],
)
def test_an_impossible_policy_is_refused_when_the_server_starts(values: dict[str, list[str]]) -> None:
    with pytest.raises(ConfigError):
        from_values({**factory().server, "pcr_policy": {"pcrs": values}}, ServerConfig)


def test_the_plugin_is_found_by_its_name() -> None:
    assert plugin.name == "tpm_devid"


# Helpers


_shown: dict[SoftTpm, Evidence] = {}


async def _evidence(machine: SoftTpm) -> Evidence:
    """What it shows at first; the same each time, for whoever is refused before any answer."""
    if machine not in _shown:
        _shown[machine] = Evidence.decode(await prover(machine).payload())
    return _shown[machine]


async def help_of(machine: SoftTpm, challenge: bytes) -> Answers:
    """All that a TPM can do about a challenge that was made for another: it signs and quotes, with its own keys."""
    node = prover(machine)
    shown, asked = Evidence.decode(await node.payload()), Questions.decode(challenge)
    ek, ak = parse_public(shown.ek_public), parse_public(shown.ak_public)
    own = make_credential(ek, ak.name, bytes(32), secrets.token_bytes)
    return Answers.decode(await node.answer(replace(asked, credential=own.credential, secret=own.secret).encode()))


class OtherLastNonce(SameNonces):
    """As in the recording, but for the nonce of the quote, which is the fourth."""

    def __call__(self, size: int) -> bytes:
        drawn = super().__call__(size)
        return bytes(size) if self.drawn == 4 else drawn
