from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from ca.errors import Denied, Unavailable
from ca.identity.selector import Selector
from sds.cache import Subscription
from sds.feed import Change, ResumeToken, Snapshot
from sds.idle import Idle
from tests.sds.lab import API, FED, WEB, Authority, Lab, ended, entry
from tests.support.clock import FakeClock

TOKEN = ResumeToken("e", 1)


@pytest.fixture
async def lab():
    lab = Lab(clock=FakeClock())
    yield lab
    await lab.keys.close()


def join(lab: Lab, *selectors: Selector, needs_svid: bool = True) -> Subscription:
    return lab.cache.subscribe(frozenset(selectors or (WEB,)), needs_svid=needs_svid)


async def woken(subscription: Subscription) -> bool:
    try:
        async with asyncio.timeout(0.01):
            await subscription.changed()
    except TimeoutError:
        return False
    return True


def ids(lab: Lab, subscription: Subscription) -> list[str]:
    return [svid.entry_id for _, svid in lab.cache.content(subscription.view).svids]


async def test_nobody_is_served_before_the_first_sync(lab: Lab):  # E26
    with pytest.raises(Unavailable) as refused:
        join(lab)
    assert refused.value.reason == "AGENT_STARTING"
    with pytest.raises(Unavailable):
        await lab.cache.wait_ready(0.01)
    lab.cache.apply(Snapshot(token=TOKEN, entries=(entry("a"),)))
    assert not lab.cache.ready  # entries without the own bundle are not enough
    lab.snapshot()
    await lab.cache.wait_ready(0.01)


async def test_callers_with_the_same_selectors_share_the_bytes(lab: Lab):
    lab.snapshot(entry("a"))
    await lab.rotator.round()
    first, second = join(lab), join(lab)
    assert first.view is second.view
    assert lab.cache.content(first.view).x509_svids is lab.cache.content(second.view).x509_svids


async def test_only_those_concerned_are_woken(lab: Lab):
    lab.snapshot(entry("a"), entry("b", "", API))
    await lab.rotator.round()
    web, api = join(lab), join(lab, API)
    await woken(web), await woken(api)
    lab.put(entry("c"))
    assert await woken(web)
    assert not await woken(api)
    lab.put(bundles=(lab.authority.bundle(Authority(now=lab.clock.now())),))
    assert await woken(web)
    assert await woken(api)


async def test_no_change_wakes_nobody(lab: Lab):  # F6
    lab.snapshot(entry("a"))
    await lab.rotator.round()
    subscription = join(lab)
    await woken(subscription)
    lab.put(entry("a"), bundles=(lab.authority.bundle(),))
    lab.snapshot(entry("a"))
    lab.cache.tick()
    assert not await woken(subscription)


async def test_roots_are_told_before_leaves(lab: Lab):
    lab.snapshot(entry("a"))
    await lab.rotator.round()
    leaves, roots = join(lab), join(lab)
    roots.first = True
    await woken(leaves), await woken(roots)
    order: list[str] = []

    async def wait(name: str, subscription: Subscription) -> None:
        await subscription.changed()
        order.append(name)

    tasks = [asyncio.create_task(wait("leaf", leaves)), asyncio.create_task(wait("root", roots))]
    await asyncio.sleep(0)
    lab.put(bundles=(lab.authority.bundle(Authority(now=lab.clock.now())),))
    await asyncio.gather(*tasks)
    assert order == ["root", "leaf"]


async def test_a_caller_waits_for_all_its_svids_but_not_for_ever(lab: Lab):
    lab.server.refuse = {"b"}
    lab.snapshot(entry("a"), entry("b"))
    subscription = join(lab)
    await lab.rotator.round()
    assert ids(lab, subscription) == ["a"]
    assert not subscription.view.settled
    await lab.clock.advance(5)  # type: ignore[attr-defined]
    lab.cache.tick()
    assert subscription.view.settled
    assert await woken(subscription)
    # What was waited for in vain is not waited for again, what is new is.
    lab.put(entry("c"))
    assert not subscription.view.settled
    await lab.rotator.round()
    assert ids(lab, subscription) == ["a", "c"]


async def test_an_expired_svid_is_in_no_content(lab: Lab):
    lab.snapshot(entry("a"))
    await lab.rotator.round()
    subscription = join(lab)
    await woken(subscription)
    assert ids(lab, subscription) == ["a"]
    lab.clock.jump(3600)  # type: ignore[attr-defined]
    assert ids(lab, subscription) == []  # also without a tick
    assert await woken(subscription)


async def test_the_next_expiry_is_that_of_an_svid_that_still_holds(lab: Lab):
    """One that is over hurries nobody any more: a fleet whose SVIDs have all ended must not hammer its server."""
    assert lab.cache.next_expiry() is None
    lab.server.ttl_seconds = 60
    lab.snapshot(entry("a"))
    await lab.rotator.round()
    lab.server.ttl_seconds = 3600
    lab.put(entry("b"))
    await lab.rotator.round()
    first, second = (svid.not_after for svid in lab.cache.svids())
    assert lab.cache.next_expiry() == first < second
    lab.clock.jump(60)  # type: ignore[attr-defined]
    assert lab.cache.next_expiry() == second
    lab.clock.jump(3600)  # type: ignore[attr-defined]
    assert lab.cache.next_expiry() is None


