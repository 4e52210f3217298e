"""The sshpop attestor, with certificates by ssh-keygen and signatures checked by openssl."""

from __future__ import annotations

import asyncio
import atexit
import base64
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attestor.node.ssh_certificate import parse_host_certificate, parse_key
from attestor.node.sshpop import AgentConfig, ServerConfig, SshPopProver, SshPopVerifier, plugin
from ca.errors import BurgeeError, ConfigError, Denied, FailedPrecondition, InvalidArgument, Unavailable
from ca.ports import AttestedNode
from ca.runtime.config import from_values
from ca.runtime.config_reference import markdown_table
from ca.runtime.notes import collecting
from tests.contracts.attestors import NodeSample
from tests.docs.reason_codes import ROOT
from tests.support.clock import FakeClock
from tests.support.mutation import PLACES, flipped
from tests.support.node_host import FakeHost
from tests.support.openssl_ca import run
from tests.support.pair import pair, until
from tests.support.ssh_ca import SshCa, SshHost, keygen

KINDS = {"ed25519": ("ed25519", None), "p256": ("ecdsa", 256), "p384": ("ecdsa", 384), "p521": ("ecdsa", 521)}
KINDS["rsa"] = ("rsa", 2048)
PAGE = ROOT / "docs/plugins/node-attestor-sshpop.md"


