"""The x509pop attestor: its wire against openssl, its chains against `openssl verify`, names, selectors, refusals."""

from __future__ import annotations

import asyncio
import atexit
import base64
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attestor.node import x509pop
from attestor.node.x509pop import AgentConfig, ServerConfig, X509PopProver, X509PopVerifier, plugin
from ca.errors import BurgeeError, ConfigError, Denied, FailedPrecondition, InvalidArgument, Unavailable
from ca.identity.bundle import TrustBundle, X509Authority
from ca.identity.spiffe_id import TrustDomain
from ca.ports import AttestedNode
from ca.runtime.config import from_values
from ca.runtime.config_reference import markdown_table
from ca.runtime.notes import collecting
from tests.contracts.attestors import NodeSample
from tests.docs.reason_codes import ROOT
from tests.support.clock import FakeClock
from tests.support.mutation import PLACES, flipped
from tests.support.node_host import FakeHost
from tests.support.openssl_ca import CA, LEAF, Made, OpensslCa, run
from tests.support.pair import pair, until

RSA = ("-newkey", "rsa:2048")
P384 = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384")
P521 = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-521")
ED25519 = ("-newkey", "ed25519")
BELOW = "authorityKeyIdentifier=keyid"
NOW = datetime.now(UTC) + timedelta(minutes=1)
CA_BELOW = (*CA, BELOW)
PAGE = ROOT / "docs/plugins/node-attestor-x509pop.md"


