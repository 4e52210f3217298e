"""OpenBao's bad days, seen from a server whose authority is below its PKI mount: everybody gets SVIDs throughout."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ca.authority.story import clock_time
from tests.support.lone_server import LoneServer, lone_server, workloads
from tests.support.openbao import OpenBao, openbao
from tests.support.openbao_mounts import enable_auth, make_approle, make_token, revoke_token, write_policy
from tests.support.operators import Mount
from tests.support.pair import until

pytestmark = [pytest.mark.slow, pytest.mark.real("OpenBao"), pytest.mark.timeout(300)]

CA_SECONDS = 48
"""The next authority is asked for after half of it."""
SEALED_CA_SECONDS = 84
"""Of the server whose OpenBao is sealed for more than a minute."""
TOKEN_SECONDS = 20
MAX_TOKEN_SECONDS = 60
"""A log-in ends, for good, while OpenBao is away."""

RECOVERY_SECONDS = 10.0
NOISE = 5
"""So much longer anything may take on a busy machine."""
NOTICED_SECONDS = 15
"""After an authority was due."""
LAST_SECONDS = 1.0
KEPT_SECONDS = 12.0
"""Before the end of the authority OpenBao is back."""


@contextmanager
def serving(
    upstream: dict[str, Any], secrets: Callable[[], Sequence[str]], *, ca_seconds: int = CA_SECONDS
) -> Iterator[LoneServer]:
    """Below that; none of its secrets is in its log afterwards, nor is anything that looks like one."""
    with lone_server(ca_seconds=ca_seconds, svid_seconds=ca_seconds // 6, upstream=upstream) as server:
        keys = server.key_numbers()
        yield server
        keys |= server.key_numbers()
        assert len(keys) > 2
        nothing_secret(server.log(), secrets(), keys)


SHAPES = (r"\b(?:hv)?[sb]\.[A-Za-z0-9_-]{20,}", r"\beyJ[\w-]{8,}\.", "PRIVATE KEY")
"""Of OpenBao's tokens, of JWTs, of keys."""


def nothing_secret(log: str, secrets: Sequence[str], keys: set[int]) -> None:
    assert '"reason": "VAULT_' in log, "it is the log of what happened here"
    assert "Traceback" not in log
    assert [secret for secret in secrets if secret in log] == []
    assert [found for shape in SHAPES for found in re.findall(shape, log)] == []
    written = [text for key in keys for text in (str(key), f"{key:x}", f"{key:X}")]
    assert [text for text in written if text in log] == []


@pytest.fixture(scope="module")
def bao() -> Iterator[OpenBao]:
    with openbao(real=True) as made:
        enable_auth(made, "approle")
        yield made


@pytest.fixture(scope="module")
def by_role(bao: OpenBao) -> Iterator[tuple[Mount, LoneServer]]:
    """A server that logs in by itself."""
    with _by_role(bao, CA_SECONDS) as made:
        yield made


@contextmanager
def _by_role(bao: OpenBao, ca_seconds: int) -> Iterator[tuple[Mount, LoneServer]]:
    mount = Mount(bao, life=timedelta(days=1))
    life = {"token_ttl": f"{TOKEN_SECONDS}s", "token_max_ttl": f"{MAX_TOKEN_SECONDS}s"}
    role_id, secret_id = make_approle(bao, mount.name, mount.name, "default", **life)
    with tempfile.NamedTemporaryFile("w", prefix="bg-") as file:
        file.write(secret_id)
        file.flush()
        auth = {"approle": {"role_id": role_id, "secret_id_file": file.name}}
        secrets = [secret_id, bao.root_token]
        with serving(mount.upstream(auth, timeout_seconds=1), lambda: secrets, ca_seconds=ca_seconds) as server:
            yield mount, server


