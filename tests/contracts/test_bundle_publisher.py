"""What every bundle publisher promises (ca.ports.BundlePublisher), asked of each one at its real place."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ca.errors import BurgeeError, FailedPrecondition
from ca.identity.bundle import TrustBundle, X509Authority
from ca.identity.bundle_json import parse_spiffe_bundle
from ca.identity.bundle_pem import parse_pem
from ca.identity.spiffe_id import TrustDomain
from ca.ports import BundlePublisher, BundlePublisherPlugin
from ca.runtime import plugins
from tests.ca.identity.forge import root
from tests.contracts.publishers import STANDS, Stand

pytestmark = pytest.mark.xdist_group("kube")

TD = TrustDomain("example.org")


@functools.cache
def authority(name: str) -> X509Authority:
    return X509Authority(certificate=root(name).der)


def bundle(*names: str, trust_domain: TrustDomain = TD) -> TrustBundle:
    authorities = tuple(authority(name) for name in names)
    return TrustBundle(trust_domain=trust_domain, x509_authorities=authorities, sequence_number=len(names))


ONE, TWO = bundle("a"), bundle("a", "b")


@pytest.fixture(params=STANDS)
def stand(request: pytest.FixtureRequest, tmp_path: Path) -> Stand:
    return STANDS[request.param](tmp_path)


@pytest.fixture
async def publisher(stand: Stand) -> AsyncIterator[BundlePublisher]:
    made = stand.open()
    yield made
    await made.close()


def shown(stand: Stand) -> tuple[X509Authority, ...]:
    """The X.509 authorities that a reader of the copy finds."""
    text = stand.read()
    assert text is not None
    parse = parse_spiffe_bundle if text.startswith("{") else parse_pem
    return parse(text, TD).x509_authorities


def test_its_name_is_its_entry_points() -> None:
    for name in plugins.names(plugins.BUNDLE_PUBLISHERS):
        assert plugins.load(plugins.BUNDLE_PUBLISHERS, name, BundlePublisherPlugin).name == name


def test_every_installed_publisher_is_asked() -> None:
    assert set(plugins.names(plugins.BUNDLE_PUBLISHERS)) == {name.removesuffix("-spiffe") for name in STANDS}


async def test_a_copy_that_is_missing_is_made(stand: Stand, publisher: BundlePublisher) -> None:
    assert stand.read() is None
    assert await publisher.publish(ONE) is True
    assert shown(stand) == ONE.x509_authorities


async def test_a_copy_follows_the_bundle(stand: Stand, publisher: BundlePublisher) -> None:
    for current in (ONE, TWO, ONE):
        assert await publisher.publish(current) is True
        assert shown(stand) == current.x509_authorities


async def test_what_is_as_it_should_be_is_not_written(stand: Stand, publisher: BundlePublisher) -> None:
    await publisher.publish(ONE)
    before = stand.others()
    assert await publisher.publish(ONE) is False
    assert stand.others() == before


async def test_another_server_of_the_trust_domain_goes_on_with_the_copy(stand: Stand) -> None:
    first, second = stand.open(), stand.open()
    await first.publish(ONE)
    assert await second.publish(ONE) is False
    assert await second.publish(TWO) is True
    assert await first.publish(TWO) is False
    await first.close()
    await second.close()


async def test_several_servers_at_once_make_one_copy(stand: Stand) -> None:
    publishers = [stand.open() for _ in range(4)]
    await asyncio.gather(*(one.publish(TWO) for one in publishers))
    assert shown(stand) == TWO.x509_authorities
    for one in publishers:
        await one.close()


async def test_what_others_did_to_the_copy_is_mended(stand: Stand, publisher: BundlePublisher) -> None:
    await publisher.publish(ONE)
    stand.spoil()
    assert await publisher.publish(ONE) is True
    assert shown(stand) == ONE.x509_authorities
    stand.remove()
    assert await publisher.publish(ONE) is True
    assert shown(stand) == ONE.x509_authorities


async def test_what_is_somebody_elses_stays(stand: Stand, publisher: BundlePublisher) -> None:
    stand.occupy()
    before = stand.others()
    for _ in range(2):
        with pytest.raises(FailedPrecondition) as caught:
            await publisher.publish(ONE)
        assert (caught.value.reason, bool(caught.value.hint)) == ("PUBLISH_FOREIGN", True)
    assert stand.others() == before


async def test_another_trust_domains_copy_is_somebody_elses(stand: Stand, publisher: BundlePublisher) -> None:
    await publisher.publish(ONE)
    other = stand.open("other.org")
    with pytest.raises(FailedPrecondition) as caught:
        await other.publish(bundle("x", trust_domain=TrustDomain("other.org")))
    assert caught.value.reason == "PUBLISH_FOREIGN"
    assert shown(stand) == ONE.x509_authorities
    await other.close()


async def test_a_place_that_cannot_be_reached_is_told_and_used_again(stand: Stand, publisher: BundlePublisher) -> None:
    await publisher.publish(ONE)
    stand.block()
    with pytest.raises(BurgeeError) as caught:
        await publisher.publish(TWO)
    assert caught.value.reason in ("HTTP_UNREACHABLE", "PUBLISH_FILE")
    stand.heal()
    assert shown(stand) == ONE.x509_authorities
    assert await publisher.publish(TWO) is True
    assert shown(stand) == TWO.x509_authorities


def test_it_says_where_the_copy_is(publisher: BundlePublisher) -> None:
    assert "`" in publisher.where