class Pki:
    """A root, an issuing CA below it, and what it issued; made once."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="bg-pki-"))
        atexit.register(shutil.rmtree, self.directory, ignore_errors=True)
        self.ca = OpensslCa(self.directory)
        self.root = self.ca.make("root", extensions=CA)
        self.issuing = self.ca.make("issuing", self.root, extensions=CA_BELOW)
        sans = "subjectAltName=DNS:web.example.org,URI:x509pop://example.org/zone/eu,URI:x509pop://other.org/zone/us"
        self.web = self.ca.make("web", self.issuing, extensions=(*LEAF, sans), subject="/CN=Web-7", serial="0x0a1b2c3d")
        self.rsa = self.ca.make("rsa", self.issuing, key=RSA)

    def leaf(self, name: str, *extensions: str, **options: Any) -> Made:
        return self.ca.make(name, self.issuing, extensions=(*LEAF, *extensions), **options)


@cache
def pki() -> Pki:
    return Pki()


def contract_sample() -> NodeSample:
    return NodeSample(
        host=FakeHost(),
        server={"ca_bundle_path": str(pki().root.certificate)},
        agent=agent_values(pki().web),
    )


def agent_values(leaf: Made) -> dict[str, str]:
    return {
        "certificate_path": str(leaf.certificate),
        "private_key_path": str(leaf.key),
        "intermediates_path": str(pki().issuing.certificate),
    }


def prover(leaf: Made, **changes: Any) -> X509PopProver:
    return X509PopProver(from_values(agent_values(leaf) | changes, AgentConfig))


def verifier(host: FakeHost | None = None, *roots: Made, **config: Any) -> X509PopVerifier:
    if config.get("mode") != "spiffe":
        config.setdefault("ca_bundle_paths", [str(one.certificate) for one in roots or (pki().root,)])
    return X509PopVerifier(from_values(config, ServerConfig), host or FakeHost())


def at(moment: datetime) -> FakeHost:
    return FakeHost(clock=FakeClock(moment))


async def attest(leaf: Made, verify: X509PopVerifier | None = None) -> AttestedNode:
    node = prover(leaf)
    return await (verify or verifier()).verify(await node.payload(), node.answer)


def payload(*chain: Made) -> bytes:
    return json.dumps({"certificates": [b64(one.der) for one in chain]}).encode()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def shown(node: AttestedNode) -> set[str]:
    return {str(selector) for selector in node.selectors}


def sha1(der: bytes) -> str:
    return hashlib.sha1(der).hexdigest()


# What is proven, and what it is called


@pytest.mark.parametrize("name", ["web", "rsa"])
async def test_a_node_is_named_by_its_certificate_and_selected_by_what_it_says(name: str) -> None:
    leaf: Made = getattr(pki(), name)
    node = await attest(leaf)
    assert node.path == f"/spire/agent/x509pop/{sha1(leaf.der)}"
    assert node.reattestable
    authorities = {f"x509pop:ca:fingerprint:{sha1(one.der)}" for one in (pki().root, pki().issuing)}
    said = {f"x509pop:serialnumber:{leaf.parsed.serial_number.to_bytes(20, 'big').lstrip(bytes(1)).hex()}"}
    said |= {"x509pop:subject:cn:Web-7", "x509pop:san:zone:eu"} if name == "web" else {"x509pop:subject:cn:rsa"}
    assert shown(node) == authorities | said


async def test_a_template_names_the_node() -> None:
    text = "/{{ .PluginName }}/{{ .URISanSelectors.zone }}/{{ .Subject.CommonName | lower }}.{{ .SerialNumberHex }}"
    node = await attest(pki().web, verifier(agent_path_template=text))
    assert node.path == "/spire/agent/x509pop/eu/web-7.0a1b2c3d"


async def test_evidence_that_makes_no_path_is_denied() -> None:
    twice = pki().leaf("twice", subject="/CN=a/CN=b")
    for leaf in (twice, pki().leaf("slash", subject="/CN=a\\/b")):
        with pytest.raises(Denied) as caught:
            await attest(leaf, verifier(agent_path_template="/{{ .PluginName }}/{{ .Subject.CommonName }}"))
        assert caught.value.reason == "AGENT_PATH"
    assert not any(one.startswith("x509pop:subject") for one in shown(await attest(twice)))


@pytest.mark.parametrize(
    "uri",
    [
        "x509pop://other.org/zone/eu",
        "x509pop://example.org/zone",
        "x509pop://example.org/zone/",
        "x509pop://example.org//eu",
        "x509pop://example.org/zone/eu?x",
        "x509pop://example.org/zone/eu#x",
        "x509pop://a@example.org/zone/eu",
        "x509pop://example.org:80/zone/eu",
        "x509pop:/zone/eu",
        "https://example.org/zone/eu",
        " x509pop://example.org/zone/eu",
        "x509pop://example.org/zo\tne/eu",
        "x509pop://[/zone/eu",
    ],
)
def test_uris_that_are_no_selectors(uri: str) -> None:
    leaf = SimpleNamespace(uris=(uri, "x509pop://example.org/rack/a/b:c"))
    assert x509pop._san_selectors(leaf, "example.org") == [("rack", "a/b:c")]  # type: ignore[arg-type]


async def test_every_root_that_vouches_is_told_and_each_authority_once() -> None:
    """Cross-signed: the same issuing CA hangs on two roots, both configured."""
    ca, issuing = pki().ca, pki().issuing
    second = ca.make("second", extensions=CA)
    cross = ca.make("cross", second, extensions=CA_BELOW, subject="/CN=issuing", of=issuing)
    node = await verifier(None, pki().root, second).verify(payload(pki().web, issuing, cross), prover_answer(pki().web))
    found = {one.rpartition(":")[2] for one in shown(node) if ":ca:fingerprint:" in one}
    assert found == {sha1(one.der) for one in (issuing, cross, pki().root, second)}


def prover_answer(leaf: Made) -> Callable[[bytes], Any]:
    """Answers with a leaf's key, whatever was sent before."""

    async def answer(challenge: bytes) -> bytes:
        node = prover(leaf)
        await node.payload()
        return await node.answer(challenge)

    return answer


# The wire, with openssl on the other side


