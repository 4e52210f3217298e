"""Who would be cut off by a step: behind, silent, given time, alive, not replaced; and who is not waited for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest

from ca.authority.state import AuthorityState
from ca.service.consumer_waits import ConsumerWaits
from tests.ca.identity import forge
from tests.ca.service.guard_lab import HOUR, GuardLab, agent_id, guard_lab, reasons


@pytest.fixture
async def lab() -> AsyncIterator[GuardLab]:
    async with guard_lab() as lab:
        yield lab


class TestActivation:
    async def test_nobody_is_cut_off_where_there_is_nobody(self, lab: GuardLab) -> None:
        assert await lab.activation() == []
        assert await lab.activation("K") == []

    async def test_an_agent_has_an_authority_when_it_says_so(self, lab: GuardLab) -> None:
        await lab.agent("one")
        await lab.workload("one", "web")
        lab.ack("one", "A")
        (blocker,) = await lab.activation()
        assert (blocker.kind, blocker.who, blocker.reason) == ("agent", str(agent_id("one")), "AGENT_BEHIND")
        assert "holds bundle 1" in blocker.detail
        assert "spiffe://example.org/web there would refuse" in blocker.detail
        assert blocker.until == lab.clock.now() + HOUR
        lab.ack("one", "A", "B")
        assert await lab.activation() == []

    async def test_an_agent_that_went_away_is_silent_whatever_it_said_before(self, lab: GuardLab) -> None:
        """Whoever looks for what an agent does with the bundle must not look on a machine that is off."""
        one = await lab.agent("one")
        lab.ack("one", "A")
        lab.acks.connected.discard(one)
        (blocker,) = await lab.activation()
        assert blocker.reason == "AGENT_SILENT"
        assert blocker.detail.startswith("is not connected; its last word: said at ")
        lab.ack("one", "A", "B")
        lab.acks.connected.discard(one)
        assert await lab.activation() == [], "what it has it has"

    async def test_a_jwt_key_is_acknowledged_in_the_same_way(self, lab: GuardLab) -> None:
        await lab.agent("one")
        lab.ack("one", "A", "J")
        assert reasons(await lab.activation("K")) == ["AGENT_BEHIND"]
        lab.ack("one", "A", "J", "K")
        assert await lab.activation("K") == []

    async def test_so_must_have_its_envoys(self, lab: GuardLab) -> None:
        await lab.agent("one")
        lab.ack("one", "A", "B", consumers=3, consumers_acked=1, waiting=("pid 7 (web)", "pid 8"))
        (blocker,) = await lab.activation()
        assert blocker.reason == "ENVOY_BEHIND"
        assert blocker.detail == "2 of its 3 Envoy streams have not taken it over: pid 7 (web), pid 8"

    async def test_what_an_agent_could_not_apply_it_does_not_have(self, lab: GuardLab) -> None:
        await lab.agent("one")
        lab.ack("one", "A", error="not applied: ValueError")
        assert "not applied: ValueError" in (await lab.activation())[0].detail
        lab.ack("one", "A", "B", error="not applied: ValueError")
        assert reasons(await lab.activation()) == ["AGENT_BEHIND"]

    async def test_an_agent_gone_for_ever_drops_out_when_its_svid_expires(self, lab: GuardLab) -> None:
        await lab.agent("gone", ttl=timedelta(minutes=30))
        await lab.agent("here", ttl=2 * HOUR)
        lab.ack("here", "A", "B")
        (blocker,) = await lab.activation()
        assert (blocker.who, blocker.reason) == (str(agent_id("gone")), "AGENT_SILENT")
        assert blocker.until == lab.clock.now() + timedelta(minutes=30)
        await lab.clock.advance(30 * 60 - 1)
        assert reasons(await lab.activation()) == ["AGENT_SILENT"]
        await lab.clock.advance(1)
        assert await lab.activation() == []

    async def test_a_renewed_svid_that_was_not_used_yet_counts_too(self, lab: GuardLab) -> None:
        now = lab.clock.now()
        await lab.agent("one", ttl=HOUR, pending_serial="7", pending_not_after=now + 2 * HOUR)
        assert (await lab.activation())[0].until == now + 2 * HOUR

    async def test_a_banned_agent_is_not_waited_for(self, lab: GuardLab) -> None:
        await lab.agent("bad", banned=True, serial="")
        assert await lab.activation() == []

    async def test_an_agent_that_polls_has_it_when_it_asked_since(self, lab: GuardLab) -> None:
        one = await lab.agent("spire")
        lab.acks.polled(one, lab.clock.now() - timedelta(seconds=5))
        first, second = await lab.activation()
        assert (first.reason, second.reason) == ("AGENT_BEHIND", "CONSUMERS_WAITED_FOR")
        assert second.who == "1 agents that poll"
        await lab.clock.advance(5)
        lab.acks.polled(one, lab.clock.now())
        assert reasons(await lab.activation()) == ["CONSUMERS_WAITED_FOR"]
        await lab.clock.advance(25)
        assert await lab.activation() == []

    async def test_an_agent_that_began_to_push_is_judged_by_what_it_says(self, lab: GuardLab) -> None:
        one = await lab.agent("one")
        lab.acks.polled(one, lab.clock.now())
        await lab.clock.advance(60)
        lab.ack("one", "A")
        assert reasons(await lab.activation()) == ["AGENT_BEHIND"]

    async def test_beside_other_servers_who_is_not_heard_here_gets_a_time(self, lab: GuardLab) -> None:
        """What agents tell another server is not known here, and its push is as quick as ours."""
        lab.known.append(lab.authority("B", AuthorityState.ACTIVE, server="two", authority_id="theirs"))
        await lab.agent("elsewhere")
        late = await lab.agent("here")
        lab.ack("here", "A")
        lab.acks.connected.add(late)
        first, second = await lab.activation()
        assert (first.who, first.reason) == (str(late), "AGENT_BEHIND")
        assert second.who == "1 agents without a stream to this server"
        assert second.until == lab.clock.now() + timedelta(seconds=30)
        lab.ack("here", "A", "B")
        await lab.clock.advance(30)
        assert await lab.activation() == []

    async def test_a_server_that_is_gone_for_good_excuses_nobody(self, lab: GuardLab) -> None:
        """Its authorities have ended."""
        over = lab.clock.now()
        lab.known.append(lab.authority("B", AuthorityState.OLD, server="two", authority_id="theirs", not_after=over))
        await lab.agent("gone")
        assert reasons(await lab.activation()) == ["AGENT_SILENT"]

    async def test_workload_api_streams_get_their_time(self, lab: GuardLab) -> None:
        await lab.agent("one")
        lab.ack("one", "A", "B", workload_streams=4)
        (blocker,) = await lab.activation()
        assert (blocker.kind, blocker.who) == ("consumer", "4 Workload API streams")
        assert blocker.until == lab.clock.now() + timedelta(seconds=10)
        await lab.clock.advance(9.9)
        assert len(await lab.activation()) == 1
        await lab.clock.advance(0.1)
        assert await lab.activation() == []

    async def test_downstream_servers_get_theirs(self, lab: GuardLab) -> None:
        await lab.downstream("below")
        (blocker,) = await lab.activation()
        assert (blocker.who, blocker.until) == ("1 downstream servers", lab.clock.now() + timedelta(seconds=120))

    async def test_istios_proxies_get_the_life_of_their_certificates(self) -> None:
        """They learn of a root with the next one. The server's own certificate for them is none of theirs."""
        async with guard_lab(waits=ConsumerWaits(istio_proxies=timedelta(minutes=40))) as lab:
            await lab.record("A", spiffe_id="spiffe://example.org/spire/server", agent="listener:istio")
            assert await lab.activation() == []
            for account in ("shop/web", "istio-system/ztunnel@n1"):
                await lab.record("A", spiffe_id="spiffe://example.org/ns/a/sa/b", agent=f"istio:main:{account}")
            (blocker,) = await lab.activation()
            assert (blocker.kind, blocker.who) == ("consumer", "2 certificates of Istio's proxies")
            assert blocker.until == lab.clock.now() + timedelta(minutes=40)
            await lab.clock.advance(40 * 60)
            assert await lab.activation() == []

    async def test_readers_of_files_get_what_is_configured(self) -> None:
        async with guard_lab(has_files=True, waits=ConsumerWaits(files=timedelta(minutes=7))) as lab:
            (blocker,) = await lab.activation()
            assert (blocker.who, blocker.until) == (
                "readers of the bundle file",
                lab.clock.now() + timedelta(minutes=7),
            )

    async def test_time_runs_from_the_publication_and_not_from_the_making(self, lab: GuardLab) -> None:
        """A crash may come between the two."""
        lab.publish("A", "J")
        await lab.clock.advance(3600)
        await lab.agent("one")
        lab.publish("A", "B", "J", "K")
        lab.ack("one", "A", "B", workload_streams=1)
        assert (await lab.activation())[0].until == lab.clock.now() + timedelta(seconds=10)

    async def test_below_an_upstream_the_root_is_what_agents_must_have(self, lab: GuardLab) -> None:
        middle = forge.intermediate(lab.roots["B"], "middle")
        lab.roots["M"] = middle
        below = lab.authority("M", AuthorityState.PREPARED)
        lab.known.append(below)
        await lab.agent("one")
        lab.ack("one", "A")
        assert reasons(await lab.activation("M")) == ["AGENT_BEHIND"]
        lab.ack("one", "A", "B")
        assert await lab.activation("M") == []


