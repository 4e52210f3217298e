"""AuthZEN's documents: what is asked, what is wrong with it, and what is answered."""

from __future__ import annotations

from typing import Any

import pytest

from policy.authzen import (
    Malformed,
    Question,
    Questions,
    Semantic,
    Wanted,
    decide,
    evaluation_document,
    read_question,
    read_questions,
    read_search,
    request_of,
)
from policy.authzen_pages import MOST, read_page
from policy.model import Action, Mesh, Rule, Target
from policy.snapshot import Snapshot, compile_set
from tests.policy.test_envoy import ANYTHING, deny, paths, policy

ID = "spiffe://td/ns/a/sa/t"
GOOD: dict[str, Any] = {
    "subject": {"type": "workload", "id": "spiffe://td/web"},
    "action": {"name": "GET"},
    "resource": {"type": "workload", "id": ID},
}


def asking(**changes: Any) -> dict[str, Any]:
    return {**GOOD, **changes}


def snapshot(*policies: Any, normalized: bool = False) -> Snapshot:
    target = Target(spiffe_id=ID, namespace="a", normalized=normalized)
    return compile_set(policies, Mesh(trust_domains=("td",), providers=frozenset({"opa"})), [target])


def test_a_question_is_a_request_to_a_workload() -> None:
    full = {
        "subject": {
            "type": "workload",
            "id": "spiffe://td/web",
            "properties": {"ip_address": "10.0.0.1", "remote_ip_address": "10.0.0.2", "claims": {"sub": "a"}, "x": 1},
        },
        "action": {"name": "POST", "properties": {"headers": {"X-A": "1"}}},
        "resource": {
            "type": "workload",
            "id": ID,
            "properties": {"path": "/x?y=1", "host": "shop", "port": 80, "ip_address": "10.0.0.3", "sni": "s"},
        },
        "context": {"time": "now"},
        "unknown": True,
    }
    question = read_question(full)
    request = request_of(question)
    assert request is not None
    assert question.target == ID
    assert (request.principal, request.method, request.path, request.host) == ("td/web", "POST", "/x", "shop")
    assert (request.source_ip, request.remote_ip, request.destination_ip) == ("10.0.0.1", "10.0.0.2", "10.0.0.3")
    assert (request.destination_port, request.sni, request.claims) == (80, "s", {"sub": "a"})
    assert request.headers == {":path": "/x?y=1", "x-a": "1"}  # as a proxy sends it


def test_an_anonymous_caller_and_a_connection() -> None:
    anonymous = request_of(read_question(asking(subject={"type": "anonymous", "id": "x"})))
    assert anonymous is not None
    assert (anonymous.principal, anonymous.path) == (None, "/")
    connection = request_of(read_question(asking(action={"name": "connect"})))
    assert connection is not None
    assert (connection.http, connection.method, connection.path) == (False, None, None)


@pytest.mark.parametrize(
    "body",
    [
        *([], "x", None, 1, {}),
        *({k: v for k, v in GOOD.items() if k != missing} for missing in GOOD),
        *(
            asking(subject=bad)
            for bad in (None, "x", [], {}, {"type": "workload"}, {"id": "x"}, {"type": 1, "id": "x"})
        ),
        asking(subject={"type": "workload", "id": 1}),
        asking(subject={"type": "workload", "id": "x", "properties": []}),
        asking(action={"name": 1}),
        asking(action={}),
        asking(resource={"type": "workload"}),
        asking(context=[]),
        asking(context=None),
    ],
    ids=str,
)
def test_what_is_missing_or_ill_typed_is_malformed(body: Any) -> None:
    with pytest.raises(Malformed):
        read_question(body)