async def test_openssl_signs_as_a_spire_agent_and_is_believed() -> None:
    for leaf, kind in ((pki().web, "ecdsa_signature"), (pki().rsa, "rsa_signature")):

        async def sign(challenge: bytes, leaf: Made = leaf, kind: str = kind) -> bytes:
            asked = json.loads(challenge)
            assert set(asked) == {"rsa_signature", "ecdsa_signature"}
            assert [name for name, value in asked.items() if value is not None] == [kind]
            theirs, ours = base64.b64decode(asked[kind]["nonce"]), b"n" * 32
            assert len(theirs) == 32
            return json.dumps({kind: {"nonce": b64(ours), **openssl_signature(leaf, theirs + ours, kind)}}).encode()

        assert (await verifier().verify(payload(leaf, pki().issuing), sign)).path.endswith(sha1(leaf.der))


def openssl_signature(leaf: Made, nonces: bytes, kind: str) -> dict[str, str]:
    options = ["-pkeyopt", "digest:sha256"]
    if kind == "rsa_signature":  # Go's crypto/rsa takes the longest salt by default
        options += ["-pkeyopt", "rsa_padding_mode:pss", "-pkeyopt", "rsa_pss_saltlen:max"]
    signature = run("pkeyutl", "-sign", "-inkey", str(leaf.key), *options, stdin=hashlib.sha256(nonces).digest())
    if kind == "rsa_signature":
        return {"signature": b64(signature)}
    r, s = decode_dss_signature(signature)
    return {"r": b64(r.to_bytes(32, "big").lstrip(b"\0")), "s": b64(s.to_bytes(32, "big").lstrip(b"\0"))}


@pytest.mark.parametrize("kind", ["ecdsa_signature", "rsa_signature"])
async def test_openssl_believes_what_our_agent_signs(kind: str, tmp_path: Path) -> None:
    leaf = pki().web if kind == "ecdsa_signature" else pki().rsa
    node, nonce = prover(leaf), b"c" * 32
    sent = json.loads(await node.payload())
    assert sent == {"certificates": [b64(leaf.der), b64(pki().issuing.der)]}
    other = {"ecdsa_signature": "rsa_signature"}.get(kind, "ecdsa_signature")
    answer = json.loads(await node.answer(json.dumps({kind: {"nonce": b64(nonce)}, other: None}).encode()))
    assert list(answer) == [kind]
    ours = base64.b64decode(answer[kind]["nonce"])
    assert len(ours) == 32
    options = ["-pkeyopt", "digest:sha256"]
    if kind == "rsa_signature":
        options += ["-pkeyopt", "rsa_padding_mode:pss", "-pkeyopt", "rsa_pss_saltlen:auto"]
        signature = base64.b64decode(answer[kind]["signature"])
    else:
        r, s = (int.from_bytes(base64.b64decode(answer[kind][name]), "big") for name in ("r", "s"))
        signature = encode_dss_signature(r, s)
    (tmp_path / "signature").write_bytes(signature)
    proof = ["-sigfile", str(tmp_path / "signature"), "-certin", "-inkey", str(leaf.certificate), *options]
    run("pkeyutl", "-verify", *proof, stdin=hashlib.sha256(nonce + ours).digest())


async def test_other_keys_that_are_accepted() -> None:
    for name, key in (("p384", P384), ("p521", P521)):
        leaf = pki().leaf(name, key=key)
        assert (await attest(leaf)).path.endswith(sha1(leaf.der))


# Chains, as openssl sees them


