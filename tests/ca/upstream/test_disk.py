"""The disk upstream: which files it takes, what it signs, and that it reads them again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from ca.errors import BurgeeError, ConfigError, FailedPrecondition, InvalidArgument, Unavailable
from ca.ports import FindingLevel
from ca.runtime.config import from_values
from ca.upstream import disk
from ca.upstream.disk import DiskUpstream, DiskUpstreamConfig
from tests.ca.identity.forge import intermediate, key, root
from tests.contracts.upstreams import DISK_FILES, disk_files, disk_upstream, write_key, write_pem
from tests.support.authority_host import authority_host
from tests.support.clock import FakeClock
from tests.support.server import make_csr

HOUR = 3600


def dates(life: timedelta = timedelta(hours=48)) -> dict[str, Any]:
    now = datetime.now(UTC).replace(microsecond=0)
    return {"not_before": now - timedelta(hours=1), "not_after": now + life}


async def refusal(upstream: DiskUpstream) -> BurgeeError:
    """The same for a mint, and (where it is about the files) for the bundle."""
    with pytest.raises(BurgeeError) as caught:
        await upstream.mint(make_csr(), HOUR)
    return caught.value


async def test_each_authority_has_a_name_of_its_own(tmp_path: Path) -> None:
    """Also for one key: verifiers look for issuers by name."""
    disk_files(tmp_path)
    upstream = disk_upstream(tmp_path)
    csr = make_csr()
    answers = [await upstream.mint(csr, HOUR) for _ in range(3)]
    assert len({x509.load_der_x509_certificate(a.chain[0]).subject for a in answers}) == 3


@pytest.mark.parametrize("kind", ["P-256", "P-384", "P-521", "RSA-2048"])
async def test_a_root_alone_needs_no_chain(tmp_path: Path, kind: str) -> None:
    top = root("top", key=key(kind, "top"), **dates())
    write_pem(tmp_path / "ca.pem", top.der)
    write_key(tmp_path / "ca.key", top)
    upstream = disk_upstream(tmp_path, chain_file=None)
    answer = await upstream.mint(make_csr(), HOUR)
    assert len(answer.chain) == 1
    assert answer.roots == (top.der,)
    found = await upstream.check()
    assert [f for f in found if f.level == FindingLevel.FAILED] == []
    assert "`serialNumber=" in next(f.detail for f in found if f.what == "new authority"), "for people, not by number"


@pytest.mark.parametrize("where", ["certificate_file", "chain_file"])
async def test_the_chain_may_be_in_either_file_in_any_order(tmp_path: Path, where: str) -> None:
    top, other = root("top", **dates()), root("next root", **dates())
    middle = intermediate(top, "middle", **dates())
    low = intermediate(middle, "low", **dates())
    write_key(tmp_path / "ca.key", low)
    rest = (top.der, middle.der, other.der, middle.der)
    if where == "certificate_file":
        write_pem(tmp_path / "ca.pem", low.der, *rest)
        upstream = disk_upstream(tmp_path, chain_file=None)
    else:
        write_pem(tmp_path / "ca.pem", low.der)
        write_pem(tmp_path / "chain.pem", *rest)
        upstream = disk_upstream(tmp_path)
    answer = await upstream.mint(make_csr(), HOUR)
    assert answer.chain[1:] == (low.der, middle.der)
    assert answer.roots == (top.der, other.der)
    assert [a.certificate for a in (await upstream.bundle()).x509_authorities] == [top.der, other.der]


async def test_a_life_ends_with_the_first_of_those_above(tmp_path: Path) -> None:
    soon = dates(timedelta(minutes=10))
    top = root("top", **dates())
    middle = intermediate(top, "middle", **soon)
    low = intermediate(middle, "low", **dates())
    write_pem(tmp_path / "ca.pem", low.der, middle.der, top.der)
    write_key(tmp_path / "ca.key", low)
    answer = await disk_upstream(tmp_path, chain_file=None).mint(make_csr(), HOUR)
    assert x509.load_der_x509_certificate(answer.chain[0]).not_valid_after_utc == soon["not_after"]


async def test_replaced_files_are_used_at_once_and_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = FakeClock(datetime.now(UTC))
    disk_files(tmp_path)
    values = {name: str(tmp_path / file) for name, file in DISK_FILES.items()}
    upstream = DiskUpstream(from_values(values, DiskUpstreamConfig), authority_host(tmp_path, clock=clock))
    running = asyncio.create_task(upstream.run())
    await asyncio.sleep(0.05)
    first = await upstream.mint(make_csr(), HOUR)
    made, _ = disk_files(tmp_path, key=key("P-256", "replaced"))
    second = await upstream.mint(make_csr(), HOUR)
    assert second.chain[1] == made.der != first.chain[1]
    await clock.advance(disk.LOOK_SECONDS)
    await asyncio.sleep(0.1)
    assert "upstream certificate replaced" in "".join(capsys.readouterr())
    (tmp_path / "ca.key").unlink()
    await clock.advance(disk.LOOK_SECONDS)
    await asyncio.sleep(0.1)
    problem = upstream.problem()
    assert problem is not None
    assert problem.reason == "UPSTREAM_FILE"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def stranger_key(directory: Path) -> None:
    write_key(directory / "ca.key", root("stranger", **dates()))


def encrypted_key(directory: Path) -> None:
    pem = key("P-256", "ca").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (directory / "ca.key").write_bytes(pem)


def linked_key(directory: Path) -> None:
    (directory / "ca.key").rename(directory / "real.key")
    (directory / "ca.key").symlink_to(directory / "real.key")


def other_chain(directory: Path) -> None:
    write_pem(directory / "chain.pem", root("another", **dates()).der)


def other_curve(directory: Path) -> None:
    made = root("odd", key=key("K-256", "odd"), **dates())
    write_pem(directory / "ca.pem", made.der)
    write_key(directory / "ca.key", made)


BROKEN: dict[str, tuple[Callable[[Path], object], type[BurgeeError], str]] = {
    "no key": (lambda d: (d / "ca.key").unlink(), Unavailable, "UPSTREAM_FILE"),
    "no certificate": (lambda d: (d / "ca.pem").unlink(), Unavailable, "UPSTREAM_FILE"),
    "no chain": (lambda d: (d / "chain.pem").unlink(), Unavailable, "UPSTREAM_FILE"),
    "a directory": (lambda d: (d / "ca.pem").unlink() or (d / "ca.pem").mkdir(), Unavailable, "UPSTREAM_FILE"),
    "a key for all to read": (lambda d: (d / "ca.key").chmod(0o644), FailedPrecondition, "NOT_PRIVATE"),
    "a key for the group": (lambda d: (d / "ca.key").chmod(0o640), FailedPrecondition, "NOT_PRIVATE"),
    "a link to the key": (linked_key, FailedPrecondition, "NOT_PRIVATE"),
    "another key": (stranger_key, FailedPrecondition, "UPSTREAM_KEY_MISMATCH"),
    "an encrypted key": (encrypted_key, FailedPrecondition, "KEY_FILE_CORRUPT"),
    "no key in it": (lambda d: (d / "ca.key").write_bytes(b"hello"), FailedPrecondition, "KEY_FILE_CORRUPT"),
    "an odd curve": (other_curve, FailedPrecondition, "KEY_FILE_CORRUPT"),
    "no certificate in it": (lambda d: (d / "ca.pem").write_text("x"), FailedPrecondition, "UPSTREAM_CHAIN_MALFORMED"),
    "too large": (lambda d: (d / "ca.pem").write_bytes(b" " * (2 << 20)), FailedPrecondition, "FILE_TOO_LARGE"),
    "another root": (other_chain, FailedPrecondition, "UPSTREAM_ROOT_MISSING"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, name: str) -> None:
    spoil, kind, reason = BROKEN[name]
    disk_files(tmp_path)
    upstream = disk_upstream(tmp_path)
    spoil(tmp_path)
    found = await refusal(upstream)
    assert (type(found), found.reason) == (kind, reason)
    assert "PRIVATE KEY" not in found.detail
    with pytest.raises(kind):
        await upstream.bundle()
    assert next(f.level for f in await upstream.check()) == FindingLevel.FAILED
    with pytest.raises(BurgeeError) as caught:
        await upstream.start()
    passing = reason in disk.PASSING_REASONS
    assert (type(caught.value), caught.value.reason) == (Unavailable if passing else ConfigError, reason)


async def test_an_expired_authority_signs_nothing_and_the_server_may_start(tmp_path: Path) -> None:
    disk_files(tmp_path, life=timedelta(minutes=-5))
    upstream = disk_upstream(tmp_path)
    assert (await refusal(upstream)).reason == "UPSTREAM_EXPIRED"
    with pytest.raises(Unavailable):
        await upstream.start()
    running = asyncio.create_task(upstream.run())
    await asyncio.sleep(0.1)
    problem = upstream.problem()
    assert problem is not None
    assert problem.reason == "UPSTREAM_EXPIRED"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_an_authority_without_room_below_it_is_found_at_the_start(tmp_path: Path) -> None:
    """It may sign leaves, and no authorities."""
    disk_files(tmp_path, constraints=x509.BasicConstraints(ca=True, path_length=0))
    with pytest.raises(ConfigError) as caught:
        await disk_upstream(tmp_path).start()
    assert caught.value.reason == "UPSTREAM_PATH_LENGTH"


async def test_a_check_warns_of_what_ends_soon(tmp_path: Path) -> None:
    """By what the server asked for last: a day."""
    disk_files(tmp_path, life=timedelta(hours=20))
    upstream = disk_upstream(tmp_path)
    warned = [f for f in await upstream.check() if f.level == FindingLevel.WARNING]
    assert {f.what for f in warned} == {"root", "intermediate"}
    assert all("cut short" in f.hint for f in warned)
    await upstream.mint(make_csr(), HOUR)
    assert [f.level for f in await upstream.check() if f.level != FindingLevel.OK] == []
    disk_files(tmp_path, life=timedelta(seconds=300))
    assert any("renew it" in f.hint for f in await upstream.check())


async def test_a_key_that_signs_nothing_is_refused(tmp_path: Path) -> None:
    disk_files(tmp_path)
    with pytest.raises(InvalidArgument) as caught:
        await disk_upstream(tmp_path).mint(_ed25519(), HOUR)
    assert caught.value.reason == "KEY_ALGORITHM"


def _ed25519() -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signer = key("Ed25519", "x")
    assert not isinstance(signer, ec.EllipticCurvePrivateKey)
    return builder.sign(signer, None).public_bytes(Encoding.DER)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ConfigError):
        from_values({"certificate_file": "/a", "key_file": "/b", "key": "PEM"}, DiskUpstreamConfig)
