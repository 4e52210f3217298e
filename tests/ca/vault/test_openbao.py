"""The real OpenBao that tests start does what they rely on: it seals, forgets nothing, hangs and comes back."""

from __future__ import annotations

import pytest

from tests.support.openbao import OpenBao, Refused, openbao
from tests.support.openbao_mounts import (
    JwtIssuer,
    enable_auth,
    enable_secrets,
    make_approle,
    make_cert_role,
    make_token,
    revoke_token,
    write_policy,
)

pytestmark = pytest.mark.real("OpenBao")


def test_one_in_memory_has_engines_and_ways_to_log_in() -> None:
    with openbao() as bao:
        for kind in ("transit", "pki"):
            enable_secrets(bao, kind)
        for kind in ("approle", "jwt", "cert", "kubernetes"):
            enable_auth(bao, kind)
        write_policy(bao, "signer", {"transit/keys/a": ["read", "create", "update"]})
        role_id, secret_id = make_approle(bao, "burgee", "signer")
        issuer = JwtIssuer(bao, "burgee", "signer")
        make_cert_role(bao, "burgee", bao.ca.client("burgee"), "signer")
        approle = bao.call("POST", "auth/approle/login", {"role_id": role_id, "secret_id": secret_id})
        jwt = bao.call("POST", "auth/jwt/login", {"role": "burgee", "jwt": issuer.token()})
        for login in (approle, jwt):
            assert "signer" in login["auth"]["policies"]
            bao.call("POST", "transit/keys/a", {"type": "ecdsa-p256"}, token=login["auth"]["client_token"])
        with pytest.raises(Refused) as caught:
            bao.call("POST", "transit/keys/b", {"type": "ecdsa-p256"}, token=jwt["auth"]["client_token"])
        assert caught.value.status == 403


def test_one_with_storage_is_sealed_and_restarted_and_keeps_what_it_has() -> None:
    with openbao(real=True) as bao:
        assert bao.address.startswith("https://127.0.0.1:")
        enable_secrets(bao, "transit")
        bao.call("POST", "transit/keys/a", {"type": "ecdsa-p256"})
        token = make_token(bao, "default")
        before = _public(bao)
        bao.seal()
        assert bao.health() == 503
        bao.unseal()
        bao.restart()
        assert _public(bao) == before
        assert bao.call("GET", "auth/token/lookup-self", token=token)["data"]["policies"] == ["default"]
        revoke_token(bao, token)
        with pytest.raises(Refused):
            bao.call("GET", "auth/token/lookup-self", token=token)


def test_a_stopped_one_hangs_and_comes_back() -> None:
    with openbao() as bao:
        bao.suspend()
        assert bao.health() == 0
        bao.resume()
        assert bao.health() == 200


def _public(bao: OpenBao) -> object:
    return bao.call("GET", "transit/keys/a")["data"]["keys"]