def chains() -> dict[str, tuple[Made, Sequence[Made], Sequence[Made]]]:
    """Name → leaf, what is sent with it, and whom the server trusts."""
    ca, root, issuing, web = pki().ca, pki().root, pki().issuing, pki().web
    make = ca.make
    impostor = make("impostor", extensions=CA, subject="/CN=root")
    no_ca = make("noca", root, extensions=LEAF)
    no_sign = make("nosign", root, extensions=("basicConstraints=critical,CA:TRUE", "keyUsage=critical,cRLSign", BELOW))
    short = make("short", root, extensions=("basicConstraints=critical,CA:TRUE,pathlen:0", *CA[1:], BELOW))
    under_short = make("undershort", short, extensions=CA_BELOW)
    named = make("named", root, extensions=(*CA_BELOW, "nameConstraints=critical,permitted;DNS:.example.org"))
    critical = make("critical", root, extensions=(*CA_BELOW, "1.2.3.4=critical,ASN1:NULL"))
    aged = make("aged", root, extensions=CA_BELOW, days=3)
    inside = make("inside", named, extensions=(*LEAF, "subjectAltName=DNS:a.example.org"))
    outside = make("outside", named, extensions=(*LEAF, "subjectAltName=DNS:a.example.com"))
    return {
        "good": (web, [issuing], [root]),
        "in any order": (web, [aged, issuing], [impostor, root]),
        "an intermediate is an anchor": (web, [], [issuing]),
        "pathlen 0, straight below": (make("b1", short), [short], [root]),
        "name inside": (inside, [named], [root]),
        "no intermediate": (web, [], [root]),
        "another root of the same name": (web, [issuing], [impostor]),
        "issuer is no CA": (make("b2", no_ca), [no_ca], [root]),
        "issuer may not sign": (make("b3", no_sign), [no_sign], [root]),
        "path too long": (make("b4", under_short), [under_short, short], [root]),
        "name outside": (outside, [named], [root]),
        "unknown critical extension of an issuer": (make("b5", critical), [critical], [root]),
        "unknown critical extension": (pki().leaf("b6", "1.2.3.4=critical,ASN1:NULL"), [issuing], [root]),
        "issuer expired": (make("b7", aged, days=20), [aged], [root]),
        "root expired": (make("b8", oldroot := make("oldroot", extensions=CA, days=3), days=20), [], [oldroot]),
        "expired": (pki().leaf("b9", days=3), [issuing], [root]),
        "nobody trusted": (web, [issuing], [make("stranger", extensions=CA)]),
    }


async def test_our_verdict_on_each_chain_is_openssls() -> None:
    """Five days from now, when what lives three days is over."""
    moment = NOW + timedelta(days=5)
    verdicts = {}
    for name, (leaf, between, roots) in chains().items():
        try:
            await verifier(at(moment), *roots).verify(payload(leaf, *between), prover_answer(leaf))
            ours = "accepted"
        except (Denied, InvalidArgument) as error:
            ours = error.reason
        verdicts[name] = ours
        assert pki().ca.accepts(leaf, between, roots, at=moment.timestamp()) == (ours == "accepted"), (name, ours)
    assert [name for name, verdict in verdicts.items() if verdict == "accepted"] == list(verdicts)[:5]
    assert verdicts["expired"] == "NODE_CERTIFICATE_EXPIRED"
    assert verdicts["unknown critical extension"] == "NODE_CERTIFICATE_USAGE"
    assert verdicts["name outside"] == "NODE_CERTIFICATE_UNTRUSTED"


async def test_administrators_learn_what_was_wrong_with_the_chain() -> None:
    leaf, between, roots = pki().web, [pki().issuing], [pki().root]
    with collecting() as notes, pytest.raises(Denied) as caught:
        await verifier(at(NOW + timedelta(days=29)), *roots).verify(payload(leaf), prover_answer(leaf))
    assert caught.value.reason == "NODE_CERTIFICATE_UNTRUSTED"
    assert "none of 1 authorities" in dict(notes)["certificate's chain"]
    del between
    with pytest.raises(Denied) as caught:
        await attest(leaf, verifier(at(NOW - timedelta(days=2))))
    assert caught.value.reason == "NODE_CERTIFICATE_NOT_YET_VALID"


# What is refused


