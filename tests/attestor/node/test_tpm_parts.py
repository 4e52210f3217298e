"""The parts of the tpm_devid attestor that need no TPM: structures, messages, certificates, devices that misbehave."""

from __future__ import annotations

import base64
import json
import os
import secrets
import socket
import stat
import struct
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from attestor.node.tpm.authorities import read_authorities, verify_endorsement
from attestor.node.tpm.commands import Auth, Made, Tpm
from attestor.node.tpm.credential import kdfa, make_credential
from attestor.node.tpm.device import Device, find_device
from attestor.node.tpm.files import read_certificates, read_devid, read_password
from attestor.node.tpm.messages import Answers, Evidence, Questions
from attestor.node.tpm.prove import EK_RSA, EK_TEMPLATES, SRK_ECC, SRK_RSA, first_der
from attestor.node.tpm.public import parse_public
from attestor.node.tpm.refusals import Refusal, base_code
from attestor.node.tpm.structures import Malformed, Reader, parse_attest, parse_signature, sized
from attestor.node.tpm_devid import AgentConfig, ServerConfig, TpmDevIdProver, TpmDevIdVerifier
from ca.errors import BurgeeError, ConfigError, Denied, FailedPrecondition, InvalidArgument, Unavailable
from ca.runtime.config import from_values
from ca.runtime.notes import collecting
from tests.support.device_ca import EK_CERTIFICATE, DeviceCa
from tests.support.node_host import FakeHost

NOW = datetime.now(UTC)
PARSERS: list[Callable[[bytes], Any]] = [
    parse_public,
    parse_attest,
    parse_signature,
    first_der,
    Evidence.decode,
    Questions.decode,
    Answers.decode,
]


def rsa_public(key: rsa.RSAPublicKey, *, attributes: int = 0x300B2) -> bytes:
    """TPMT_PUBLIC of an endorsement key."""
    parameters = struct.pack(">HHHHHI", 6, 128, 0x43, 0x10, 2048, 0)
    return (
        struct.pack(">HHI", 1, 0xB, attributes) + sized(b"") + parameters + sized(key.public_numbers().n.to_bytes(256))
    )


# Structures


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: getattr(parse, "__qualname__", str(parse)))
@settings(max_examples=80, deadline=None)
@given(data=st.binary(max_size=400))
def test_junk_is_malformed_and_nothing_else(parse: Callable[[bytes], Any], data: bytes) -> None:
    try:
        parse(data)
    except Malformed:
        pass


@pytest.mark.parametrize("parse", [parse_public, parse_attest, parse_signature])
def test_what_is_too_long_is_not_read(parse: Callable[[bytes], Any]) -> None:
    with pytest.raises(Malformed, match="longer than"):
        parse(b"\x00" * 5000)


def test_nothing_may_be_left_over_or_missing() -> None:
    key = rsa.generate_private_key(65537, 2048).public_key()
    whole = rsa_public(key)
    assert parse_public(whole).key.public_numbers() == key.public_numbers()
    for wrong in (whole + b"\x00", whole[:-1], sized(whole)):
        with pytest.raises(Malformed):
            parse_public(wrong)


