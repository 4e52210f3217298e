"""Whom we talk to is what the configuration says: verified, never redirected, never changed by the environment."""

from __future__ import annotations

import asyncio
import io
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ca.errors import BurgeeError, ConfigError, Denied, Unavailable
from ca.runtime import log
from ca.runtime.clock import SystemClock
from ca.runtime.config import from_values
from ca.vault.client import VaultClient
from ca.vault.config import VaultConfig
from tests.ca.runtime.rig import until
from tests.ca.vault.conftest import Connect, config
from tests.support.openbao import OpenBao, openbao
from tests.support.openbao_mounts import enable_auth, make_approle, make_token
from tests.support.tasks import running
from tests.support.tls_ca import TlsCa

pytestmark = pytest.mark.real("OpenBao")
SECRET = "s.a-token-that-nobody-must-see"


@pytest.fixture(scope="module")
def real() -> Iterator[OpenBao]:
    with openbao(real=True) as bao:
        yield bao


@pytest.fixture
def token(real: OpenBao, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "token").write_text(make_token(real, "default", ttl="1h"))
    return {"token_file": str(tmp_path / "token")}


async def start_fails(client: VaultClient) -> BurgeeError:
    try:
        with pytest.raises(BurgeeError) as caught:
            await client.start()
        return caught.value
    finally:
        await client.close()


def vault(values: dict[str, Any]) -> VaultClient:
    return VaultClient(from_values(values, VaultConfig), clock=SystemClock(), purpose="test")