@pytest.mark.parametrize(
    ("extensions", "key", "reason"),
    [
        ((LEAF[0], BELOW), ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"), "NODE_CERTIFICATE_USAGE"),
        ((LEAF[0], "keyUsage=keyEncipherment", BELOW), RSA, "NODE_CERTIFICATE_USAGE"),
        (LEAF, ED25519, "NODE_CERTIFICATE_KEY"),
        (LEAF, ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp256k1"), "NODE_CERTIFICATE_KEY"),
        (LEAF, ("-newkey", "rsa:1024"), "NODE_CERTIFICATE_KEY"),
        (LEAF, ("-newkey", "rsa:3072"), "NODE_CERTIFICATE_KEY"),
    ],
)
async def test_certificates_that_a_node_cannot_prove_itself_with(
    extensions: Sequence[str], key: Sequence[str], reason: str
) -> None:
    leaf = pki().ca.make("unfit", pki().issuing, extensions=extensions, key=key)
    with pytest.raises(Denied) as caught:
        await verifier(max_rsa_key_size=2048).verify(payload(leaf, pki().issuing), prover_answer(pki().web))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "members",
    [
        {"certificates": []},
        {"certificates": None},
        {"certificates": "AA=="},
        {"certificates": [5]},
        {"certificates": ["AA"]},
        {"certificates": ["AA==\n"]},
        {"certificates": ["QR=="]},
        {"certificates": ["AAAA"]},
        {"certificates": [b64(b"\x30\x03\x02\x01\x01")]},
        {"Certificates": ["AAAA"]},
        [],
    ],
)
async def test_malformed_payloads(members: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await verifier().verify(json.dumps(members).encode(), prover_answer(pki().web))
    assert caught.value.reason in ("ATTESTATION_PAYLOAD", "CERTIFICATE_MALFORMED")


async def test_more_intermediates_than_allowed() -> None:
    for count, allowed in ((5, 4), (2, 1), (1, 0)):
        with pytest.raises(InvalidArgument, match="intermediate"):
            await verifier(max_intermediates=allowed).verify(
                payload(pki().web, *[pki().issuing] * count), prover_answer(pki().web)
            )


@pytest.mark.parametrize(
    "members",
    [
        {},
        [],
        {"rsa_signature": {"nonce": b64(b"n" * 32), "signature": b64(b"s" * 256)}},
        {"ecdsa_signature": {"nonce": b64(b"n" * 31), "r": "AQ==", "s": "AQ=="}},
        {"ecdsa_signature": {"nonce": b64(b"n" * 32), "r": "AQ=="}},
        {"ecdsa_signature": {"nonce": b64(b"n" * 32), "r": b64(b"\1" * 33), "s": "AQ=="}},
        {"ecdsa_signature": [b64(b"n" * 32)]},
    ],
)
async def test_malformed_answers(members: Any) -> None:
    async def answer(_: bytes) -> bytes:
        return json.dumps(members).encode()

    with pytest.raises(InvalidArgument) as caught:
        await verifier().verify(payload(pki().web, pki().issuing), answer)
    assert caught.value.reason == "ATTESTATION_ANSWER"


@pytest.mark.parametrize("integers", [("", ""), ("AQ==", ""), ("AQ==", "AQ=="), (b64(b"\xff" * 32), b64(b"\xff" * 32))])
async def test_signatures_that_are_none(integers: tuple[str, str]) -> None:
    async def answer(_: bytes) -> bytes:
        signed = {"nonce": b64(b"n" * 32), "r": integers[0], "s": integers[1]}
        return json.dumps({"ecdsa_signature": signed}).encode()

    with pytest.raises(Denied) as caught:
        await verifier().verify(payload(pki().web, pki().issuing), answer)
    assert caught.value.reason == "POSSESSION_UNPROVEN"


async def test_a_certificate_without_its_key_proves_nothing() -> None:
    other = pki().leaf("other")
    with pytest.raises(Denied) as caught:
        await verifier().verify(payload(pki().web, pki().issuing), prover_answer(other))
    assert caught.value.reason == "POSSESSION_UNPROVEN"


@pytest.mark.parametrize("name", ["web", "rsa"])
async def test_an_answer_that_was_overheard_is_of_no_use(name: str) -> None:
    leaf, heard = getattr(pki(), name), []

    async def overheard(challenge: bytes) -> bytes:
        heard.append(await prover_answer(leaf)(challenge))
        return heard[-1]

    async def replay(_: bytes) -> bytes:
        return heard[0]

    sent = payload(leaf, pki().issuing)
    await verifier().verify(sent, overheard)
    with pytest.raises(Denied) as caught:
        await verifier().verify(sent, replay)
    assert caught.value.reason == "POSSESSION_UNPROVEN"


async def test_a_certificates_twin_is_the_same_node_only_where_it_is_named_by_what_was_signed() -> None:
    """An ECDSA signature (r, s) holds as (r, n - s) too: whoever has the certificate can make a second one of it,
    with another fingerprint. The page says so, and what to do."""
    der, order = pki().web.der, 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    old = pki().web.parsed.signature
    r, s = decode_dss_signature(old)
    new = encode_dss_signature(r, order - s)
    body = der[4 : -len(old) - 3]  # behind the outer header, before the signature's
    inner = body + bytes([3, len(new) + 1, 0]) + new
    twin = b"\x30\x82" + len(inner).to_bytes(2, "big") + inner
    sent = json.dumps({"certificates": [b64(twin), b64(pki().issuing.der)]}).encode()
    assert (await verifier().verify(sent, prover_answer(pki().web))).path.endswith(sha1(twin))
    by_serial = verifier(agent_path_template="/{{ .PluginName }}/{{ .SerialNumberHex }}")
    node = await by_serial.verify(sent, prover_answer(pki().web))
    assert node.path == (await attest(pki().web, by_serial)).path
    assert "r, n - s" in PAGE.read_text()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), bit=PLACES)
