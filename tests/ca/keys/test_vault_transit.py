"""Keys in a real Transit engine: what Vault is not allowed to do with them, and what is made of what it says."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_public_key

from ca.errors import AlreadyExists, BurgeeError, ConfigError, FailedPrecondition, Internal, Unavailable
from ca.keys import vault_transit
from ca.keys.shared_names import SharedNames
from ca.keys.transit_key import TransitKey, read_creation_time, read_transit_key
from ca.keys.transit_signer import TransitSigner
from ca.keys.vault_transit import TransitKeyManager
from ca.ports import Dated, KeyType, Signer
from ca.runtime.config import from_values
from tests.support.authority_host import authority_host
from tests.support.openbao import OpenBao, Refused, shared_openbao
from tests.support.openbao_mounts import enable_secrets
from tests.support.server import eventually
from tests.support.tasks import running
from tests.support.transit import documented_policy, new_transit, token_file

real = pytest.mark.real("OpenBao")


class Bench:
    """A manager that runs, the engine below it, and the administrator's view of both."""

    def __init__(self, directory: Path) -> None:
        self.bao: OpenBao = shared_openbao()
        self.mount, self.policy = new_transit(self.bao)
        self.host = authority_host(directory)
        auth = token_file(self.bao, directory / "token", self.policy)
        self.values: dict[str, Any] = {"address": self.bao.address, "mount": self.mount, "auth": auth}
        self.manager = self.make()

    def make(self, **changes: Any) -> TransitKeyManager:
        config = from_values({**self.values, **changes}, vault_transit.plugin.config)
        made = vault_transit.plugin.manager(config, self.host)
        assert isinstance(made, TransitKeyManager)
        return made

    def path(self, key_id: str) -> str:
        return f"{self.mount}/keys/{SharedNames.of(self.host).name(key_id)}"

    def configure(self, key_id: str, **options: Any) -> None:
        self.bao.call("POST", f"{self.path(key_id)}/config", options)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.manager.start()
    async with running(bench.manager.run()):
        yield bench
    await bench.manager.close()


def verified(signer: Signer, signature: bytes, data: bytes) -> None:
    key = load_der_public_key(signer.public_key_der)
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
    else:
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(signature, data, ec.ECDSA(hashes.SHA256()))


@real
@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.RSA_2048])
async def test_openbao_hands_our_keys_out_to_nobody_root_included(bench: Bench, key_type: KeyType) -> None:
    await bench.manager.generate("k", key_type)
    name = bench.path("k").rpartition("/")[2]
    for path in (f"export/signing-key/{name}", f"export/encryption-key/{name}", f"backup/{name}"):
        with pytest.raises(Refused):
            bench.bao.call("GET", f"{bench.mount}/{path}")
    found = bench.bao.call("GET", bench.path("k"))["data"]
    assert (found["exportable"], found["allow_plaintext_backup"], found["derived"]) == (False, False, False)


@real
@pytest.mark.parametrize("option", ["exportable", "allow_plaintext_backup"])
async def test_a_key_that_vault_may_hand_out_is_not_signed_with(bench: Bench, option: str) -> None:
    await bench.manager.generate("k", KeyType.EC_P256)
    bench.configure("k", **{option: True})
    with pytest.raises(FailedPrecondition) as caught:
        await bench.manager.get("k")
    assert caught.value.reason == "VAULT_KEY_EXPORTABLE"


@real
async def test_the_version_that_made_the_authority_signs_whatever_is_rotated(bench: Bench) -> None:
    made = await bench.manager.generate("k", KeyType.EC_P256)
    bench.bao.call("POST", f"{bench.path('k')}/rotate")
    verified(made, made.sign(b"data"), b"data")
    found = await bench.manager.get("k")
    assert found is not None
    assert found.public_key_der == made.public_key_der
    verified(made, found.sign(b"data"), b"data")


@real
async def test_a_version_that_may_not_sign_any_more_is_said_so(bench: Bench) -> None:
    made = await bench.manager.generate("k", KeyType.EC_P256)
    bench.bao.call("POST", f"{bench.path('k')}/rotate")
    bench.configure("k", min_encryption_version=2)
    with pytest.raises(Unavailable) as denied:
        made.sign(b"data")
    assert "minimum encryption key version" in denied.value.detail
    with pytest.raises(FailedPrecondition) as caught:
        await bench.manager.get("k")
    assert caught.value.reason == "VAULT_KEY_VERSION"
    bench.configure("k", min_encryption_version=0, min_decryption_version=2)
    with pytest.raises(FailedPrecondition):
        await bench.manager.get("k")