def test_templates_are_those_of_the_profiles() -> None:
    """TCG EK Credential Profile L-1; SPIRE's storage keys (H-1, H-2): a DevID made for its agents loads in ours."""
    ek = EK_TEMPLATES[EK_RSA]
    assert ek.hex().startswith("0001000b000300b20020837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
    assert ek.hex().endswith("000600800043001008000000000001" + "00" + "00" * 256)
    assert SRK_RSA.hex() == "0001000b000304720000" + "000600800043" + "0010" + "0800" + "00000000" + "0000"
    assert SRK_ECC.hex() == "0023000b000304720000" + "000600800043" + "0010" + "0003" + "0010" + "0000" + "0000"


# Credential activation


def test_a_credential_opens_with_the_endorsement_key_and_the_name_alone() -> None:
    """The other side of it, after TPM 2.0 Part 1 §24, written again for this test."""
    ek = rsa.generate_private_key(65537, 2048)
    name, secret = b"\x00\x0b" + secrets.token_bytes(32), secrets.token_bytes(32)
    made = make_credential(parse_public(rsa_public(ek.public_key())), name, secret, secrets.token_bytes)
    sha = hashes.SHA256()
    seed = ek.decrypt(made.secret, padding.OAEP(padding.MGF1(sha), sha, b"IDENTITY\x00"))
    reader = Reader(made.credential)
    integrity, identity = reader.sized(), reader.rest()
    assert integrity == _hmac(kdfa("sha256", seed, b"INTEGRITY", b"", b"", 256), identity + name)
    assert _cfb(kdfa("sha256", seed, b"STORAGE", name, b"", 128), identity) == sized(secret)
    other = kdfa("sha256", seed, b"STORAGE", name[::-1], b"", 128)
    assert _cfb(other, identity) != sized(secret)


def _hmac(key: bytes, data: bytes) -> bytes:
    import hmac

    return hmac.digest(key, data, "sha256")


def _cfb(key: bytes, data: bytes) -> bytes:
    """AES-CFB by hand, of single blocks."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    block, out = bytes(16), b""
    for start in range(0, len(data), 16):
        encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
        stream, part = encryptor.update(block), data[start : start + 16]
        out += bytes(a ^ b for a, b in zip(stream, part, strict=False))
        block = part
    return out


# Messages


def test_a_challenge_that_has_something_else_signed_is_refused() -> None:
    """A DevID key signs nonces for servers: too short to be a handshake's transcript, and never empty."""
    for size, accepted in ((15, False), (16, True), (32, True), (64, True), (65, False), (0, False)):
        text = json.dumps(
            {
                "DevID": base64.b64encode(bytes(size)).decode(),
                "CredActivation": {"Credential": "AA==", "Secret": "AA=="},
            }
        )
        if accepted:
            assert Questions.decode(text.encode()).devid_nonce == bytes(size)
        else:
            with pytest.raises(Malformed):
                Questions.decode(text.encode())


@pytest.mark.parametrize(
    "change",
    [
        {"DevIDCert": "AA=="},
        {"DevIDCert": []},
        {"DevIDCert": ["AA=="] * 9},
        {"DevIDCert": [1]},
        {"EKCert": None},
        {"EKPub": ""},
        {"AKPub": "A==="},
        {"AKPub": "AA=\n="},
        {"DevIDPub": "AAAA" * 2000},
        {"CertifiedDevID": ["AA=="]},
    ],
)
def test_payloads_of_the_wrong_shape(change: dict[str, Any]) -> None:
    names = ("DevIDPub", "EKCert", "EKPub", "AKPub", "CertifiedDevID", "CertificationSignature")
    good = {"DevIDCert": ["AA=="], **dict.fromkeys(names, "AA=="), "Extra": 1}
    assert Evidence.decode(json.dumps(good).encode())
    with pytest.raises(Malformed):
        Evidence.decode(json.dumps(good | change).encode())


# Certificates


@pytest.fixture(scope="module")
def ca() -> DeviceCa:
    return DeviceCa("devices")


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePublicKey:
    return ec.generate_private_key(ec.SECP256R1()).public_key()


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def test_an_endorsement_certificate_comes_from_a_configured_ca(ca: DeviceCa, key: Any) -> None:
    between = DeviceCa("between", parent=ca)
    assert verify_endorsement(der(ca.endorsement(key)), [der(ca.certificate)], NOW).public_key() == key
    indirect = der(between.endorsement(key))
    assert verify_endorsement(indirect, [der(between.certificate)], NOW)
    refused(indirect, [der(ca.certificate)], "")


@pytest.mark.parametrize("changes", [{"days": (-3, -1)}, {"days": (1, 3)}, {"ca": True}], ids=["old", "early", "ca"])
def test_endorsement_certificates_that_say_nothing_now(ca: DeviceCa, key: Any, changes: dict[str, Any]) -> None:
    refused(der(ca.endorsement(key, **changes)), [der(ca.certificate)], "it is")


def test_certificates_that_are_for_something_else(ca: DeviceCa, key: Any) -> None:
    roots = [der(ca.certificate)]
    server = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH])
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    refused(der(ca.endorsement(key, extensions=[(server, False)])), roots, "something else")
    refused(der(ca.endorsement(key, extensions=[(unknown, True)])), roots, "1.2.3.4")
    for extension in (x509.ExtendedKeyUsage([EK_CERTIFICATE]), unknown):
        assert verify_endorsement(der(ca.endorsement(key, extensions=[(extension, False)])), roots, NOW)