def test_flipped_bits_are_refused_or_change_nothing(data: st.DataObject, bit: int) -> None:
    """In the payload or in the answer, RSA or EC."""
    leaf = data.draw(st.sampled_from([pki().web, pki().rsa]))
    place = data.draw(st.sampled_from(["payload", "answer"]))

    async def answer(challenge: bytes) -> bytes:
        good = await prover_answer(leaf)(challenge)
        return flipped(good, bit) if place == "answer" else good

    sent = payload(leaf, pki().issuing)
    try:
        node = asyncio.run(verifier().verify(flipped(sent, bit) if place == "payload" else sent, answer))
    except (Denied, InvalidArgument):
        return
    assert node == genuine(leaf)


@cache
def genuine(leaf: Made) -> AttestedNode:
    return asyncio.run(attest(leaf))


# SVIDs that are exchanged


def svid(uri: str, name: str = "svid") -> Made:
    return pki().ca.make(name, pki().root, extensions=(*LEAF, f"subjectAltName=URI:{uri}"), subject="/O=SPIRE")


def own_domain() -> FakeHost:
    authority = X509Authority(certificate=pki().root.der)
    bundle = TrustBundle(trust_domain=TrustDomain("example.org"), x509_authorities=(authority,))
    return FakeHost(bundle=bundle)


async def exchange(uri: str, **config: Any) -> AttestedNode:
    leaf = svid(uri)
    return await verifier(own_domain(), mode="spiffe", **config).verify(payload(leaf), prover_answer(leaf))


async def test_an_svid_below_the_prefix_becomes_an_agents() -> None:
    node = await exchange("spiffe://example.org/spire-exchange/rack/7")
    assert node.path == "/spire/agent/x509pop/rack/7"
    assert f"x509pop:ca:fingerprint:{sha1(pki().root.der)}" in shown(node)
    assert (await exchange("spiffe://example.org/a", svid_prefix="")).path == "/spire/agent/x509pop/a"
    assert (await exchange("spiffe://example.org/n/a", svid_prefix="/n/")).path == "/spire/agent/x509pop/a"
    by_hash = "/x509pop/{{ .SVIDPathTrimmed | sha256sum | trunc 8 }}"
    node = await exchange("spiffe://example.org/spire-exchange/a", agent_path_template=by_hash)
    assert node.path == f"/spire/agent/x509pop/{hashlib.sha256(b'a').hexdigest()[:8]}"