@real
async def test_a_key_of_another_type_under_our_name_is_refused(bench: Bench) -> None:
    bench.bao.call("POST", bench.path("k"), {"type": "aes256-gcm96"})
    with pytest.raises(FailedPrecondition) as caught:
        await bench.manager.get("k")
    assert caught.value.reason == "KEY_TYPE"
    with pytest.raises(AlreadyExists):
        await bench.manager.generate("k", KeyType.EC_P256)


@real
async def test_an_imported_key_signs_as_itself(bench: Bench) -> None:
    """What the test of memory and files relies on: a key whose bytes somebody knows."""
    key = ec.generate_private_key(ec.SECP256R1())
    import_key(bench.bao, bench.mount, bench.path("k"), key)
    found = await bench.manager.get("k")
    assert found is not None
    key.public_key().verify(found.sign(b"data"), b"data", ec.ECDSA(hashes.SHA256()))


def import_key(bao: OpenBao, mount: str, path: str, key: ec.EllipticCurvePrivateKey) -> None:
    """Wrapped as OpenBao wants it: AES key wrap with padding, its key by RSA-OAEP."""
    from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    wrapping = load_pem_public_key(bao.call("GET", f"{mount}/wrapping_key")["data"]["public_key"].encode())
    assert isinstance(wrapping, rsa.RSAPublicKey)
    ephemeral = b"\x07" * 32
    pkcs8 = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
    ciphertext = wrapping.encrypt(ephemeral, oaep) + aes_key_wrap_with_padding(ephemeral, pkcs8)
    data = {"type": "ecdsa-p256", "ciphertext": base64.b64encode(ciphertext).decode(), "hash_function": "SHA256"}
    bao.call("POST", f"{path}/import", data)


@real
async def test_a_permission_to_sign_that_is_removed_is_a_problem_until_it_is_back(bench: Bench) -> None:
    signer = await bench.manager.generate("k", KeyType.EC_P256)
    whole = bench.bao.call("GET", f"sys/policies/acl/{bench.policy}")["data"]["policy"]
    bench.bao.call("PUT", f"sys/policies/acl/{bench.policy}", {"policy": whole.replace('["update"]', '["deny"]')})
    with pytest.raises(Unavailable) as caught:
        await asyncio.to_thread(signer.sign, b"data")
    assert caught.value.reason == "VAULT_DENIED"
    problem = bench.manager.problem()
    assert problem is not None
    assert (problem.reason, "`update`" in problem.hint) == ("VAULT_DENIED", True)
    assert isinstance(signer, TransitSigner)
    known = signer.problem()
    assert known is not None
    assert known.reason == "VAULT_DENIED"
    bench.bao.call("PUT", f"sys/policies/acl/{bench.policy}", {"policy": whole})
    await eventually(lambda: bench.manager.problem() is None, seconds=10)
    verified(signer, await asyncio.to_thread(signer.sign, b"data"), b"data")


@real
async def test_a_problem_with_a_key_ends_with_the_key(bench: Bench) -> None:
    signer = await bench.manager.generate("k", KeyType.EC_P256)
    bench.configure("k", deletion_allowed=True)
    bench.bao.call("DELETE", bench.path("k"))
    with pytest.raises(Unavailable):
        await asyncio.to_thread(signer.sign, b"data")
    assert bench.manager.problem() is not None
    await bench.manager.delete("k")
    assert bench.manager.problem() is None


@real
async def test_a_policy_can_keep_servers_from_each_others_keys(bench: Bench, tmp_path: Path) -> None:
    """With the server's name behind the trust domain's."""
    narrow = documented_policy(bench.mount, "example.org-s1")
    bench.bao.call("PUT", f"sys/policies/acl/{bench.policy}", {"policy": narrow})
    signer = await bench.manager.generate("k", KeyType.EC_P256)
    verified(signer, await asyncio.to_thread(signer.sign, b"data"), b"data")
    bench.host = authority_host(tmp_path, server="s2")
    other = bench.make()
    await other.start()
    with pytest.raises(Unavailable) as caught:
        await other.generate("k", KeyType.EC_P256)
    assert caught.value.reason == "VAULT_DENIED"
    await other.close()


