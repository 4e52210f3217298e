"""An issuer of tokens for tests, good ones and bad ones."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature


def encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def number(value: int) -> str:
    return encoded(value.to_bytes((value.bit_length() + 7) // 8 or 1, "big"))


class JwtIssuer:
    """Signs with one key of each kind; `kid` names it."""

    def __init__(self) -> None:
        self.ec = ec.generate_private_key(ec.SECP256R1())
        self.rsa = rsa.generate_private_key(65537, 2048)
        self.ed = ed25519.Ed25519PrivateKey.generate()

    def keys(self) -> list[dict[str, Any]]:
        point, modulus = self.ec.public_key().public_numbers(), self.rsa.public_key().public_numbers()
        x, y = (encoded(n.to_bytes(32, "big")) for n in (point.x, point.y))
        return [
            {"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "ec", "x": x, "y": y},
            {"kty": "RSA", "kid": "rsa", "n": number(modulus.n), "e": number(modulus.e)},
            {"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": encoded(self.ed.public_key().public_bytes_raw())},
        ]

    @property
    def jwks(self) -> str:
        return json.dumps({"keys": self.keys()})

    def token(self, claims: dict[str, Any], *, alg: str = "ES256", header: dict[str, Any] | None = None) -> str:
        kid = {"ES": "ec", "RS": "rsa", "PS": "rsa", "Ed": "ed"}.get(alg[:2], "ec")
        return self.sign(json.dumps({"alg": alg, "kid": kid, **(header or {})}), json.dumps(claims), alg)

    def sign(self, header: str, payload: str, alg: str) -> str:
        text = f"{encoded(header.encode())}.{encoded(payload.encode())}"
        return f"{text}.{encoded(self._signature(text.encode(), alg))}"

    def _signature(self, signed: bytes, alg: str) -> bytes:
        sha = hashes.SHA256()
        match alg[:2]:
            case "ES":
                r, s = decode_dss_signature(self.ec.sign(signed, ec.ECDSA(sha)))
                return r.to_bytes(32, "big") + s.to_bytes(32, "big")
            case "RS":
                return self.rsa.sign(signed, padding.PKCS1v15(), sha)
            case "PS":
                return self.rsa.sign(signed, padding.PSS(padding.MGF1(sha), sha.digest_size), sha)
            case "Ed":
                return self.ed.sign(signed)
            case "HS":  # with the public key as its secret
                return hmac.digest(self.jwks.encode(), signed, hashlib.sha256)
        return b""