@pytest.mark.parametrize(
    ("uri", "config", "reason"),
    [
        ("spiffe://example.org/other/a", {}, "NODE_SVID_FORBIDDEN"),
        ("spiffe://example.org/spire-exchange", {}, "NODE_SVID_FORBIDDEN"),
        ("spiffe://example.org/spire-exchanges/a", {}, "NODE_SVID_FORBIDDEN"),
        ("spiffe://other.org/spire-exchange/a", {}, "NODE_SVID_FORBIDDEN"),
        ("spiffe://example.org/spire/agent/x509pop/a", {"svid_prefix": ""}, "NODE_SVID_FORBIDDEN"),
        ("spiffe://example.org/spire/server", {"svid_prefix": ""}, "NODE_SVID_FORBIDDEN"),
        ("https://example.org/spire-exchange/a", {}, "NODE_CERTIFICATE_USAGE"),
        ("spiffe://example.org/spire-exchange/../a", {}, "NODE_CERTIFICATE_USAGE"),
    ],
)
async def test_svids_that_are_not_exchanged(uri: str, config: dict[str, Any], reason: str) -> None:
    with pytest.raises(Denied) as caught:
        await exchange(uri, **config)
    assert caught.value.reason == reason


async def test_the_own_bundle_vouches_and_nothing_else_does() -> None:
    leaf = svid("spiffe://example.org/spire-exchange/a")
    with pytest.raises(Denied) as caught:
        await verifier(FakeHost(), mode="spiffe").verify(payload(leaf), prover_answer(leaf))
    assert caught.value.reason == "NODE_CERTIFICATE_UNTRUSTED"


# Files


async def test_a_renewed_certificate_is_used_at_the_next_attestation(tmp_path: Path) -> None:
    files = {"certificate_path": tmp_path / "c", "private_key_path": tmp_path / "k"}

    def write(leaf: Made) -> None:
        files["certificate_path"].write_bytes(leaf.certificate.read_bytes() + pki().issuing.certificate.read_bytes())
        files["private_key_path"].write_bytes(leaf.key.read_bytes())

    node = X509PopProver(from_values({name: str(path) for name, path in files.items()}, AgentConfig))
    for leaf in (pki().web, pki().rsa):
        write(leaf)
        sent = await node.payload()
        write(pki().web)  # between payload and challenge: the pair that was read stays together
        assert (await verifier().verify(sent, node.answer)).path.endswith(sha1(leaf.der))
    assert node.can_reattest


async def test_what_cannot_be_read_says_so(tmp_path: Path) -> None:
    encrypted, junk = tmp_path / "encrypted", tmp_path / "junk"
    run("ec", "-in", str(pki().web.key), "-out", str(encrypted), "-aes256", "-passout", "pass:x")
    junk.write_text("-----BEGIN")
    paths = [encrypted, junk, tmp_path / "none", pki().rsa.key, tmp_path]
    for changes in [{"private_key_path": str(one)} for one in paths] + [{"certificate_path": str(junk)}]:
        with pytest.raises(FailedPrecondition) as caught:
            await prover(pki().web, **changes).payload()
        assert caught.value.reason == "NODE_CREDENTIAL"
        assert next(iter(changes.values())) in caught.value.detail
    with pytest.raises(FailedPrecondition):
        await prover(pki().web).answer(b"{}")


async def test_the_servers_authorities_are_read_each_time(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    with pytest.raises(ConfigError) as caught:
        verifier(ca_bundle_paths=[str(bundle)])
    assert str(bundle) in caught.value.detail
    bundle.write_bytes(pki().ca.make("first", extensions=CA).certificate.read_bytes())
    verify = verifier(ca_bundle_paths=[str(bundle)])
    with pytest.raises(Denied):
        await attest(pki().web, verify)
    bundle.write_bytes(pki().root.certificate.read_bytes())
    await attest(pki().web, verify)
    bundle.unlink()
    with pytest.raises(Unavailable) as gone:
        await attest(pki().web, verify)
    assert gone.value.reason == "NODE_AUTHORITIES"
    assert str(bundle) not in gone.value.detail


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"mode": "spiffe", "ca_bundle_path": "/x"},
        {"mode": "other", "ca_bundle_path": "/x"},
        {"mode": "spiffe", "svid_prefix": "exchange"},
        {"mode": "spiffe", "svid_prefix": "/spire/agent"},
        {"mode": "spiffe", "svid_prefix": "/spire/"},
        {"ca_bundle_path": "/x", "agent_path_template": "/cn/{{ .Subject.CommonName }}"},
        {"ca_bundle_path": "/x", "agent_path_template": "/{{ .PluginName }}/{{ .SVIDPathTrimmed }}"},
        {"ca_bundle_path": "/x", "max_intermediates": 10},
        {"ca_bundle_path": "/x", "max_rsa_key_size": 1024},
    ],
)
def test_configurations_that_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        from_values(values, ServerConfig)