@cache
def host_ca() -> SshCa:
    directory = Path(tempfile.mkdtemp(prefix="bg-ssh-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return SshCa(directory)


@cache
def host(name: str = "ed25519", **options: Any) -> SshHost:
    kind, bits = KINDS.get(name, KINDS["ed25519"])
    return host_ca().host(name, kind=kind, bits=bits, **options)


def contract_sample() -> NodeSample:
    return NodeSample(host=FakeHost(), server={"cert_authorities": [host_ca().line]}, agent=agent_values(host()))


def agent_values(node: SshHost) -> dict[str, str]:
    return {"host_key_path": str(node.key), "host_cert_path": str(node.certificate)}


def prover(node: SshHost, **changes: Any) -> SshPopProver:
    return SshPopProver(from_values(agent_values(node) | changes, AgentConfig))


def verifier(lend: FakeHost | None = None, **config: Any) -> SshPopVerifier:
    if "cert_authorities_path" not in config:
        config.setdefault("cert_authorities", [host_ca().line])
    return SshPopVerifier(from_values(config, ServerConfig), lend or FakeHost())


async def attest(node: SshHost, verify: SshPopVerifier | None = None) -> AttestedNode:
    half = prover(node)
    return await (verify or verifier()).verify(await half.payload(), half.answer)


def payload(blob: bytes) -> bytes:
    return json.dumps({"Certificate": b64(blob)}).encode()


def answer_of(node: SshHost) -> Callable[[bytes], Any]:
    async def answer(challenge: bytes) -> bytes:
        half = prover(node)
        await half.payload()
        return await half.answer(challenge)

    return answer


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


@pytest.mark.parametrize("name", list(KINDS))
async def test_a_host_is_named_by_its_certificates_fingerprint(name: str) -> None:
    node = await attest(host(name))
    fingerprint = base64.urlsafe_b64encode(hashlib.sha256(host(name).blob).digest()).rstrip(b"=").decode()
    assert (node.path, node.selectors) == (f"/spire/agent/sshpop/{fingerprint}", frozenset())
    assert node.reattestable


@pytest.mark.parametrize(("kind", "bits"), [("rsa", 2048), ("ecdsa", 384)])
async def test_authorities_of_other_kinds(kind: str, bits: int, tmp_path: Path) -> None:
    other = SshCa(tmp_path, kind=kind, bits=bits)
    node = other.host("node")
    assert (await attest(node, verifier(cert_authorities=[host_ca().line, other.line]))).reattestable
    with pytest.raises(Denied) as caught:
        await attest(node)
    assert caught.value.reason == "NODE_CERTIFICATE_UNTRUSTED"


async def test_a_template_names_the_host() -> None:
    text = "/{{ .PluginName }}/{{ .Hostname }}/{{ .Serial }}-{{ .KeyId | nospace }}"
    node = await attest(host(), verifier(agent_path_template=text))
    assert node.path == "/spire/agent/sshpop/web-7.example.org/7-idofed25519"
    text = "/{{ .PluginName }}/{{ .Hostname }}"
    assert (
        await attest(host(), verifier(agent_path_template=text, canonical_domain="example.org"))
    ).path == "/spire/agent/sshpop/web-7"


@pytest.mark.parametrize("domain", ["example.com", "ample.org", "web-7.example.org", "org.example"])
async def test_hosts_of_another_domain_are_refused(domain: str) -> None:
    with pytest.raises(Denied) as caught:
        await attest(host(), verifier(canonical_domain=domain))
    assert caught.value.reason == "NODE_CERTIFICATE_USAGE"


# The wire, with others on the other side


@pytest.mark.parametrize("name", list(KINDS))
async def test_openssl_believes_what_our_agent_signs(name: str, tmp_path: Path) -> None:
    node, nonce = prover(host(name)), b"c" * 32
    assert json.loads(await node.payload()) == {"Certificate": b64(host(name).blob)}
    answer = json.loads(await node.answer(json.dumps({"Nonce": b64(nonce)}).encode()))
    assert set(answer) == {"Nonce", "Signature"}
    assert set(answer["Signature"]) == {"Format", "Blob", "Rest"}
    signed = hashlib.sha256(nonce + base64.b64decode(answer["Nonce"])).digest()
    blob, form = base64.b64decode(answer["Signature"]["Blob"]), answer["Signature"]["Format"]
    if name.startswith("p"):
        assert form == f"ecdsa-sha2-nistp{name[1:]}"
        (tmp_path / "asn1").write_text(
            f"asn1=SEQUENCE:s\n[s]\nr=INTEGER:0x{mpints(blob)[0]}\ns=INTEGER:0x{mpints(blob)[1]}\n"
        )
        run("asn1parse", "-genconf", str(tmp_path / "asn1"), "-noout", "-out", str(tmp_path / "signature"))
    else:
        assert form == {"rsa": "rsa-sha2-512", "ed25519": "ssh-ed25519"}[name]
        (tmp_path / "signature").write_bytes(blob)
    (tmp_path / "data").write_bytes(signed)
    (tmp_path / "public").write_text(
        keygen("-e", "-m", "PKCS8", "-f", str(host(name).key)) if name != "ed25519" else spki()
    )
    digest = {"p256": "sha256", "p384": "sha384", "p521": "sha512", "rsa": "sha512"}.get(name)
    options = ["-digest", digest] if digest else []
    proof = ["-pubin", "-inkey", str(tmp_path / "public"), "-sigfile", str(tmp_path / "signature"), *options]
    run("pkeyutl", "-verify", "-rawin", "-in", str(tmp_path / "data"), *proof)


def mpints(blob: bytes) -> list[str]:
    found = []
    while blob:
        length = int.from_bytes(blob[:4], "big")
        found.append(blob[4 : 4 + length].hex())
        blob = blob[4 + length :]
    return found


def spki() -> str:
    """ssh-keygen cannot export Ed25519 in PKCS#8."""
    key = serialization.load_ssh_public_key(host().key.with_suffix(".pub").read_bytes())
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form).decode()


@pytest.mark.parametrize(
    ("form", "config", "accepted"),
    [
        ("rsa-sha2-256", {}, True),
        ("rsa-sha2-512", {}, True),
        ("ssh-rsa", {}, False),
        ("ssh-rsa", {"allow_rsa_sha1": True}, True),
        ("ssh-ed25519", {"allow_rsa_sha1": True}, False),
        ("", {}, False),
    ],
)
async def test_rsa_signs_by_sha2_and_by_sha1_only_where_that_is_allowed(
    form: str, config: dict[str, Any], accepted: bool
) -> None:
    key: Any = serialization.load_ssh_private_key(host("rsa").key.read_bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    digest = {"rsa-sha2-256": hashes.SHA256(), "rsa-sha2-512": hashes.SHA512()}.get(form, hashes.SHA1())

    async def answer(challenge: bytes) -> bytes:
        signed = hashlib.sha256(base64.b64decode(json.loads(challenge)["Nonce"]) + b"n" * 32).digest()
        blob = key.sign(signed, padding.PKCS1v15(), digest)
        signature = {"Format": form, "Blob": b64(blob), "Rest": None}
        return json.dumps({"Nonce": b64(b"n" * 32), "Signature": signature}).encode()

    check = verifier(**config)
    if accepted:
        assert (await check.verify(payload(host("rsa").blob), answer)).reattestable
        return
    with pytest.raises(Denied) as caught:
        await check.verify(payload(host("rsa").blob), answer)
    assert caught.value.reason == "POSSESSION_UNPROVEN"


# What is refused


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"user": True}, "NODE_CERTIFICATE_USAGE"),
        ({"user": True, "options": ("force-command=x",)}, "NODE_CERTIFICATE_USAGE"),
        ({"options": ("critical:source-address=10.0.0.0/8",)}, "NODE_CERTIFICATE_USAGE"),
        ({"principals": None}, "NODE_CERTIFICATE_USAGE"),
        ({"validity": "-2h:-1h"}, "NODE_CERTIFICATE_EXPIRED"),
        ({"validity": "+1h:+2h"}, "NODE_CERTIFICATE_NOT_YET_VALID"),
    ],
)
async def test_certificates_that_prove_no_host(options: dict[str, Any], reason: str) -> None:
    node = host_ca().host("unfit", **options)
    with pytest.raises(Denied) as caught:
        await attest(node)
    assert caught.value.reason == reason