def refused(certificate: bytes, roots: list[bytes], why: str) -> None:
    with collecting() as notes, pytest.raises(Denied) as caught:
        verify_endorsement(certificate, roots, NOW)
    assert caught.value.reason == "TPM_EK_UNTRUSTED"
    assert any(why in note.value for note in notes)


def test_files_of_authorities(ca: DeviceCa, key: Any, tmp_path: Path) -> None:
    assert read_authorities(ca.write(tmp_path / "ca.pem")) == (der(ca.certificate),)
    (tmp_path / "leaf.pem").write_bytes(ca.devid(key).public_bytes(Encoding.PEM))
    (tmp_path / "junk.pem").write_bytes(b"junk")
    for name in ("leaf.pem", "junk.pem", "missing.pem"):
        with pytest.raises(ValueError, match=name):
            read_authorities(tmp_path / name)
    config = from_values(
        dict.fromkeys(("devid_ca_path", "endorsement_ca_path"), str(tmp_path / "junk.pem")), ServerConfig
    )
    with pytest.raises(ConfigError) as caught:
        TpmDevIdVerifier(config, FakeHost())
    assert caught.value.reason == "NODE_AUTHORITIES"


# The agent's files


def test_both_spellings_of_the_files_are_read(ca: DeviceCa, key: Any, tmp_path: Path) -> None:
    """With the length in front, as tpm2-tools write them, and without, as SPIRE's do."""
    public = rsa_public(rsa.generate_private_key(65537, 2048).public_key())
    (tmp_path / "pem").write_bytes(ca.devid(key).public_bytes(Encoding.PEM) + ca.pem)
    for spelled in (sized, bytes):
        (tmp_path / "pub").write_bytes(spelled(public))
        (tmp_path / "priv").write_bytes(spelled(b"\x00\x20" + bytes(100)))
        devid = read_devid(tmp_path / "pub", tmp_path / "priv", tmp_path / "pem")
        assert devid.key == Made(private=b"\x00\x20" + bytes(100), public=public)
        assert len(devid.chain) == 2


def test_unusable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("junk", "empty", "missing"):
        with pytest.raises(FailedPrecondition, match=name):
            read_certificates(tmp_path / name)
        with pytest.raises(FailedPrecondition, match=name):
            read_devid(tmp_path / name, tmp_path / "junk", tmp_path / "junk")
    with pytest.raises(FailedPrecondition) as caught:
        read_password(tmp_path / "missing")
    assert caught.value.reason == "NODE_CREDENTIAL"
    (tmp_path / "long").write_bytes(b"x" * 65)
    (tmp_path / "long").chmod(0o600)
    with pytest.raises(FailedPrecondition, match="64"):
        read_password(tmp_path / "long")


# The device