async def test_a_server_cannot_have_an_agent_sign_what_it_likes() -> None:
    node = prover(pki().web)
    await node.payload()
    for asked in ({}, {"rsa_signature": {"nonce": b64(b"x" * 32)}}, {"ecdsa_signature": {"nonce": b64(b"x" * 33)}}):
        with pytest.raises(BurgeeError) as caught:
            await node.answer(json.dumps(asked).encode())
        assert caught.value.reason == "CHALLENGE_MALFORMED"


def test_the_page_has_the_tables_of_the_models() -> None:
    page = PAGE.read_text()
    for model in (ServerConfig, AgentConfig):
        assert markdown_table(model) in page
    assert plugin.name == "x509pop"


# The whole of it


def test_a_real_agent_attests_to_a_real_server_and_again_after_its_state_is_gone() -> None:
    leaf = pki().web
    server = {"node_attestors": {"x509pop": {"ca_bundle_path": str(pki().root.certificate)}, "join_token": {}}}
    agent = {"node_attestor": {"x509pop": agent_values(leaf)}}
    with pair(server=server, agent=agent) as both:
        expected = f"/spire/agent/x509pop/{sha1(leaf.der)}"
        assert until("the agent has its ID", both.agent_path) == expected
        both.stop("agent")
        for state in (both.home / "agent", both.home / "cache"):
            shutil.rmtree(state, ignore_errors=True)
        both.start_agent()
        assert until("the agent has its ID again", both.agent_path) == expected
        assert both.count_agents() == 1


def test_an_agent_exchanges_an_svid_that_another_agent_gives_it() -> None:
    """Two agents of one server: the second is a workload of the first, and a node in its own right."""
    server = {"node_attestors": {"x509pop": {"mode": "spiffe"}, "join_token": {}}}
    with pair(server=server) as both:
        inner = both.home / "inner"
        config = both.agent_config() | {
            "data_dir": str(inner / "d"),
            "workload_socket": str(inner / "w" / "w.sock"),
            "admin_socket": {"path": str(inner / "a" / "a.sock")},
            "cache": {"directory": str(inner / "c")},
            "node_attestor": {"x509pop": {"spiffe_endpoint_socket": f"unix://{both.workload_socket}"}},
        }
        both._start("inner", "sds.agent", config)
        until("it says what it lacks", lambda: "NODE_CREDENTIAL" in both.logs())
        both.create_entry("/spire-exchange/vm/7")
        both.agent_admin_socket = inner / "a" / "a.sock"
        assert until("the inner agent has its ID", both.agent_path, seconds=40) == "/spire/agent/x509pop/vm/7"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"certificate_path": "/x"},
        {"private_key_path": "/x"},
        {"spiffe_endpoint_socket": "unix:///x", "certificate_path": "/x"},
        {"spiffe_endpoint_socket": "unix:///x", "intermediates_path": "/x"},
        {"spiffe_endpoint_socket": "tcp://127.0.0.1:1"},
        {"spiffe_endpoint_socket": "/x"},
    ],
)
def test_an_agents_proof_has_one_source(values: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        from_values(values, AgentConfig)


async def test_a_workload_api_that_is_not_there_says_so(tmp_path: Path) -> None:
    node = X509PopProver(from_values({"spiffe_endpoint_socket": f"unix://{tmp_path}/none"}, AgentConfig))
    with pytest.raises(FailedPrecondition) as caught:
        await node.payload()
    assert caught.value.reason == "NODE_CREDENTIAL"
    assert f"{tmp_path}/none" in caught.value.detail