async def test_a_short_rsa_key_is_refused(tmp_path: Path) -> None:
    node = host_ca().host("weak", kind="rsa", bits=1024)
    with pytest.raises(Denied) as caught:
        await verifier().verify(payload(node.blob), answer_of(host()))
    assert caught.value.reason == "NODE_CERTIFICATE_KEY"
    weak = SshCa(tmp_path, kind="rsa", bits=1024)
    with pytest.raises(ConfigError):
        verifier(cert_authorities=[weak.line])


async def test_its_validity_ends_when_it_says_and_may_have_no_end() -> None:
    node = host_ca().host("dated", validity="20300101000000Z:20300102000000Z")
    ends = datetime(2030, 1, 2, tzinfo=UTC)
    for moment, accepted in (
        (ends - timedelta(days=1), True),
        (ends - timedelta(days=1, seconds=1), False),
        (ends - timedelta(seconds=1), True),
        (ends, False),
    ):
        check = verifier(FakeHost(clock=FakeClock(moment)))
        if accepted:
            await attest(node, check)
        else:
            with pytest.raises(Denied, match=r"expired|not valid yet"):
                await attest(node, check)
    always = host_ca().host("always", validity="always:forever")
    await attest(always, verifier(FakeHost(clock=FakeClock(datetime(2900, 1, 1, tzinfo=UTC)))))


async def test_a_plain_key_is_no_certificate_and_an_authority_does_not_certify_itself() -> None:
    key = base64.b64decode(host().key.with_suffix(".pub").read_bytes().split()[1])
    for blob in (key, b"", b"\0" * 4, string(b"ssh-dss-cert-v01@openssh.com"), host().blob + b"\0", host().blob[:-1]):
        with pytest.raises(InvalidArgument) as caught:
            await verifier().verify(payload(blob), answer_of(host()))
        assert caught.value.reason in ("CERTIFICATE_MALFORMED", "ATTESTATION_PAYLOAD")


async def test_administrators_learn_who_signed_it(tmp_path: Path) -> None:
    stranger = SshCa(tmp_path).host("node")
    with collecting() as notes, pytest.raises(Denied):
        await attest(stranger)
    shown = keygen("-l", "-f", str(tmp_path / "ca")).split()[1]
    assert shown in dict(notes)["authority"]


@pytest.mark.parametrize(
    "members",
    [
        {},
        [],
        {"Nonce": b64(b"n" * 32)},
        {"Nonce": b64(b"n" * 33), "Signature": {"Format": "ssh-ed25519", "Blob": ""}},
        {"Nonce": b64(b"n" * 32), "Signature": {"Format": 5, "Blob": ""}},
        {"Nonce": b64(b"n" * 32), "Signature": {"Format": "ssh-ed25519", "Blob": "", "Rest": "AA=="}},
        {"Nonce": b64(b"n" * 32), "Signature": "x"},
    ],
)
async def test_malformed_answers(members: Any) -> None:
    async def answer(_: bytes) -> bytes:
        return json.dumps(members).encode()

    with pytest.raises(InvalidArgument) as caught:
        await verifier().verify(payload(host().blob), answer)
    assert caught.value.reason == "ATTESTATION_ANSWER"