def outage(
    server: LoneServer,
    *,
    begin: Callable[[], object],
    end: Callable[[], object],
    reason: str,
    late: bool = False,
    ca_seconds: int = CA_SECONDS,
) -> float:
    """From before the next authority is due until that cannot be had; with `late` until shortly before issuing would
    end. Afterwards everything is as it should be, and nobody had to do anything. The seconds that it lasted."""
    until("all is well, and no authority is due", lambda: _calm(server, ca_seconds), seconds=ca_seconds + 15)
    with workloads(server) as asking:
        begin()
        begun = time.monotonic()
        noticed = {"rotation": reason, "upstream": reason}
        until("it says so", lambda: server.ready() == (200, noticed), seconds=ca_seconds / 2 + NOTICED_SECONDS)
        stays = (server.signs_until() - datetime.now(UTC)).total_seconds() - KEPT_SECONDS if late else 3.0
        time.sleep(max(0.0, stays))
        assert server.ready() == (200, noticed)
        assert f"this server can sign until {clock_time(server.signs_until())}" in server.ready("detail")[1]["rotation"]
        end()
        began = time.monotonic()
        until("it has recovered", lambda: server.ready() == (200, {}), seconds=RECOVERY_SECONDS * NOISE)
        print(f"recovered after {time.monotonic() - began:.1f} s")
        assert server.operator.state().prepared.authority_id or late
    assert asking.failed == []
    assert asking.issued > 20
    return began - begun


def _calm(server: LoneServer, ca_seconds: int = CA_SECONDS) -> bool:
    """Nothing is wrong, and the last authority is fresh enough to have its successor fail."""
    state = server.operator.state()
    left = (server.signs_until() - datetime.now(UTC)).total_seconds()
    return server.ready() == (200, {}) and not state.prepared.authority_id and left > ca_seconds / 2 + 2


def test_sealed_for_a_minute(bao: OpenBao) -> None:
    """Until shortly before the authority ends; the log-in has ended meanwhile."""
    with _by_role(bao, SEALED_CA_SECONDS) as (_, server):
        lasted = outage(
            server, begin=bao.seal, end=bao.unseal, reason="VAULT_SEALED", late=True, ca_seconds=SEALED_CA_SECONDS
        )
    assert lasted > 60


def test_hanging(bao: OpenBao, by_role: tuple[Mount, LoneServer]) -> None:
    """It takes connections and does not answer."""
    try:
        outage(by_role[1], begin=bao.suspend, end=bao.resume, reason="VAULT_TIMEOUT")
    finally:
        bao.resume()


def test_permission_removed(bao: OpenBao, by_role: tuple[Mount, LoneServer]) -> None:
    mount, server = by_role
    outage(server, begin=lambda: write_policy(bao, mount.name, {}), end=mount.allow, reason="VAULT_DENIED")


def test_restarted_with_another_token(bao: OpenBao) -> None:
    """The old token is worth nothing any more; the file holds a new one before long."""
    mount = Mount(bao, life=timedelta(days=1))
    with tempfile.TemporaryDirectory(prefix="bg-") as directory:
        file = Path(directory) / "token"
        tokens = [make_token(bao, mount.name, "default", ttl="1h") for _ in range(2)]
        assert re.fullmatch(SHAPES[0], tokens[0])
        file.write_text(tokens[0])

        def begin() -> None:
            revoke_token(bao, tokens[0])
            bao.stop()

        def end() -> None:
            bao.start()
            bao.unseal()
            (new := file.with_suffix(".new")).write_text(tokens[1])
            new.rename(file)

        upstream = mount.upstream({"token_file": str(file)}, timeout_seconds=1)
        with serving(upstream, lambda: [*tokens, bao.root_token]) as server:
            outage(server, begin=begin, end=end, reason="VAULT_UNREACHABLE")


def test_away_for_too_long(bao: OpenBao, by_role: tuple[Mount, LoneServer]) -> None:
    """Everybody gets SVIDs to the last second, then nobody, and everybody again when OpenBao is back."""
    server = by_role[1]
    until("all is well, and no authority is due", lambda: _calm(server), seconds=CA_SECONDS + 15)
    with workloads(server) as asking:
        bao.seal()
        ends = server.signs_until()
        time.sleep((ends - datetime.now(UTC)).total_seconds() - LAST_SECONDS)
        assert asking.failed == []
        assert server.ready()[0] == 200
        until("it says that it cannot issue", lambda: server.ready()[0] == 503, seconds=LAST_SECONDS + 10)
        assert datetime.now(UTC) >= ends
        assert server.ready()[1] | {"authority": "NO_ACTIVE_AUTHORITY", "rotation": "VAULT_SEALED"} == server.ready()[1]
        until("workloads are refused", lambda: bool(asking.failed))
        bao.unseal()
        began = time.monotonic()
        until("it has recovered", lambda: server.ready() == (200, {}), seconds=RECOVERY_SECONDS * NOISE)
        print(f"recovered after {time.monotonic() - began:.1f} s")
        issued = asking.issued
        until("SVIDs are issued again", lambda: asking.issued > issued + 10)