async def test_time_alone_tells_the_streams(lab: Lab):
    lab.snapshot(entry("a"), entry("b", expires_at=lab.clock.now() + timedelta(seconds=100)))
    await lab.rotator.round()
    subscription = join(lab)
    await woken(subscription)
    lab.clock.jump(98)  # type: ignore[attr-defined]
    assert lab.cache.tick() == pytest.approx(2)
    lab.clock.jump(2)  # type: ignore[attr-defined]
    lab.cache.tick()
    assert await woken(subscription)
    assert ids(lab, subscription) == ["a"]


async def test_an_entry_that_changes_its_id_loses_its_svid_at_once(lab: Lab):
    lab.snapshot(entry("a", "/old"))
    await lab.rotator.round()
    old = lab.cache.svid("a")
    subscription = join(lab)
    lab.put(entry("a", "/new"))
    assert ids(lab, subscription) == []
    assert old is not None
    lab.cache.put_svids([old])  # an answer to a request from before the change
    assert ids(lab, subscription) == []


async def test_a_hint_is_resent_without_a_new_svid(lab: Lab):
    lab.snapshot(entry("a"))
    await lab.rotator.round()
    subscription = join(lab)
    before = lab.cache.content(subscription.view).x509_svids
    lab.put(entry("a", hint="h", revision_number=1))
    await lab.rotator.round()
    assert lab.cache.content(subscription.view).x509_svids != before
    assert lab.server.asked == ["a"]


async def test_a_snapshot_is_everything_and_a_change_is_not(lab: Lab):
    lab.snapshot(entry("a"), entry("b"), federated=True)
    lab.cache.apply(Change(token=TOKEN, removed_bundles=(FED,), removed_entries=("b", "unknown")))
    assert [e.id for e in lab.cache.entries()] == ["a"]
    assert lab.cache.bundle(FED) is None
    lab.snapshot(entry("c"))
    assert [e.id for e in lab.cache.entries()] == ["c"]
    own = lab.authority.trust_domain
    lab.cache.apply(Change(token=TOKEN, removed_bundles=(own,)))
    assert lab.cache.bundle(own) is not None  # the own bundle changes and never goes


async def test_views_are_kept_while_used_and_some_beyond(lab: Lab):
    lab.cache._idle = Idle(3)
    lab.snapshot(entry("a"))
    subscriptions = [join(lab, Selector("unix", f"uid:{n}")) for n in range(10)]
    assert lab.cache.streams() == 10
    for subscription in subscriptions:
        lab.cache.unsubscribe(subscription)
        lab.cache.unsubscribe(subscription)
    assert lab.cache.streams() == 0
    assert len(lab.cache._live) == 0
    assert len(lab.cache._idle) == 3
    idle = subscriptions[-1].view
    lab.put(entry("n", "", Selector("unix", "uid:9")))
    again = join(lab, Selector("unix", "uid:9"))
    assert again.view is idle
    assert [e.id for e in lab.cache.content(again.view).entries] == ["n"]


async def test_only_streams_that_need_svids_put_them_in_use(lab: Lab):
    lab.snapshot(entry("a"), entry("b", "", API))
    join(lab, needs_svid=False)
    assert lab.cache.in_use() == set()
    join(lab, API)
    assert lab.cache.in_use() == {"b"}


async def test_federated_bundles_are_the_union_of_the_entries(lab: Lab):
    lab.snapshot(entry("a", federates_with=(FED,)), entry("b"), federated=True)
    content = lab.cache.content(join(lab).view)
    assert [forms.id for forms in content.bundles] == ["spiffe://example.org", "spiffe://fed.org"]
    lab.put(entry("a"))
    assert [forms.id for forms in lab.cache.content(join(lab).view).bundles] == ["spiffe://example.org"]


async def test_clearing_ends_every_stream(lab: Lab):
    lab.snapshot(entry("a"))
    await lab.rotator.round()
    subscription = join(lab)
    lab.cache.clear(lambda: Denied("banned", reason="AGENT_BANNED"))
    assert isinstance(await ended(subscription), Denied)
    assert not lab.cache.ready
    assert lab.cache.svids() == []
    with pytest.raises(Denied):
        lab.cache.content(subscription.view)
    lab.snapshot(entry("a"))
    join(lab)


async def test_dropping_svids_leaves_the_entries(lab: Lab):
    lab.snapshot(entry("a"))
    await lab.rotator.round()
    lab.cache.drop_svids(["a", "b"])
    assert lab.cache.svid("a") is None
    assert lab.cache.entry("a") == replace(entry("a"))