@pytest.mark.parametrize("blob", [b"", b"\0" * 8, string(b"\xff") * 2, string(b"\0\1") * 2, string(b"\1") * 3])
async def test_signatures_that_are_none(blob: bytes) -> None:
    async def answer(_: bytes) -> bytes:
        signature = {"Format": "ecdsa-sha2-nistp256", "Blob": b64(blob)}
        return json.dumps({"Nonce": b64(b"n" * 32), "Signature": signature}).encode()

    with pytest.raises(Denied) as caught:
        await verifier().verify(payload(host("p256").blob), answer)
    assert caught.value.reason == "POSSESSION_UNPROVEN"


async def test_a_certificate_without_its_key_proves_nothing_nor_does_an_answer_that_was_overheard() -> None:
    heard = []

    async def overheard(challenge: bytes) -> bytes:
        heard.append(await answer_of(host())(challenge))
        return heard[0]

    await verifier().verify(payload(host().blob), overheard)
    for answer in (overheard, answer_of(host("other"))):
        with pytest.raises(Denied) as caught:
            await verifier().verify(payload(host().blob), answer)
        assert caught.value.reason == "POSSESSION_UNPROVEN"


async def test_who_holds_a_certificate_cannot_spell_its_signature_in_other_ways(tmp_path: Path) -> None:
    """The fingerprint is of the whole certificate: another spelling would be another agent, which nobody banned."""
    authority = SshCa(tmp_path, kind="ecdsa", bits=256)
    node, check = authority.host("node"), verifier(cert_authorities=[authority.line])
    signature = string(b"ecdsa-sha2-nistp256")
    head, _, tail = node.blob.rpartition(signature)
    numbers = [bytes.fromhex(one) for one in mpints(tail[4:])]
    assert node.blob.endswith(string(string(numbers[0]) + string(numbers[1])))
    for other in (string(b"\0" + numbers[0]) + string(numbers[1]), string(numbers[0]) + string(b"\0\0" + numbers[1])):
        spelled = head[:-4] + string(signature + string(other))
        with pytest.raises((Denied, InvalidArgument)):
            await check.verify(payload(spelled), answer_of(node))
    same = head[:-4] + string(signature + string(string(numbers[0]) + string(numbers[1])))
    assert (await check.verify(payload(same), answer_of(node))).path == (await attest(node, check)).path


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), bit=PLACES)
def test_flipped_bits_are_refused_or_change_nothing(data: st.DataObject, bit: int) -> None:
    node = host(data.draw(st.sampled_from(["ed25519", "p256", "rsa"])))
    place = data.draw(st.sampled_from(["payload", "certificate", "answer"]))

    async def answer(challenge: bytes) -> bytes:
        good = await answer_of(node)(challenge)
        return flipped(good, bit) if place == "answer" else good

    sent = payload(flipped(node.blob, bit) if place == "certificate" else node.blob)
    try:
        found = asyncio.run(verifier().verify(flipped(sent, bit) if place == "payload" else sent, answer))
    except (Denied, InvalidArgument):
        return
    assert found == genuine(node)
    assert place != "certificate"


@cache
def genuine(node: SshHost) -> AttestedNode:
    return asyncio.run(attest(node))


@given(blob=st.binary(max_size=200))
def test_any_bytes_are_a_certificate_or_malformed(blob: bytes) -> None:
    for tried in (blob, string(b"ssh-ed25519-cert-v01@openssh.com") + blob, host().blob[:60] + blob):
        with pytest.raises((InvalidArgument, Denied)):
            parse_host_certificate(tried)


# Files and configuration


