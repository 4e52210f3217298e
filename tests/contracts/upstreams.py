"""The upstreams that the contract is asked of: each with its real other side, and a hand on what can go wrong there."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ca.identity.bundle_pem import certificate_pem
from ca.ports import Clock, UpstreamAuthority
from ca.runtime.config import from_values
from ca.upstream import disk, spire, vault_pki
from tests.ca.identity.forge import Authority, intermediate, root
from tests.support.authority_host import authority_host
from tests.support.openbao import OpenBao, shared_openbao
from tests.support.openbao_mounts import enable_secrets, make_token, write_policy
from tests.support.server import entry, running_server
from tests.support.valve import Valve
from tests.support.workload_api import WorkloadApi

TIMEOUT_SECONDS = 2.0
LIFE = timedelta(hours=48)


def _impossible() -> NoReturn:
    raise AssertionError("this upstream cannot")


@dataclass(kw_only=True)
class Stand:
    """One upstream. `limit` is what its own authority has left, `kept` says what is held there of what it signed and
    published. Files neither hang nor deny."""

    upstream: UpstreamAuthority
    limit: timedelta
    kept: Callable[[], Awaitable[object]]
    vanish: Callable[[], object]
    heal: Callable[[], object]
    hang: Callable[[], object] = _impossible
    deny: Callable[[], Awaitable[None]] = _impossible
    keeps_jwt: bool = False


def write_pem(path: Path, *certificates: bytes) -> None:
    path.write_text("".join(certificate_pem(der) for der in certificates))


def write_key(path: Path, authority: Authority) -> None:
    path.write_bytes(authority.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)


def disk_files(directory: Path, *, life: timedelta = LIFE, **changes: Any) -> tuple[Authority, Authority]:
    """A root and an intermediate, whose key and chain are put into `directory`."""
    now = datetime.now(UTC).replace(microsecond=0)
    dates = {"not_before": now - timedelta(hours=1), "not_after": now + life}
    top = root("disk-root", **dates)
    made = intermediate(top, "disk-ca", **(dates | changes))
    write_pem(directory / "ca.pem", made.der)
    write_key(directory / "ca.key", made)
    write_pem(directory / "chain.pem", top.der)
    return made, top


def disk_upstream(directory: Path, **changes: Any) -> disk.DiskUpstream:
    values = {name: str(directory / f"{file}") for name, file in DISK_FILES.items()} | changes
    return disk.DiskUpstream(from_values(values, disk.DiskUpstreamConfig), authority_host(directory))


DISK_FILES = {"certificate_file": "ca.pem", "key_file": "ca.key", "chain_file": "chain.pem"}


@asynccontextmanager
async def disk_stand() -> AsyncIterator[Stand]:
    directory = Path(tempfile.mkdtemp(prefix="bg-"))
    disk_files(directory)
    away = directory / "away"

    async def kept() -> list[Path]:
        return sorted(directory.iterdir())

    try:
        yield Stand(
            upstream=disk_upstream(directory),
            limit=LIFE,
            kept=kept,
            vanish=lambda: (directory / "ca.key").rename(away),
            heal=lambda: away.rename(directory / "ca.key"),
        )
    finally:
        shutil.rmtree(directory)


@asynccontextmanager
async def spire_stand() -> AsyncIterator[Stand]:
    """Below a whole Burgee server; its agent's part is played by a Workload API of the test's own."""
    directory = Path(tempfile.mkdtemp(prefix="bg-"))
    async with (
        running_server(ca_ttl_seconds=int(LIFE.total_seconds())) as above,
        Valve(above.server.address) as valve,
        WorkloadApi(directory / "w.sock") as api,
    ):
        await above.create(entry("/down", "/spire/agent/join_token/x", downstream=True))
        await api.give(await above.mint("/down"), roots=above.roots)
        values = {
            "servers": [f"127.0.0.1:{valve.address[1]}"],
            "workload_socket": str(api.socket),
            "timeout_seconds": TIMEOUT_SECONDS,
        }
        config = from_values(values, spire.SpireUpstreamConfig)
        upstream = spire.SpireUpstream(config, authority_host(directory))

        async def deny() -> None:
            await api.give(await above.mint("/nobody"), roots=above.roots)

        async def kept() -> object:
            """The bundle; of what was signed there is a record, which is said."""
            return above.server.trust.own

        try:
            yield Stand(
                upstream=upstream,
                limit=LIFE,
                kept=kept,
                vanish=valve.refuse,
                heal=valve.open,
                hang=valve.swallow,
                deny=deny,
                keeps_jwt=True,
            )
        finally:
            await upstream.close()
            shutil.rmtree(directory, ignore_errors=True)


def vault_mount(bao: OpenBao, mount: str, *, life: timedelta = LIFE) -> None:
    """A PKI mount whose own root lasts that long."""
    enable_secrets(bao, "pki", mount)
    values = {"common_name": f"root of {mount}", "key_type": "ec", "ttl": f"{int(life.total_seconds())}s"}
    bao.call("POST", f"{mount}/root/generate/internal", values)


def vault_policy(bao: OpenBao, mount: str, **extra: Sequence[str]) -> None:
    """What the documentation says that the upstream needs, under the mount's own name."""
    rules = {f"{mount}/root/sign-intermediate": ["update"], f"{mount}/issuer/+/sign-intermediate": ["update"]}
    rules |= {f"{mount}/revoke": ["update"], f"sys/mounts/{mount}/tune": ["read"]}
    write_policy(bao, mount, rules | extra)


