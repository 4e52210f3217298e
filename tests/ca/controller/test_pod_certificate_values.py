"""PodCertificateRequests as values, whatever stands in them; and what is written as an answer."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.controller.pod_certificate_answer import MAX_MESSAGE_CHARACTERS, Issued, is_final, issued_status, refused_status
from ca.controller.pod_certificate_request import MAX_STUB_CHARACTERS, Request, list_path, read_request
from ca.errors import BurgeeError, Denied, FailedPrecondition, InvalidArgument, Unavailable

SIGNER = "burgee.dev/svid"
NOW = datetime(2026, 5, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def value(**changes: Any) -> dict[str, Any]:
    spec = {
        "signerName": SIGNER,
        "podName": "p",
        "podUID": "u",
        "serviceAccountName": "default",
        "serviceAccountUID": "s",
        "nodeName": "n",
        "nodeUID": "m",
        "maxExpirationSeconds": 86400,
        "stubPKCS10Request": base64.b64encode(b"stub").decode(),
    }
    meta = {"namespace": "shop", "name": "r", "uid": "1", "resourceVersion": "7", "managedFields": [{"manager": "x"}]}
    return {"metadata": meta, "spec": spec | changes, "status": {}}


def read(**changes: Any) -> Request:
    found = read_request(value(**changes), SIGNER)
    assert found is not None
    return found


def test_a_request_is_read() -> None:
    found = read()
    assert (found.pod, found.node_name, found.max_seconds, found.csr()) == ("shop/p", "n", 86400, b"stub")
    assert found.path.endswith("/namespaces/shop/podcertificaterequests/r")
    assert found.wanted_id() is None
    assert found.whole["metadata"]["resourceVersion"] == "7"
    assert "managedFields" not in found.whole["metadata"]


@pytest.mark.parametrize("kind", ["Issued", "Denied", "Failed"])
def test_what_is_answered_is_left_alone(kind: str) -> None:
    assert read_request(value() | {"status": {"conditions": [{"type": kind}]}}, SIGNER) is None


def test_what_is_not_ours_or_not_whole_is_left_alone() -> None:
    for changes in (
        {"signerName": "other.example.com/svid"},
        {"podUID": ""},
        {"nodeUID": None},
        {"maxExpirationSeconds": "3600"},
        {"maxExpirationSeconds": True},
    ):
        assert read_request(value(**changes), SIGNER) is None
    assert read_request(value() | {"status": {"certificateChain": "x"}}, SIGNER) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda some: st.lists(some) | st.dictionaries(st.text(), some),
)
parts = st.sampled_from(["metadata", "spec", "status"])


@settings(max_examples=60, deadline=None)
@given(parts, json_values)
def test_whatever_stands_there_is_read_or_left_alone(part: str, found: Any) -> None:
    request = read_request(value() | {part: found}, SIGNER)
    assert request is None or isinstance(request, Request)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["stubPKCS10Request", "unverifiedUserAnnotations", "podName"]), json_values)
def test_whatever_the_spec_holds_ends_in_an_error_of_ours(name: str, found: Any) -> None:
    request = read_request(value(**{name: found}), SIGNER)
    if request is None:
        return
    for look in (request.csr, request.wanted_id):
        refusal = _refusal(look)
        assert refusal is None or is_final(refusal), refusal.reason


def _refusal(look: Callable[[], object]) -> BurgeeError | None:
    try:
        look()
    except BurgeeError as error:
        return error
    return None


def test_a_stub_has_its_bounds() -> None:
    for stub, expected in (("A" * (MAX_STUB_CHARACTERS + 4), InvalidArgument), ("%", InvalidArgument)):
        with pytest.raises(expected):
            read(stubPKCS10Request=stub).csr()
    with pytest.raises(FailedPrecondition):
        read(stubPKCS10Request="").csr()


def test_annotations_name_an_identity_and_nothing_else() -> None:
    asked = {"burgee.dev/spiffe-id": "spiffe://example.org/a"}
    assert str(read(unverifiedUserAnnotations=asked).wanted_id()) == "spiffe://example.org/a"
    for wrong, kind in (({"a.b/c": ""}, Denied), ({"burgee.dev/spiffe-id": "x"}, InvalidArgument)):
        with pytest.raises(kind):
            read(unverifiedUserAnnotations=wrong).wanted_id()


@pytest.mark.parametrize(
    ("life", "refresh"), [(HOUR, HOUR / 2), (24 * HOUR, 12 * HOUR), (timedelta(minutes=20), timedelta(minutes=10))]
)
def test_a_renewal_begins_in_the_middle(life: timedelta, refresh: timedelta) -> None:
    issued = Issued(chain=[b"x"], spiffe_id="spiffe://a/b", entry_id="e", not_before=NOW, not_after=NOW + life)
    status = issued_status(issued, NOW)
    assert status["beginRefreshAt"] == (NOW + refresh).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert (status["notBefore"], status["conditions"][0]["type"]) == ("2026-05-01T00:00:00Z", "Issued")


def test_what_may_pass_is_never_an_answer() -> None:
    for reason in ("TIER", "UNREACHABLE", "RATE_LIMITED", "AUTHORITY_EXPIRES", "KUBE_FORBIDDEN", "AUDIT_UNAVAILABLE"):
        assert not is_final(Unavailable("x", reason=reason)), reason


def test_a_message_has_its_bound() -> None:
    status = refused_status(Denied("x" * 5000, reason="K8S_POD_UID"), NOW)
    assert len(status["conditions"][0]["message"]) == MAX_MESSAGE_CHARACTERS


def test_the_list_is_of_one_signer() -> None:
    assert list_path(SIGNER).endswith("podcertificaterequests?fieldSelector=spec.signerName%3Dburgee.dev%2Fsvid")