class TestRemoval:
    async def test_live_svids_are_named_with_identity_and_node(self, lab: GuardLab) -> None:
        await lab.agent("one", issuer="B")
        await lab.workload("one", "web")
        await lab.workload("one", "db", "B")
        (blocker,) = await lab.removal()
        assert (blocker.kind, blocker.who, blocker.reason) == ("svid", "spiffe://example.org/web", "SVID_LIVE")
        assert str(agent_id("one")) in blocker.detail
        assert blocker.until == lab.clock.now() + HOUR

    async def test_an_svid_is_superseded_by_the_next_for_the_same_agent_and_entry(self, lab: GuardLab) -> None:
        await lab.agent("one", issuer="B")
        await lab.agent("two", issuer="B")
        await lab.workload("one", "web")
        await lab.workload("two", "web")
        await lab.workload("one", "web", "B")
        assert [str(agent_id("two")) in b.detail for b in await lab.removal()] == [True]
        await lab.workload("two", "web", "B")
        assert await lab.removal() == []

    async def test_what_has_ended_is_not_alive(self, lab: GuardLab) -> None:
        await lab.agent("one", issuer="B", ttl=3 * HOUR)
        await lab.workload("one", "web")
        assert len(await lab.removal()) == 1
        await lab.clock.advance(3599)
        assert len(await lab.removal()) == 1
        await lab.clock.advance(1)
        assert await lab.removal() == []

    async def test_our_agents_must_have_said_that_they_have_the_successor(self, lab: GuardLab) -> None:
        await lab.agent("one", issuer="B")
        await lab.workload("one", "web")
        lab.holds("one", A=1)
        await lab.workload("one", "web", "B")
        (blocker,) = await lab.removal()
        assert (blocker.reason, blocker.who) == ("SVID_NOT_REPLACED", "spiffe://example.org/web")
        assert "has not said that it has it" in blocker.detail
        lab.holds("one", B=1)
        assert await lab.removal() == []

    async def test_what_was_said_here_before_an_agent_went_to_another_server_counts_no_more(
        self, lab: GuardLab
    ) -> None:
        lab.known.append(lab.authority("B", AuthorityState.ACTIVE, server="two", authority_id="theirs"))
        one = await lab.agent("one", issuer="B")
        await lab.workload("one", "web")
        lab.holds("one", A=1)
        await lab.workload("one", "web", "B")
        lab.acks.connected.add(one)
        assert reasons(await lab.removal()) == ["SVID_NOT_REPLACED"]
        lab.acks.connected.discard(one)
        assert await lab.removal() == []

    async def test_so_must_have_its_envoys_until_the_old_one_ends_anyhow(self, lab: GuardLab) -> None:
        await lab.agent("one", issuer="B", ttl=3 * HOUR)
        await lab.workload("one", "web")
        await lab.workload("one", "web", "B", end=lab.clock.now() + 3 * HOUR)
        lab.holds("one", B=1, consumers=2, acked=1)
        (blocker,) = await lab.removal()
        assert "1 Envoy streams have not taken over the successor" in blocker.detail
        await lab.clock.advance(3600)
        assert await lab.removal() == []

    async def test_an_agents_own_svid_counts_until_it_uses_the_next(self, lab: GuardLab) -> None:
        one = await lab.agent("one")
        (blocker,) = await lab.removal()
        assert (blocker.kind, blocker.reason) == ("agent", "AGENT_SVID_LIVE")
        await lab.record("B", spiffe_id=str(one), agent=str(one), serial="77")
        held = lab.agents.get(one)
        assert held is not None
        pending = replace(held, pending_serial="77", pending_not_after=held.not_after)
        async with lab.agents.lock:
            lab.agents.adopt(one, pending)
        assert len(await lab.removal()) == 1  # handed out, and not used yet
        async with lab.agents.lock:
            lab.agents.adopt(one, replace(pending, serial="77", pending_serial="", pending_not_after=None))
        assert await lab.removal() == []

    async def test_what_a_banned_agent_has_may_break(self, lab: GuardLab) -> None:
        await lab.agent("bad", banned=True, serial="")
        await lab.workload("bad", "web")
        assert await lab.removal() == []

    async def test_an_evicted_agents_workloads_are_alive_all_the_same(self, lab: GuardLab) -> None:
        one = await lab.agent("one")
        await lab.workload("one", "web")
        async with lab.agents.lock:
            lab.agents.adopt(one, None)
        assert [b.who for b in await lab.removal()] == ["spiffe://example.org/web"]

    async def test_the_servers_own_svid_counts_and_is_superseded(self, lab: GuardLab) -> None:
        await lab.record("A", spiffe_id="spiffe://example.org/spire/server")
        assert reasons(await lab.removal()) == ["SERVER_SVID_LIVE"]
        await lab.record("B", spiffe_id="spiffe://example.org/spire/server")
        assert await lab.removal() == []

    async def test_what_was_minted_lives_until_its_end(self, lab: GuardLab) -> None:
        await lab.record("A", spiffe_id="spiffe://example.org/ci")
        await lab.record("B", spiffe_id="spiffe://example.org/ci")
        (blocker,) = await lab.removal()
        assert "minted by an administrator" in blocker.detail

    async def test_so_does_the_authority_of_a_downstream_server(self, lab: GuardLab) -> None:
        await lab.downstream("below")
        await lab.downstream("below", "B")
        (blocker,) = await lab.removal()
        assert (blocker.kind, blocker.who) == ("downstream-ca", "spiffe://example.org/below")
        assert blocker.until == lab.clock.now() + 24 * HOUR

    async def test_a_jwt_key_stays_until_its_last_token_ends(self, lab: GuardLab) -> None:
        await lab.record("J", spiffe_id="spiffe://example.org/web", kind="jwt", end=lab.clock.now() + HOUR)
        await lab.record("J", spiffe_id="spiffe://example.org/web", kind="jwt", end=lab.clock.now() + HOUR / 2)
        assert await lab.removal("K") == []
        (blocker,) = await lab.removal("J")
        assert (blocker.kind, blocker.until) == ("token", lab.clock.now() + HOUR)
        assert "up to 2 JWT-SVIDs" in blocker.detail
        await lab.clock.advance(3600)
        assert await lab.removal("J") == []

    async def test_tokens_and_svids_in_one_batch_are_told_apart(self, lab: GuardLab) -> None:
        await lab.store.issuance.append(
            [
                lab.one("A", "spiffe://example.org/web", str(agent_id("one")), "web", "x509", "", None),
                lab.one("J", "spiffe://example.org/web", str(agent_id("one")), "web", "jwt", "", None),
            ]
        )
        assert reasons(await lab.removal("A")) == ["SVID_LIVE"]
        assert reasons(await lab.removal("J")) == ["TOKENS_LIVE"]

    async def test_svids_of_an_intermediate_hang_on_the_root_above_it(self, lab: GuardLab) -> None:
        lab.roots["M"] = forge.intermediate(lab.roots["A"], "middle")
        lab.known.append(lab.authority("M", AuthorityState.OLD))
        await lab.agent("one", issuer="B")
        await lab.workload("one", "web", "M")
        assert [b.who for b in await lab.removal("A")] == ["spiffe://example.org/web"]
        assert [b.who for b in await lab.removal("M")] == ["spiffe://example.org/web"]

    async def test_what_is_recorded_later_is_seen(self, lab: GuardLab) -> None:
        """The index goes on from where it was."""
        assert await lab.removal() == []
        await lab.agent("one", issuer="B")
        await lab.workload("one", "web")
        assert len(await lab.removal()) == 1
        await lab.clock.advance(20)  # the batches are settled, and not read again
        await lab.workload("one", "db")
        assert len(await lab.removal()) == 2
        await lab.workload("one", "web", "B")
        await lab.workload("one", "db", "B")
        assert await lab.removal() == []