def vault_upstream(
    bao: OpenBao, directory: Path, policy: str, *, clock: Clock | None = None, **changes: Any
) -> vault_pki.VaultPkiUpstream:
    """Logged in with a token of that policy, for the mount of its name unless said otherwise."""
    token = directory / "token"
    if not token.exists():
        token.write_text(make_token(bao, policy, "default", ttl="1h"))
    values = {
        "address": bao.address,
        "auth": {"token_file": str(token)},
        "mount": policy,
        "timeout_seconds": TIMEOUT_SECONDS,
    }
    if bao.real:
        values["ca_file"] = str(bao.ca_file)
    config = from_values(values | changes, vault_pki.VaultPkiConfig)
    return vault_pki.VaultPkiUpstream(config, authority_host(directory, clock=clock))


@asynccontextmanager
async def vault_stand() -> AsyncIterator[Stand]:
    """A mount of a real OpenBao with a root of its own."""
    bao, mount = shared_openbao(), f"pki-{secrets.token_hex(4)}"
    vault_mount(bao, mount)
    vault_policy(bao, mount)
    directory = Path(tempfile.mkdtemp(prefix="bg-"))

    async def deny() -> None:
        write_policy(bao, mount, {})

    async def kept() -> object:
        """What is stored and not revoked."""
        serials = bao.call("GET", f"{mount}/certs?list=true")["data"]["keys"]
        records = [bao.call("GET", f"{mount}/cert/{serial}")["data"] for serial in serials]
        return [record["certificate"] for record in records if not record["revocation_time"]]

    async with Valve(("127.0.0.1", bao.port)) as valve:
        upstream = vault_upstream(bao, directory, mount, address=f"http://127.0.0.1:{valve.address[1]}")
        try:
            yield Stand(
                upstream=upstream,
                limit=LIFE,
                kept=kept,
                vanish=valve.refuse,
                heal=valve.open,
                hang=valve.swallow,
                deny=deny,
            )
        finally:
            await upstream.close()
            shutil.rmtree(directory, ignore_errors=True)


STANDS: dict[str, Callable[[], AbstractAsyncContextManager[Stand]]] = {
    "disk": disk_stand,
    "spire": spire_stand,
    "vault_pki": vault_stand,
}
