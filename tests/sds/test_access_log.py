"""The access-log service without a proxy: only attested callers, only their own target, bounded, nothing believed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
import pytest_asyncio
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage

from ca.runtime.decision_log import LOST
from ca.runtime.rpc_errors import error_of
from policy.access_log import Proxy, http_record, tcp_record
from tests.sds.lab import WEB, entry, eventually
from tests.sds.policy_lab import PolicyLab

METHOD = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"
ID = "01234567-89ab-cdef-0123-456789abcdef"
NOW = datetime(2026, 11, 26, 10, 0, tzinfo=UTC)
PROXY = Proxy(target="spiffe://td/t", prefix="p1", node="n", revision=3)


def message(log_name: str = "burgee/p1") -> Any:
    found = StreamAccessLogsMessage()
    found.identifier.log_name = log_name
    found.identifier.node.id = "proxy-1"
    return found


def add_http(
    found: Any, *, name: str = "a/p#0", result: str = "allowed", id: str = ID, details: str = "via_upstream"
) -> Any:
    made = found.http_logs.log_entry.add()
    made.request.request_id, made.request.path, made.request.authority = id, "/x?q=1", "shop"
    made.request.request_method = 1
    made.response.response_code_details = details
    if result:
        marks = made.common_properties.metadata.filter_metadata["envoy.filters.http.rbac"]
        marks["burgee_enforced_effective_policy_id"], marks["burgee_enforced_engine_result"] = name, result
    return made


@pytest_asyncio.fixture
async def lab() -> AsyncIterator[PolicyLab]:
    async with PolicyLab() as found:
        found.snapshot(entry("t"))
        yield found


async def send(lab: PolicyLab, *messages: Any, metadata: Any = ()) -> str:
    """The reason of a refusal, or nothing."""
    async with grpc.aio.insecure_channel(f"unix:{lab.policy_socket}") as channel:
        raw = [m if isinstance(m, bytes) else m.SerializeToString() for m in messages]
        try:
            await channel.stream_unary(METHOD)(iter(raw), metadata=metadata, timeout=20)
        except grpc.aio.AioRpcError as error:
            return error_of(error).reason
    return ""


async def test_the_target_is_who_sends_it(lab: PolicyLab) -> None:
    found = message()
    add_http(found).common_properties.custom_tags["target"] = "spiffe://example.org/other"
    assert await send(lab, found) == ""
    record = lab.records[0]
    assert (record.target, record.id, record.proxy, record.path) == (
        "spiffe://example.org/t",
        f"p1-{ID}",
        "proxy-1",
        "/x",
    )
    assert await send(lab, found, metadata=[("x-burgee-target", "spiffe://example.org/other")]) == "TARGET_NOT_HELD"


async def test_who_holds_several_identities_says_for_which(lab: PolicyLab) -> None:
    lab.snapshot(entry("t", "/t", WEB), entry("u", "/u", WEB))
    found = message()
    add_http(found)
    assert await send(lab, found) == "TARGET_AMBIGUOUS"
    assert await send(lab, found, metadata=[("x-burgee-target", "spiffe://example.org/u")]) == ""
    assert [r.target for r in lab.records] == ["spiffe://example.org/u"]


async def test_who_has_no_identity_logs_nothing(lab: PolicyLab) -> None:
    lab.snapshot()
    found = message()
    add_http(found)
    assert await send(lab, found) == "NO_IDENTITY"
    assert not lab.records


@pytest.mark.parametrize("name", ["", "burgee", "burgee/", "burgee/A", "burgee/" + "x" * 33, "burgee/p1\n", "other/p1"])
async def test_a_log_whose_name_has_no_prefix_is_not_ours(lab: PolicyLab, name: str) -> None:
    assert await send(lab, message(name)) == "LOG_NAME"


async def test_many_streams_of_a_workload_bring_no_more_than_one(lab: PolicyLab) -> None:
    lab.access_logs._max_per_second = 50
    found = message()
    for _ in range(200):
        add_http(found)

    async def keeping_open() -> AsyncIterator[bytes]:
        yield found.SerializeToString()
        await over.wait()

    over = asyncio.Event()
    async with grpc.aio.insecure_channel(f"unix:{lab.policy_socket}") as channel:
        calls = [channel.stream_unary(METHOD)(keeping_open(), timeout=20) for _ in range(10)]
        before = LOST._value.get()
        await eventually(lambda: len(lab.records) + LOST._value.get() - before >= 2000)
        over.set()
        await asyncio.gather(*calls)
    assert 50 <= len(lab.records) < 450


async def test_junk_and_floods_are_bounded(lab: PolicyLab) -> None:
    lab.access_logs._max_per_second = 50
    assert await send(lab, b"\xff" * 100) == "LOG_MALFORMED"
    before = LOST._value.get()
    found = message()
    for _ in range(500):
        add_http(found)
    assert await send(lab, found) == ""
    assert 50 <= len(lab.records) <= 300
    assert LOST._value.get() - before == 500 - len(lab.records)
    huge = message()
    for _ in range(20_000):
        add_http(huge)
    assert await send(lab, huge) != ""


async def test_an_open_log_is_known_by_its_process(lab: PolicyLab) -> None:
    async with grpc.aio.insecure_channel(f"unix:{lab.policy_socket}") as channel:
        call = channel.stream_unary(METHOD)()
        await call.write(message().SerializeToString())
        await eventually(lambda: lab.access_logs.logged(lab.caller.pid or 0))
        call.cancel()
    await eventually(lambda: not lab.access_logs.logged(lab.caller.pid or 0))


@pytest.mark.parametrize(
    ("name", "result", "expected"),
    [
        ("a/p#2", "allowed", (True, "ALLOWED_BY_RULE", "a/p", 2)),
        ("a/p.x#0", "denied", (False, "DENIED_BY_RULE", "a/p.x", 0)),
        ("burgee/default", "denied", (False, "NOTHING_ALLOWS", None, None)),
        ("burgee/open-namespace", "allowed", (True, "NAMESPACE_IS_OPEN", None, None)),
        ("burgee/several-names", "denied", (False, "CERTIFICATE_NAMES", None, None)),
        ("burgee/path-not-normal", "denied", (False, "PATH_NOT_NORMAL", None, None)),
        ("burgee/not-delivered", "denied", (False, "POLICY_NOT_DELIVERED", None, None)),
        ("burgee/cannot-ask", "denied", (False, "CANNOT_ASK", None, None)),
        ("", "denied", (False, "NOTHING_ALLOWS", None, None)),
        ("x#y", "denied", (False, "NOTHING_ALLOWS", None, None)),
    ],
)
def test_the_name_of_a_verdict_is_its_reason(name: str, result: str, expected: tuple[Any, ...]) -> None:
    record = http_record(add_http(message(), name=name, result=result), PROXY, now=NOW)
    assert record is not None
    assert (record.allowed, record.reason, record.policy, record.rule) == expected


def test_what_was_asked_is_known_already_unless_nobody_answered() -> None:
    assert http_record(add_http(message(), name="burgee/ask", details="ext_authz_denied"), PROXY, now=NOW) is None
    record = http_record(add_http(message(), name="burgee/ask", details="ext_authz_error"), PROXY, now=NOW)
    assert record is not None
    assert (record.allowed, record.reason) == (False, "ASK_FAILED")


def test_a_refused_token_is_a_decision_and_an_error_of_http_is_none() -> None:
    record = http_record(add_http(message(), result="", details="jwt_authn_access_denied{Jwt_expired}"), PROXY, now=NOW)
    assert record is not None
    assert record.reason == "TOKEN_INVALID"
    assert http_record(add_http(message(), result="", details="http1.codec_error"), PROXY, now=NOW) is None


@pytest.mark.parametrize("id", ["mine", "", ID.upper(), ID + "x", "../" + ID, ID[:-1] + "\n"])
def test_an_id_that_no_envoy_makes_is_not_believed(id: str) -> None:
    assert http_record(add_http(message(), id=id), PROXY, now=NOW) is None
    assert http_record(add_http(message()), PROXY, now=NOW) is not None


def test_shadow_and_claims_and_names_are_told() -> None:
    made = add_http(message())
    marks = made.common_properties.metadata.filter_metadata["envoy.filters.http.rbac"]
    marks["burgee_shadow_engine_result"], marks["burgee_shadow_effective_policy_id"] = "denied", "a/new#1"
    made.common_properties.metadata.filter_metadata["envoy.filters.http.jwt_authn"]["payload"] = {"sub": "alice"}
    tls = made.common_properties.tls_properties
    tls.peer_certificate_properties.subject_alt_name.add(uri="spiffe://td/web")
    record = http_record(made, PROXY, now=NOW)
    assert record is not None
    assert (record.shadow, record.shadow_policy, record.shadow_rule) == (False, "a/new", 1)
    assert record.claims == {"sub": "alice"}
    assert record.principal == "td/web"
    assert record.masked == ("headers", "metadata")  # the proxy does not tell them
    made.request.request_method = 0
    other = http_record(made, PROXY, now=NOW)
    assert other is not None
    assert (other.method, other.masked) == (None, ("headers", "metadata", "method"))
    tls.peer_certificate_properties.subject_alt_name.add(uri="spiffe://td/admin")
    several = http_record(made, PROXY, now=NOW)
    assert several is not None
    assert several.principal is None


def test_a_time_that_cannot_be_is_not_believed() -> None:
    made = add_http(message())
    for seconds, believed in ((NOW + timedelta(minutes=1), True), (NOW + timedelta(days=9), False)):
        made.common_properties.start_time.FromDatetime(seconds)
        record = http_record(made, PROXY, now=NOW)
        assert record is not None
        assert (record.at == seconds) is believed
    made.common_properties.start_time.seconds = 1 << 62
    record = http_record(made, PROXY, now=NOW)
    assert record is not None
    assert record.at == NOW


def test_of_a_connection_the_end_tells_who_was_refused() -> None:
    made = message().tcp_logs.log_entry.add()
    common = made.common_properties
    common.stream_id = ID
    record = tcp_record(made, PROXY, now=NOW)
    assert record is not None
    assert (record.allowed, record.http, record.id) == (True, False, f"p1-{ID}")
    common.connection_termination_details = "rbac_access_denied_matched_policy[a/p#1]"
    record = tcp_record(made, PROXY, now=NOW)
    assert record is not None
    assert (record.allowed, record.policy, record.rule) == (False, "a/p", 1)