def test_a_machine_without_a_tpm_says_so(tmp_path: Path, ca: DeviceCa, key: Any) -> None:
    with pytest.raises(FailedPrecondition, match="no TPM") as caught:
        find_device(tmp_path)
    assert caught.value.reason == "TPM_MISSING"
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "nothing", tmp_path / "file"):
        with pytest.raises(FailedPrecondition) as caught:
            Device(path)
        assert caught.value.reason == "TPM_MISSING"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["tpm0", "tpmrm0", "null"], "tpmrm0"),
        (["tpm0"], "tpm0"),
        (["tpmrm0", "tpmrm1"], ""),
        (["tpm0x"], ""),
    ],
)
def test_the_only_tpm_is_found(tmp_path: Path, names: list[str], found: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    if found:
        assert find_device(tmp_path) == tmp_path / found
    else:
        with pytest.raises(FailedPrecondition):
            find_device(tmp_path)


async def test_no_challenge_is_answered_that_nobody_asked_for(tmp_path: Path) -> None:
    config = dict.fromkeys(("devid_cert_path", "devid_priv_path", "devid_pub_path"), str(tmp_path / "x"))
    node = TpmDevIdProver(from_values({**config, "tpm_device_path": str(tmp_path / "tpm")}, AgentConfig))
    with pytest.raises(InvalidArgument) as malformed:
        await node.answer(b"{}")
    assert malformed.value.reason == "CHALLENGE_MALFORMED"
    good = {"DevID": base64.b64encode(bytes(32)).decode(), "CredActivation": {"Credential": "AA==", "Secret": "AA=="}}
    with pytest.raises(FailedPrecondition) as caught:
        await node.answer(json.dumps(good).encode())
    assert caught.value.reason == "UNEXPECTED_CHALLENGE"


@contextmanager
def device_that_says(path: Path, *responses: bytes) -> Iterator[Path]:
    """A Unix socket that answers so, whatever is asked, and hangs up then."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener.accept()[0] as peer:
            for response in responses:
                peer.recv(4096)
                peer.sendall(response)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert stat.S_ISSOCK(path.stat().st_mode)
    try:
        yield path
    finally:
        thread.join(10)
        listener.close()


@pytest.mark.parametrize(
    "response", [b"", b"\x80\x01", struct.pack(">HII", 0x8001, 1 << 20, 0), struct.pack(">HII", 0x8001, 3, 0)]
)
def test_a_tpm_that_answers_nothing_sensible_is_unavailable(tmp_path: Path, response: bytes) -> None:
    with device_that_says(tmp_path / "t", response) as path, Device(path) as device:
        with pytest.raises(Unavailable) as caught:
            Tpm(device).flush(1)
        assert caught.value.reason == "TPM_UNAVAILABLE"


def test_a_character_device_takes_a_command_and_gives_its_response(tmp_path: Path) -> None:
    """A terminal in place of /dev/tpmrm0: what is written there comes here."""
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    os.write(ours, said(0))
    with Device(Path(os.ttyname(theirs))) as device:
        Tpm(device).flush(0x80000001)
    assert os.read(ours, 100) == struct.pack(">HIII", 0x8001, 14, 0x165, 0x80000001)
    os.close(ours)
    os.close(theirs)


class Saying:
    """In place of a device: says this to every command."""

    def __init__(self, *responses: bytes) -> None:
        self.responses = list(responses)
        self.asked = 0

    def exchange(self, _: bytes) -> bytes:
        self.asked += 1
        return self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]


def said(result: int, body: bytes = b"", tag: int = 0x8001) -> bytes:
    return struct.pack(">HII", tag, 10 + len(body), result) + body


COMMANDS: list[Callable[[Tpm], Any]] = [
    lambda tpm: tpm.create_primary(1, Auth(), b""),
    lambda tpm: tpm.create(1, b"", b""),
    lambda tpm: tpm.load(1, Made(b"", b"")),
    lambda tpm: tpm.context_load(b""),
    lambda tpm: tpm.certify(1, Auth(), 2, Auth()),
    lambda tpm: tpm.quote(1, Auth(), b"", b""),
    lambda tpm: tpm.activate(1, Auth(), 2, Auth(), b"", b""),
    lambda tpm: tpm.nv_read(1),
    lambda tpm: tpm.pcr_read(0xB, [1, 2]),
]


@pytest.mark.parametrize("command", COMMANDS)
@settings(max_examples=40, deadline=None)
@given(body=st.binary(max_size=60))
def test_whatever_a_tpm_says_the_agent_goes_on(command: Callable[[Tpm], Any], body: bytes) -> None:
    for tag in (0x8001, 0x8002):
        try:
            command(Tpm(Saying(said(0, body, tag))))  # type: ignore[arg-type]
        except (Malformed, BurgeeError):
            pass


def test_a_tpm_that_is_busy_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attestor.node.tpm.commands.time.sleep", lambda _: None)
    busy = Saying(said(0x922), said(0x908), said(0))
    Tpm(busy).flush(1)  # type: ignore[arg-type]
    assert busy.asked == 3
    stuck = Saying(said(0x922))
    with pytest.raises(Refusal):
        Tpm(stuck).flush(1)  # type: ignore[arg-type]
    assert 2 < stuck.asked < 100


@pytest.mark.parametrize(
    ("result", "code", "words"),
    [
        (0x98E, 0x8E, "wrong password"),
        (0x9A2, 0xA2, "wrong password"),
        (0x1DF, 0x9F, "not made by this TPM"),
        (0x18B, 0x8B, "0x18b"),
        (0x902, 0x902, "no room"),
        (0x921, 0x921, "locked"),
    ],
)
def test_a_tpms_no_is_put_into_words(result: int, code: int, words: str) -> None:
    assert base_code(result) == code
    assert words in Refusal("Load", result).detail