@real
async def test_a_key_knows_when_it_was_made(bench: Bench) -> None:
    before = datetime.now(UTC)
    await bench.manager.generate("k", KeyType.EC_P256)
    made = await bench.manager.made_at("k")
    assert made is not None
    assert before - timedelta(seconds=1) < made < datetime.now(UTC) + timedelta(seconds=1)
    assert await bench.manager.made_at("nobody") is None
    assert isinstance(bench.manager, Dated)


@real
async def test_what_cannot_work_is_said_at_the_start(bench: Bench, tmp_path: Path) -> None:
    missing = bench.make(mount="nowhere")
    with pytest.raises(ConfigError) as caught:
        await missing.start()
    assert caught.value.reason == "VAULT_MOUNT"
    await missing.close()
    enable_secrets(bench.bao, "pki", f"{bench.mount}-pki")
    other = bench.make(mount=f"{bench.mount}-pki", auth={"token_file": root_file(bench.bao, tmp_path)})
    with pytest.raises(ConfigError) as caught:
        await other.start()
    assert caught.value.reason == "VAULT_MOUNT"
    await other.close()
    bare = bench.make(auth=token_file(bench.bao, tmp_path / "bare", "default"))
    with pytest.raises(ConfigError) as caught:
        await bare.start()
    assert caught.value.reason in ("VAULT_MOUNT", "VAULT_DENIED")
    await bare.close()


def root_file(bao: OpenBao, directory: Path) -> str:
    (directory / "root").write_text(bao.root_token)
    return str(directory / "root")


def names(trust_domain: str, server: str) -> SharedNames:
    return SharedNames.of(authority_host(Path("/nowhere"), trust_domain=trust_domain, server=server))


def test_names_are_read_back_and_others_are_not() -> None:
    ours = names("example.org", "s1")
    assert ours.key_id(ours.name("x509_ca-1.")) == "x509_ca-1."
    assert ours.name("k").startswith("burgee-example.org-s1-k-")
    for other in (names("example.org", "s"), names("example.org", "s1-k"), names("example.org-s1", "k")):
        assert ours.key_id(other.name("k")) is None
        assert ours.key_id(other.name("1-k")) is None
    for odd in ("", "burgee-", "somebody-else", ours.prefix + ours.suffix, ours.prefix[:-1] + ours.suffix):
        assert ours.key_id(odd) is None


def test_the_longest_name_fits() -> None:
    """Of a file's name in the storage of Vault there are 255 characters."""
    assert len(names("d" * 255, "s" * 255).name("k" * 100)) <= 250
    assert names("d" * 255, "s" * 255).suffix != names("d" * 255, "s" * 254).suffix


PUBLIC = ec.generate_private_key(ec.SECP256R1()).public_key()
KEY = TransitKey(name="n", key_type=KeyType.EC_P256, public_key_der=b"")


class Answering:
    """A Vault with one answer."""

    def __init__(self, results: object) -> None:
        self.asked: list[Mapping[str, Any]] = []
        self._results = results

    def write_blocking(self, path: str, data: Mapping[str, Any]) -> dict[str, Any]:
        assert path == "transit/sign/n"
        self.asked.append(data)
        return {"batch_results": self._results}


def signed(*results: object) -> list[bytes | BurgeeError]:
    signer = TransitSigner("k", KEY, vault=Answering(list(results)), mount="transit")
    return list(signer.sign_many([b"data"] * len(results)))


def test_an_item_that_vault_refuses_fails_alone() -> None:
    good = {"signature": "vault:v1:AAEC", "key_version": 1}
    first, second, third = signed(good, {"error": "oh\n\tno", "key_version": 0}, good)
    assert (first, third) == (b"\x00\x01\x02",) * 2
    assert isinstance(second, Unavailable)
    assert (second.reason, "oh no" in second.detail) == ("VAULT_REFUSED", True)


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"signature": "vault:v2:AAEC"}, "VAULT_KEY_VERSION"),
        ({"signature": "vault:v10:AAEC"}, "VAULT_KEY_VERSION"),
        ({"signature": "vault:v1:AAE"}, "VAULT_ANSWER"),
        ({"signature": "vault:v01:AAEC"}, "VAULT_ANSWER"),
        ({"signature": "vault:v1:"}, "VAULT_ANSWER"),
        ({"signature": "vault:v1:AAEC\n"}, "VAULT_ANSWER"),
        ({"signature": "AAEC"}, "VAULT_ANSWER"),
        ({"signature": None}, "VAULT_ANSWER"),
        ({}, "VAULT_ANSWER"),
        ("vault:v1:AAEC", "VAULT_ANSWER"),
    ],
)
def test_what_is_no_signature_of_that_version_is_none(result: object, reason: str) -> None:
    (outcome,) = signed(result)
    assert isinstance(outcome, Internal)
    assert outcome.reason == reason