async def test_authorities_come_from_a_file_too_which_is_read_each_time(tmp_path: Path) -> None:
    path = tmp_path / "authorities"
    for wrong in (None, "", "# none\n", "ssh-ed25519 AAAA\n", "nonsense\n"):
        if wrong is not None:
            path.write_text(wrong)
        with pytest.raises(ConfigError) as caught:
            verifier(cert_authorities_path=str(path))
        assert str(path) in caught.value.detail or "no authority" in caught.value.detail
    path.write_text(f"# hosts\n\ncert-authority,no-pty {SshCa(tmp_path, 'x').line} comment\n")
    check = verifier(cert_authorities_path=str(path))
    with pytest.raises(Denied):
        await attest(host(), check)
    path.write_text(f"{host_ca().line}\n")
    await attest(host(), check)
    path.unlink()
    with pytest.raises(Unavailable) as gone:
        await attest(host(), check)
    assert (gone.value.reason, str(path) in gone.value.detail) == ("NODE_AUTHORITIES", False)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"cert_authorities": []},
        {"cert_authorities": ["ssh-ed25519 AAAA"]},
        {"cert_authorities_path": "/x", "canonical_domain": "a b"},
        {"cert_authorities_path": "/x", "agent_path_template": "/static/{{ .Hostname }}"},
        {"cert_authorities_path": "/x", "agent_path_template": "/sshpop/{{ index .ValidPrincipals 0 }}"},
    ],
)
def test_configurations_that_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        from_values(values, ServerConfig)


def test_lines_of_authorized_keys() -> None:
    line = host_ca().line
    wire = base64.b64decode(line.split()[1])
    assert parse_key(line) == parse_key(f'  cert-authority,from="a b" {line} me@here  ') == wire
    assert parse_key("") is parse_key("  # x") is None


async def test_a_renewed_certificate_is_used_and_old_formats_are_read(tmp_path: Path) -> None:
    files = {"host_key_path": tmp_path / "k", "host_cert_path": tmp_path / "c"}
    half = prover(host(), **{name: str(path) for name, path in files.items()})
    old = host_ca().host("old", kind="rsa", bits=2048)
    keygen("-p", "-N", "", "-m", "PEM", "-f", str(old.key))
    assert "BEGIN RSA PRIVATE KEY" in old.key.read_text()
    for node in (host(), old):
        files["host_key_path"].write_bytes(node.key.read_bytes())
        files["host_cert_path"].write_bytes(node.certificate.read_bytes())
        assert (await verifier().verify(await half.payload(), half.answer)).path == (await attest(node)).path


async def test_what_cannot_be_read_says_so(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.write_bytes(host().key.read_bytes())
    locked.chmod(0o600)
    keygen("-p", "-N", "secret", "-f", str(locked))
    for changes in (
        {"host_key_path": str(tmp_path / "none")},
        {"host_key_path": str(host("p256").key)},
        {"host_key_path": str(locked)},
        {"host_cert_path": str(host().key.with_suffix(".pub"))},
        {"host_cert_path": str(tmp_path)},
    ):
        with pytest.raises(FailedPrecondition) as caught:
            await prover(host(), **changes).payload()
        assert caught.value.reason == "NODE_CREDENTIAL"
        assert next(iter(changes.values())) in caught.value.detail
    with pytest.raises(FailedPrecondition):
        await prover(host()).answer(b"{}")


async def test_a_server_cannot_have_an_agent_sign_what_it_likes() -> None:
    half = prover(host())
    await half.payload()
    for asked in ({}, {"Nonce": ""}, {"Nonce": b64(b"x" * 64)}):
        with pytest.raises(BurgeeError) as caught:
            await half.answer(json.dumps(asked).encode())
        assert caught.value.reason == "CHALLENGE_MALFORMED"


def test_the_page_has_the_tables_of_the_models() -> None:
    page = PAGE.read_text()
    for model in (ServerConfig, AgentConfig):
        assert markdown_table(model) in page
    assert plugin.name == "sshpop"


def test_a_real_agent_attests_to_a_real_server() -> None:
    server = {"node_attestors": {"sshpop": {"cert_authorities": [host_ca().line]}, "join_token": {}}}
    with pair(server=server, agent={"node_attestor": {"sshpop": agent_values(host("p256"))}}) as both:
        assert until("the agent has its ID", both.agent_path) == asyncio.run(attest(host("p256"))).path