@pytest.mark.parametrize(
    ("entity", "properties"),
    [
        ("subject", {"ip_address": 1}),
        ("subject", {"claims": "x"}),
        ("resource", {"path": 1}),
        ("resource", {"port": "80"}),
        ("resource", {"port": True}),
        ("resource", {"port": 0}),
        ("resource", {"host": []}),
        ("action", {"headers": []}),
        ("action", {"headers": {"a": 1}}),
    ],
    ids=str,
)
def test_known_properties_have_their_types(entity: str, properties: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        request_of(read_question(asking(**{entity: {**GOOD[entity], "properties": properties}})))


@pytest.mark.parametrize(
    "changes",
    [
        {"subject": {"type": "user", "id": "alice"}},
        {"subject": {"type": "workload", "id": "alice"}},
        {"resource": {"type": "book", "id": "1"}},
    ],
    ids=str,
)
def test_types_that_are_not_known_may_nothing(changes: dict[str, Any]) -> None:
    question = read_question(asking(**changes))
    answered = decide(question, request_of(question), snapshot(ANYTHING))
    assert (answered.allowed, answered.reason) == (False, "UNKNOWN_TYPE")


def test_decisions_are_those_of_the_other_faces() -> None:
    found = snapshot(ANYTHING, deny(paths("/admin")))

    def reason(path: str, held: Snapshot = found) -> str:
        question = read_question(asking(resource={"type": "workload", "id": ID, "properties": {"path": path}}))
        return decide(question, request_of(question), held).reason

    assert [reason(p) for p in ("/", "/admin", "/admin?x", "//admin")] == [
        *("ALLOWED_BY_RULE", "DENIED_BY_RULE", "DENIED_BY_RULE", "PATH_NOT_NORMAL")
    ]
    assert reason("//admin", snapshot(ANYTHING, deny(paths("/admin")), normalized=True)) == "ALLOWED_BY_RULE"
    custom = policy(Rule(), action=Action.CUSTOM, name="c", provider="opa")
    assert reason("/", snapshot(ANYTHING, custom)) == "PROVIDER_UNAVAILABLE"
    unknown = read_question(asking(resource={"type": "workload", "id": "spiffe://td/nobody"}))
    assert decide(unknown, request_of(unknown), found).reason == "UNKNOWN_TARGET"


def test_an_answer_says_why_in_its_context() -> None:
    question = read_question(GOOD)
    answered = decide(question, request_of(question), snapshot(ANYTHING, deny(Rule(), shadow=True)))
    assert evaluation_document(answered, id="x", revision=3) == {
        "decision": True,
        "context": {
            "id": "x",
            "reason": "ALLOWED_BY_RULE",
            "revision": 3,
            "policy": "a/all",
            "rule": 0,
            "shadow": False,
        },
    }


def test_defaults_are_replaced_whole() -> None:
    properties = {"path": "/x"}
    top = {**GOOD, "resource": {"type": "workload", "id": ID, "properties": properties}}
    found = read_questions({**top, "evaluations": [{}, {"resource": {"type": "workload", "id": "spiffe://td/u"}}]})
    assert isinstance(found, Questions)
    first, second = found.items
    assert isinstance(first, Question)
    assert isinstance(second, Question)
    assert first.resource is not None
    assert first.resource.properties == properties
    assert second.resource is not None
    assert (second.resource.id, second.resource.properties) == ("spiffe://td/u", {})


def test_without_evaluations_it_is_a_single_one() -> None:
    assert isinstance(read_questions(GOOD), Question)
    assert isinstance(read_questions({**GOOD, "evaluations": []}), Question)


def test_what_is_wrong_with_one_of_several_stands_in_its_place() -> None:
    found = read_questions({"subject": GOOD["subject"], "evaluations": [GOOD, {"action": {"name": "GET"}}, 1]})
    assert isinstance(found, Questions)
    assert [type(item).__name__ for item in found.items] == ["Question", "Malformed", "Malformed"]


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluations": {}},
        {"evaluations": "x"},
        {"evaluations": [{}], "options": []},
        {"evaluations": [{}], "options": {"evaluations_semantic": "some"}},
        {"evaluations": [{}], "options": {"evaluations_semantic": 1}},
        {"evaluations": [{}], "subject": "x"},
        {"evaluations": [{}] * 1001},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_what_is_wrong_with_the_whole_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        read_questions({**GOOD, **changes})


def test_what_ends_several() -> None:
    ends = {s: [s.ends_with(True), s.ends_with(False)] for s in Semantic}
    assert ends == {
        Semantic.EXECUTE_ALL: [False, False],
        Semantic.DENY_ON_FIRST_DENY: [False, True],
        Semantic.PERMIT_ON_FIRST_PERMIT: [True, False],
    }


def test_what_is_searched_for_needs_a_type_and_its_id_is_passed_over() -> None:
    found = read_search({**GOOD, "subject": {"type": "workload", "id": 5}}, Wanted.SUBJECT)
    assert found.subject is not None
    assert found.subject.id == ""
    assert read_search({**GOOD, "resource": {"type": "workload"}}, Wanted.RESOURCE).target == ""
    assert read_search({k: v for k, v in GOOD.items() if k != "action"}, Wanted.ACTION).action is None
    for wanted in (Wanted.SUBJECT, Wanted.RESOURCE):
        with pytest.raises(Malformed):
            read_search({**GOOD, str(wanted): {}}, wanted)
    with pytest.raises(Malformed):
        read_search({k: v for k, v in GOOD.items() if k != "action"}, Wanted.SUBJECT)


def test_pages_follow_each_other() -> None:
    names = [f"n{number:03}" for number in range(25)]
    seen: list[str] = []
    token = ""
    for _ in range(3):
        page = read_page({**GOOD, "page": {"limit": 10, "token": token}}, "subject")
        found, told = page.of(names)
        seen += found
        assert (told["count"], told["total"]) == (len(found), 25)
        token = told["next_token"]
    assert seen == names
    assert token == ""
    assert read_page(GOOD, "subject").of(names)[1]["next_token"] == ""
    assert read_page({**GOOD, "page": {"limit": 10**9}}, "subject").limit == MOST


def test_a_token_is_for_its_own_question() -> None:
    token = read_page({**GOOD, "page": {"limit": 1}}, "subject").of(["a", "b"])[1]["next_token"]
    assert read_page({**GOOD, "page": {"token": token}}, "subject").after == "a"
    for body, search in (({**asking(action={"name": "PUT"}), "page": {"token": token}}, "subject"), (GOOD, "action")):
        with pytest.raises(Malformed):
            read_page({**body, "page": {"token": token}}, search)


@pytest.mark.parametrize(
    "page",
    [[], {"limit": 0}, {"limit": "1"}, {"limit": True}, {"limit": -1}, {"token": 1}, {"token": "x"}, {"token": "é"}],
    ids=str,
)
def test_pages_that_are_none(page: Any) -> None:
    with pytest.raises(Malformed):
        read_page({**GOOD, "page": page}, "subject")