@pytest.mark.parametrize("results", [None, [], [{"signature": "vault:v1:AAEC"}] * 2, "vault:v1:AAEC"])
def test_another_number_of_results_is_no_answer(results: object) -> None:
    signer = TransitSigner("k", KEY, vault=Answering(results), mount="transit")
    with pytest.raises(Unavailable) as caught:
        signer.sign(b"data")
    assert caught.value.reason == "VAULT_ANSWER"


@pytest.mark.parametrize(
    ("key_type", "digest", "options"),
    [
        (KeyType.EC_P256, "sha2-256", {"marshaling_algorithm": "asn1"}),
        (KeyType.EC_P384, "sha2-384", {"marshaling_algorithm": "asn1"}),
        (KeyType.RSA_3072, "sha2-256", {"signature_algorithm": "pkcs1v15"}),
    ],
)
def test_only_a_hash_of_the_right_kind_travels(key_type: KeyType, digest: str, options: dict[str, str]) -> None:
    vault = Answering([{"signature": "vault:v1:AAEC"}])
    TransitSigner("k", TransitKey(name="n", key_type=key_type, public_key_der=b""), vault=vault, mount="transit").sign(
        b"to be signed"
    )
    (asked,) = vault.asked
    (item,) = asked["batch_input"]
    chosen = hashes.Hash(hashes.SHA384() if digest == "sha2-384" else hashes.SHA256())
    chosen.update(b"to be signed")
    assert base64.b64decode(item["input"]) == chosen.finalize()
    rest = {name: value for name, value in asked.items() if name != "batch_input"}
    assert rest == {"key_version": 1, "prehashed": True, "hash_algorithm": digest, **options}


def answer(**changes: Any) -> dict[str, Any]:
    from cryptography.hazmat.primitives.serialization import PublicFormat

    pem = PUBLIC.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    keys = {"1": {"public_key": pem}}
    whole = {"type": "ecdsa-p256", "exportable": False, "allow_plaintext_backup": False, "keys": keys}
    return {**whole, **changes}


def test_a_key_is_read() -> None:
    assert read_transit_key("n", answer()).key_type == KeyType.EC_P256


@pytest.mark.parametrize("time", [None, "", "yesterday", "2026-01-01T00:00:00", 17])
def test_a_date_that_is_none_is_not_guessed(time: object) -> None:
    assert read_creation_time({"keys": {"1": {"creation_time": time}}}) is None
    assert read_creation_time({"keys": {"1": 1700000000}}) is None
    assert read_creation_time({}) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"type": "ed25519"}, "KEY_TYPE"),
        ({"type": None}, "KEY_TYPE"),
        ({"exportable": None}, "VAULT_KEY_EXPORTABLE"),
        ({"allow_plaintext_backup": True}, "VAULT_KEY_EXPORTABLE"),
        ({"keys": {"2": {}}}, "VAULT_KEY_VERSION"),
        ({"keys": None}, "VAULT_KEY_VERSION"),
        ({"soft_deleted": True}, "VAULT_KEY_VERSION"),
        ({"min_encryption_version": 2}, "VAULT_KEY_VERSION"),
        ({"type": "rsa-2048"}, "VAULT_ANSWER"),
        ({"type": "ecdsa-p384"}, "VAULT_ANSWER"),
        ({"keys": {"1": {"public_key": "no PEM"}}}, "VAULT_ANSWER"),
        ({"keys": {"1": 1700000000}}, "VAULT_ANSWER"),
    ],
)
def test_a_key_that_is_not_what_it_must_be_is_refused(changes: dict[str, Any], reason: str) -> None:
    """Silence about exporting is not a promise."""
    with pytest.raises(BurgeeError) as caught:
        read_transit_key("n", answer(**changes))
    assert caught.value.reason == reason
