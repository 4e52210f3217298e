"""Google's public keys from a file: a key set (JWKS), or the other form that Google gives, key id to certificate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509

from attestor.node.foreign_jwt import IssuerKey
from attestor.node.jwks import MAX_DOCUMENT_BYTES, MAX_KEYS, parse_key_set
from ca.errors import ConfigError
from ca.identity import strict_json


class PinnedKeys:
    """Implements `attestor.node.foreign_jwt.KeySource`; what is not in the file is unknown."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError."""
        try:
            with path.open("rb") as file:
                content = file.read(MAX_DOCUMENT_BYTES + 1)
            document = strict_json.loads(content, max_bytes=MAX_DOCUMENT_BYTES)
            if not isinstance(document, dict):
                raise ValueError("no JSON object")
            self._keys = parse_key_set(document) if "keys" in document else _certified_keys(document)
            if not self._keys:
                raise ValueError("there is no key in it")
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot use the keys in `{path}`: {error}", reason="CLOUD_CERTIFICATES") from error

    async def keys(self, key_id: str) -> Sequence[IssuerKey]:
        return self._keys.get(key_id, ())


def _certified_keys(document: Mapping[str, Any]) -> dict[str, tuple[IssuerKey, ...]]:
    """`{"<key id>": "<certificate, PEM>", …}`; of the certificates only the keys count."""
    if len(document) > MAX_KEYS or not all(isinstance(pem, str) for pem in document.values()):
        raise ValueError("neither a key set nor certificates by key id")
    return {
        key_id: (IssuerKey(key_id=key_id, key=x509.load_pem_x509_certificate(pem.encode()).public_key()),)
        for key_id, pem in document.items()
    }
