"""Signatures by a key that stays in Vault: one request for many of them."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from cryptography.hazmat.primitives import hashes

from ca.errors import BurgeeError, Denied, Internal, NotFound, Unavailable
from ca.keys.transit_key import VERSION, TransitKey
from ca.ports import KeyType

MAX_BATCH = 250
"""OpenBao refuses requests with more than some thousand words."""

_SIGNATURE = re.compile(r"vault:v([1-9][0-9]{0,9}):([A-Za-z0-9+/]+={0,2})")


class Writer(Protocol):
    """What of ca.vault.client.VaultClient a signer needs."""

    def write_blocking(self, path: str, data: Mapping[str, Any]) -> dict[str, Any]: ...


class TransitSigner:
    """Implements ca.ports.BatchSigner and ca.ports.RemoteSigner.

    `on_outcome` is told what Vault said to each request: an error, or None; `problem` is what is known before one.
    """

    def __init__(
        self,
        key_id: str,
        key: TransitKey,
        *,
        vault: Writer,
        mount: str,
        on_outcome: Callable[[TransitSigner, BurgeeError | None], None] = lambda _signer, _error: None,
        problem: Callable[[], BurgeeError | None] = lambda: None,
    ) -> None:
        self._key_id = key_id
        self._key = key
        self._vault = vault
        self._path = f"{mount}/sign/{key.name}"
        self._on_outcome = on_outcome
        self._problem = problem
        self._digest: hashes.HashAlgorithm = hashes.SHA384() if key.key_type == KeyType.EC_P384 else hashes.SHA256()

    @property
    def key_id(self) -> str:
        return self._key_id

    @property
    def key_type(self) -> KeyType:
        return self._key.key_type

    @property
    def public_key_der(self) -> bytes:
        return self._key.public_key_der

    def problem(self) -> BurgeeError | None:
        return self._problem()

    def sign(self, data: bytes) -> bytes:
        (outcome,) = self.sign_many([data])
        if isinstance(outcome, BurgeeError):
            raise outcome
        return outcome

    def sign_many(self, batch: Sequence[bytes]) -> Sequence[bytes | BurgeeError]:
        """Blocks. Raises Unavailable where Vault is away or does not let us sign, whatever it calls that."""
        outcomes: list[bytes | BurgeeError] = []
        for at in range(0, len(batch), MAX_BATCH):
            outcomes += self._sign_some(batch[at : at + MAX_BATCH])
        return outcomes

    def _sign_some(self, batch: Sequence[bytes]) -> list[bytes | BurgeeError]:
        try:
            answer = self._vault.write_blocking(self._path, self._request(batch))
        except (Denied, NotFound) as error:
            away = Unavailable(error.detail, reason=error.reason, hint=error.hint)
            self._on_outcome(self, away)
            raise away from error
        results = answer.get("batch_results")
        if not isinstance(results, list) or len(results) != len(batch):
            raise Unavailable(f"vault answers `{self._path}` with another number of results", reason="VAULT_ANSWER")
        outcomes = [self._outcome(result) for result in results]
        self._on_outcome(self, _common_failure(outcomes))
        return outcomes

    def _request(self, batch: Sequence[bytes]) -> dict[str, Any]:
        """The digest is made here, so that no certificate travels. Transit's own choice for RSA would be PSS."""
        request: dict[str, Any] = {
            "batch_input": [{"input": base64.b64encode(self._hash(data)).decode()} for data in batch],
            "key_version": VERSION,
            "prehashed": True,
            "hash_algorithm": "sha2-384" if self._digest.digest_size == 48 else "sha2-256",
        }
        if self._key.key_type.startswith("rsa"):
            return {**request, "signature_algorithm": "pkcs1v15"}
        return {**request, "marshaling_algorithm": "asn1"}

    def _hash(self, data: bytes) -> bytes:
        digest = hashes.Hash(self._digest)
        digest.update(data)
        return digest.finalize()

    def _outcome(self, result: object) -> bytes | BurgeeError:
        if not isinstance(result, Mapping):
            return _odd(self._path)
        if result.get("error"):
            words = " ".join(str(result["error"]).split())[:300]
            return Unavailable(f"vault did not sign with `{self._key.name}`: {words}", reason="VAULT_REFUSED")
        found = _SIGNATURE.fullmatch(str(result.get("signature")))
        if found is None:
            return _odd(self._path)
        if int(found[1]) != VERSION:
            return Internal(f"vault signed with version {found[1]} of `{self._key.name}`", reason="VAULT_KEY_VERSION")
        try:
            return base64.b64decode(found[2], validate=True)
        except binascii.Error:
            return _odd(self._path)


def _odd(path: str) -> Internal:
    return Internal(f"vault answers `{path}` with what is no signature", reason="VAULT_ANSWER")


def _common_failure(outcomes: Sequence[bytes | BurgeeError]) -> BurgeeError | None:
    """What was wrong with all of them is wrong with the key."""
    failures = [outcome for outcome in outcomes if isinstance(outcome, BurgeeError)]
    return failures[0] if failures and len(failures) == len(outcomes) else None