async def test_a_certificate_of_another_authority_is_refused(
    real: OpenBao, token: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the environment says about certificates."""
    (tmp_path / "other.pem").write_bytes(TlsCa("somebody's").pem)
    for name in ("VAULT_CACERT", "VAULT_CAPATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, str(real.ca_file))
    monkeypatch.setenv("VAULT_SKIP_VERIFY", "true")
    values = {"address": real.address, "ca_file": str(tmp_path / "other.pem"), "auth": token}
    error = await start_fails(vault(values))
    assert (type(error), error.reason) == (ConfigError, "VAULT_TLS")
    assert "certificate verify failed" in error.detail


async def test_a_certificate_for_another_name_is_refused(real: OpenBao, token: dict[str, Any]) -> None:
    address = real.address.replace("127.0.0.1", "localhost")
    error = await start_fails(vault({"address": address, "ca_file": str(real.ca_file), "auth": token}))
    assert error.reason == "VAULT_TLS"
    assert "mismatch" in error.detail


async def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(SECRET)
    ca = TlsCa("OpenBao's")
    (tmp_path / "ca.pem").write_bytes(ca.pem)
    ca.server("127.0.0.1", lifetime=timedelta(seconds=-60)).write(tmp_path / "c.pem", tmp_path / "c.key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "c.pem", tmp_path / "c.key")
    with answering(200, {}, b"", context) as (address, asked):
        auth = {"token_file": str(tmp_path / "token")}
        error = await start_fails(vault({"address": address, "ca_file": str(tmp_path / "ca.pem"), "auth": auth}))
    assert error.reason == "VAULT_TLS"
    assert "expired" in error.detail
    assert asked == []


PLAIN: dict[str, Any] = {"clock": SystemClock(), "purpose": "test"}


async def test_the_environment_changes_neither_address_nor_token_nor_namespace(
    real: OpenBao, token: dict[str, Any], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VAULT_ADDR", "BAO_ADDR", "VAULT_PROXY_ADDR", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("VAULT_TOKEN", SECRET)
    monkeypatch.setenv("VAULT_NAMESPACE", "elsewhere")
    monkeypatch.setenv("VAULT_CLIENT_CERT", "/nowhere")
    monkeypatch.setattr("hvac.v1.VAULT_CLIENT_CERT", "/nowhere")  # read when hvac was imported
    monkeypatch.setattr("hvac.v1.VAULT_CACERT", "/nowhere")
    client = await connect(real, token)
    found = await client.read("auth/token/lookup-self")
    assert found is not None
    assert "default" in found["policies"]


@contextmanager
def answering(
    status: int, headers: dict[str, str], body: bytes, tls: ssl.SSLContext | None = None
) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """An HTTP server with one answer for everything: its address, and the headers of what it was asked."""
    asked: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(dict(self.headers))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(body)
            except OSError:
                pass  # nobody wants to read all of it

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that broke off

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


async def test_a_redirect_is_not_followed_so_that_no_token_goes_astray(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(SECRET)
    with answering(200, {"Content-Type": "application/json"}, b'{"data": {"ttl": 0}}') as (elsewhere, asked):
        with answering(307, {"Location": f"{elsewhere}/v1/x"}, b"") as (address, _):
            error = await start_fails(vault({"address": address, "auth": {"token_file": str(tmp_path / "token")}}))
        assert error.reason == "VAULT_REDIRECT"
        assert elsewhere in error.detail
        assert asked == []


@pytest.mark.parametrize(
    ("status", "content_type", "body", "reason"),
    [
        (200, "text/html", b"<html>hello</html>", "VAULT_ANSWER"),
        (200, "application/json", b"[]", "VAULT_ANSWER"),
        (200, "application/json", b'{"data": 1}', "VAULT_ANSWER"),
        (200, "application/json", b"{" + b" " * (9 << 20), "VAULT_ANSWER"),
        (200, "application/json", b'{"data": {"ttl": "soon"}}', "VAULT_ANSWER"),
        (200, "application/json", b'{"data": {"ttl": Infinity}}', "VAULT_ANSWER"),
        (200, "application/json", b'{"data": {"ttl": 60, "period": [1]}}', "VAULT_ANSWER"),
        (200, "application/json", b'{"data": {"ttl": -5}}', "VAULT_ANSWER"),
        (502, "text/html", b"<html>bad gateway</html>", "VAULT_UNREACHABLE"),
        (503, "application/json", b'{"errors": ["no active node"]}', "VAULT_UNREACHABLE"),
        (501, "application/json", b'{"errors": ["not initialized"]}', "VAULT_SEALED"),
        (500, "application/json", b'{"errors": ["oh"]}', "VAULT_FAILED"),
        (429, "application/json", b'{"errors": ["rate limit"]}', "VAULT_BUSY"),
        (404, "application/json", b'{"errors": []}', "VAULT_LOGIN_FAILED"),
        (418, "application/json", b'{"errors": "tea"}', "VAULT_FAILED"),
    ],
)
async def test_odd_answers_are_errors_that_say_so(
    tmp_path: Path, status: int, content_type: str, body: bytes, reason: str
) -> None:
    (tmp_path / "token").write_text(SECRET)
    with answering(status, {"Content-Type": content_type}, body) as (address, _):
        error = await start_fails(vault({"address": address, "auth": {"token_file": str(tmp_path / "token")}}))
    assert error.reason == reason


@pytest.mark.parametrize("duration", ["Infinity", '"soon"', "-5", "100000000000"])
async def test_a_log_in_for_a_time_that_is_none_is_refused(duration: str) -> None:
    """A negative one would be logged in for again five times a second."""
    body = b'{"auth": {"client_token": "s.x", "renewable": true, "lease_duration": %s}}' % duration.encode()
    with answering(200, {"Content-Type": "application/json"}, body) as (address, _):
        error = await start_fails(vault({"address": address, "auth": {"approle": {"role_id": "r"}}}))
    assert error.reason == "VAULT_ANSWER"


async def test_a_renewal_for_a_time_that_is_none_leaves_the_token_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(SECRET)
    body = b'{"data": {"ttl": 2, "renewable": true}, "auth": {"lease_duration": 1e999}}'
    with answering(200, {"Content-Type": "application/json"}, body) as (address, asked):
        auth = {"token_file": str(tmp_path / "token")}
        client = vault({"address": address, "auth": auth})
        await client.start()
        async with running(client.run()):
            await until(lambda: len(asked) >= 2)
            assert await client.read("x") == {"ttl": 2, "renewable": True}
        await client.close()


@pytest.mark.parametrize(("stall_seconds", "reason"), [(0.0, "VAULT_UNREACHABLE"), (5.0, "VAULT_TIMEOUT")])
async def test_an_answer_that_ends_or_stops_in_its_middle(tmp_path: Path, stall_seconds: float, reason: str) -> None:
    (tmp_path / "token").write_text(SECRET)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head)
        await writer.drain()
        await asyncio.sleep(stall_seconds)
        writer.close()

    server = await asyncio.start_server(half, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    auth = {"token_file": str(tmp_path / "token")}
    error = await start_fails(vault({"address": address, "auth": auth, "timeout_seconds": 0.5}))
    assert (type(error), error.reason) == (Unavailable, reason)
    server.close()


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"address": "vault.example.org:8200"}, "URL"),
        ({"address": "https://user:pw@vault.example.org", "ca_file": "/ca"}, "neither user"),
        ({"address": "https://vault.example.org"}, "ca_file"),
        ({"address": "http://vault.example.org"}, "without TLS"),
        ({"address": "http://127.0.0.1:8200", "auth": {}}, "exactly one"),
        (
            {"address": "http://127.0.0.1:8200", "auth": {"token_file": "/t", "jwt": {"role": "r", "jwt_file": "/j"}}},
            "one",
        ),
        ({"address": "http://127.0.0.1:8200", "auth": {"cert": {"cert_file": "/c", "key_file": "/k"}}}, "https"),
        ({"address": "http://127.0.0.1:8200", "namespace": "../sys"}, "namespace"),
        ({"address": "http://127.0.0.1:8200", "token": "s.x"}, "unknown key"),
    ],
)
def test_configurations_that_would_do_harm_are_refused(values: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_values({"auth": {"token_file": "/t"}, **values}, VaultConfig)
    assert word in caught.value.detail


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "[::1]", "localhost"])
def test_this_machine_needs_no_tls(host: str) -> None:
    from_values({"address": f"http://{host}:8200", "auth": {"token_file": "/t"}}, VaultConfig)


def test_plain_http_elsewhere_is_a_decision() -> None:
    values = {"address": "http://vault:8200", "allow_plain_http": True, "auth": {"token_file": "/t"}}
    assert from_values(values, VaultConfig).address == "http://vault:8200"


async def test_nothing_secret_is_logged_or_said(real: OpenBao, connect: Connect, tmp_path: Path) -> None:
    """Through log-in, refusal, denial, outage and return, with everything logged that can be."""
    out = io.StringIO()
    log.configure("json", "debug", out)
    try:
        mount = enable_auth(real, "approle")
        role_id, secret_id = make_approle(real, "burgee", "default", mount=mount, token_ttl="1h")
        path = tmp_path / "secret"
        path.write_text(secret_id)
        auth = {"approle": {"role_id": role_id, "secret_id_file": str(path)}}
        client = await connect(real, auth, timeout_seconds=1.0)
        held = client._keeper.link._secrets[0]
        said = [await denied(client)]
        path.write_text(f"{SECRET}-id")
        said.append(await start_fails(VaultClient(config(real, auth), **PLAIN)))
        (tmp_path / "token").write_text(SECRET)
        by_file = config(real, {"token_file": str(tmp_path / "token")})
        said.append(await start_fails(VaultClient(by_file, **PLAIN)))
        real.suspend()
        said.append(await unavailable(client))
        real.resume()
        await client.close()
    finally:
        log.configure()
    text = out.getvalue() + "".join(error.detail + error.hint + repr(error) for error in said)
    text += repr(by_file) + repr(client) + repr(client._keeper)
    assert "logged in to vault" in text
    assert "log-in to vault refused" in text
    assert "vault is away" in text
    for secret in (secret_id, held, SECRET, real.root_token):
        assert len(secret) > 10
        assert secret not in text


async def denied(client: VaultClient) -> BurgeeError:
    with pytest.raises(Denied) as caught:
        await client.read("sys/mounts")
    return caught.value


async def unavailable(client: VaultClient) -> BurgeeError:
    with pytest.raises(Unavailable) as caught:
        await client.read("sys/mounts")
    return caught.value


def test_a_secret_that_vault_repeats_is_taken_out() -> None:
    import hvac.exceptions

    from ca.vault.errors import translate

    error = hvac.exceptions.InvalidRequest(errors=[f"bad token {SECRET} in\n\trequest", "x" * 1000])
    told = translate(error, address="http://a", action="write", path="auth/x/login", secrets=(SECRET,))
    assert SECRET not in told.detail
    assert "bad token (withheld) in request" in told.detail
    assert len(told.detail) < 500


async def test_without_hvac_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == "hvac" or name.startswith("ca.vault.")]:
        if name not in ("ca.vault.client", "ca.vault.config", "ca.vault.outage"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hvac", None)
    with pytest.raises(ConfigError) as caught:
        vault({"address": "http://127.0.0.1:8200", "auth": {"token_file": os.devnull}})
    assert (caught.value.reason, "pip install" in caught.value.hint) == ("VAULT_CLIENT_MISSING", True)
