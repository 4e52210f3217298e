"""An acknowledgement as a value: what many agents say is kept once, what one makes up is not kept for ever."""

from __future__ import annotations

import secrets
import sys
from datetime import UTC, datetime

from ca.api.convert.acks import MAX_ERROR, MAX_NAME, MAX_PROXIES, acknowledged
from ca.proto.burgee import node_pb2 as pb

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_agents_that_name_the_same_authority_share_the_name() -> None:
    wires = [pb.Ack(kind="bundle", authorities=["ab12"]).SerializeToString() for _ in range(2)]
    (one,), (two,) = (acknowledged(pb.Ack.FromString(wire), NOW).authorities for wire in wires)
    assert one is two


def test_names_that_an_agent_made_up_are_not_interned() -> None:
    """Interned strings are immortal in Python 3.12.0 to 3.12.4."""
    made_up = secrets.token_hex(MAX_NAME)  # nobody in this process has interned it for a reason of his own
    (name,) = acknowledged(pb.Ack(kind="entry", authorities=[made_up]), NOW).authorities
    same = "".join(made_up[:MAX_NAME])
    assert name == same
    assert name is not same
    assert sys.intern(same) is same


def test_what_each_proxy_made_of_policies_is_bounded_and_safe_to_show() -> None:
    loud = pb.ProxyState(
        proxy="p\n" + "x" * MAX_NAME,
        pid=7,
        spiffe_id="spiffe://td/web",
        resource="burgee.http.policy",
        revision=3,
        state="nacked",
        detail="\x1b[31m" + "d" * 2 * MAX_ERROR,
        unlogged=True,
        in_force=2,
    )
    ack = pb.Ack(kind="policy", revision=4, proxies=[loud, *[pb.ProxyState(state="of the future")] * 2 * MAX_PROXIES])
    found = acknowledged(pb.Ack.FromString(ack.SerializeToString()), NOW)
    assert len(found.proxies) == MAX_PROXIES
    first, second = found.proxies[:2]
    assert (first.pid, first.spiffe_id, first.revision, first.state, first.unlogged, first.in_force) == (
        7,
        "spiffe://td/web",
        3,
        "nacked",
        True,
        2,
    )
    assert first.proxy.isprintable()
    assert first.detail.isprintable()
    assert len(first.detail) < 2 * MAX_ERROR
    assert second.state == ""
