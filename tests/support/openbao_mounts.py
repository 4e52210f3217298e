"""What an administrator sets up in OpenBao: secret engines, ways to log in, policies, tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca.identity.base64url import encode
from tests.support.openbao import OpenBao
from tests.support.tls_ca import Certified


def enable_secrets(bao: OpenBao, kind: str, mount: str = "", *, namespace: str = "") -> str:
    """`transit`, `pki` or another engine, at its own name unless said otherwise; a lease may last ten years."""
    mount = mount or kind
    data = {"type": kind, "config": {"max_lease_ttl": "87600h"}}
    bao.call("POST", f"sys/mounts/{mount}", data, namespace=namespace)
    return mount


def enable_auth(bao: OpenBao, kind: str, mount: str = "", *, namespace: str = "") -> str:
    """`approle`, `jwt`, `cert` or `kubernetes`."""
    mount = mount or kind
    bao.call("POST", f"sys/auth/{mount}", {"type": kind}, namespace=namespace)
    return mount


def write_policy(bao: OpenBao, name: str, rules: Mapping[str, Sequence[str]], *, namespace: str = "") -> None:
    """`rules` are path → capabilities; an existing policy is replaced, and whoever holds it feels that at once."""
    text = "\n".join(f'path "{path}" {{ capabilities = {json.dumps(list(caps))} }}' for path, caps in rules.items())
    bao.call("PUT", f"sys/policies/acl/{name}", {"policy": text or "# nothing"}, namespace=namespace)


def make_token(bao: OpenBao, *policies: str, **options: Any) -> str:
    """An orphan token; `options` are those of `auth/token/create`, such as ttl="30s", renewable=False."""
    data = {"policies": policies, "no_parent": True, **options}
    return str(bao.call("POST", "auth/token/create", data)["auth"]["client_token"])


def revoke_token(bao: OpenBao, token: str) -> None:
    bao.call("POST", "auth/token/revoke", {"token": token})


def make_approle(
    bao: OpenBao, role: str, *policies: str, mount: str = "approle", namespace: str = "", **options: Any
) -> tuple[str, str]:
    """(role_id, secret_id); `options` are the role's, such as token_ttl="10s", token_max_ttl="30s"."""
    path = f"auth/{mount}/role/{role}"
    bao.call("POST", path, {"token_policies": policies, **options}, namespace=namespace)
    role_id = bao.call("GET", f"{path}/role-id", namespace=namespace)["data"]["role_id"]
    return str(role_id), make_secret_id(bao, role, mount=mount, namespace=namespace)


def make_secret_id(bao: OpenBao, role: str, *, mount: str = "approle", namespace: str = "") -> str:
    made = bao.call("POST", f"auth/{mount}/role/{role}/secret-id", {}, namespace=namespace)
    return str(made["data"]["secret_id"])


class JwtIssuer:
    """Somebody whose JWTs OpenBao believes."""

    def __init__(self, bao: OpenBao, role: str, *policies: str, mount: str = "jwt", **options: Any) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        public = self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        bao.call("POST", f"auth/{mount}/config", {"jwt_validation_pubkeys": [public]})
        values = {
            "role_type": "jwt",
            "bound_audiences": ["vault"],
            "user_claim": "sub",
            "token_policies": policies,
            **options,
        }
        bao.call("POST", f"auth/{mount}/role/{role}", values)

    def token(self, *, subject: str = "burgee", audience: str = "vault", seconds: int = 600) -> str:
        now = datetime.now(UTC)
        expires = int((now + timedelta(seconds=seconds)).timestamp())
        claims = {"sub": subject, "aud": audience, "iat": int(now.timestamp()), "exp": expires}
        return sign_es256(claims, self._key)


def sign_es256(claims: Mapping[str, Any], key: ec.EllipticCurvePrivateKey) -> str:
    """A compact JWT."""
    parts = [encode(json.dumps(part).encode()) for part in ({"alg": "ES256", "typ": "JWT"}, claims)]
    text = ".".join(parts)
    r, s = decode_dss_signature(key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{text}.{encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def make_cert_role(bao: OpenBao, role: str, client: Certified, *policies: str, mount: str = "cert") -> None:
    """Whoever shows a certificate of the client's own authority may log in."""
    data = {"certificate": client.issuer_pem.decode(), "token_policies": policies}
    bao.call("POST", f"auth/{mount}/certs/{role}", data)
