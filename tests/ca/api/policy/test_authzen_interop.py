"""The public interoperability scenarios of AuthZEN, said in our words: every decision is as they have it.

Users are callers, and what they may do is a method. A todo's owner is part of its path, since properties that policies
do not know are not looked at; a record is a workload, whose department and owner are labels of it.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from tests.ca.api.policy.http import Client
from tests.ca.api.policy.test_authzen import entity, post

DOMAIN = "example.org"
READ_USER, READ, CREATE, UPDATE, DELETE = (
    "can_read_user",
    "can_read_todos",
    "can_create_todo",
    "can_update_todo",
    "can_delete_todo",
)
USERS = {
    "rick@the-citadel.com": "evil_genius",
    "morty@the-citadel.com": "editor",
    "summer@the-smiths.com": "editor",
    "beth@the-smiths.com": "viewer",
    "jerry@the-smiths.com": "viewer",
}
TODO = "7240d0db-8ff0-41ec-98b2-34a096273b9f"

PEOPLE = {
    "alice": ("manager", "Sales"),
    "bob": ("employee", "Legal"),
    "carol": ("contractor", "Legal"),
    "dan": ("manager", "Finance"),
    "erin": ("employee", "Finance"),
    "felix": ("contractor", "Accounting"),
}
DEPARTMENTS = {"L": "Legal", "A": "Accounting", "S": "Sales", "F": "Finance"}
RECORDS = {
    101 + number: (DEPARTMENTS[letter], list(PEOPLE)[number % len(PEOPLE)])
    for number, letter in enumerate("LLLALASLASALSAFLLALA")
}


def caller(name: str) -> str:
    """In a name of a path there is no `@`."""
    return f"spiffe://{DOMAIN}/user/{name.replace('@', '-at-')}"


def record(name: int) -> str:
    return f"spiffe://{DOMAIN}/record/{name}"


APP = f"spiffe://{DOMAIN}/todo"


def workload(name: str, spiffe_id: str, **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "burgee.io/v1",
        "kind": "Workload",
        "metadata": {"name": name, "namespace": "interop", "labels": labels},
        "spec": {"spiffeId": spiffe_id},
    }


def allow(name: str, labels: dict[str, str], *rules: tuple[list[str], dict[str, Any]]) -> dict[str, Any]:
    """Rules are (users, operation)."""
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "interop"},
        "spec": {
            "selector": {"matchLabels": labels},
            "rules": [
                {
                    "from": [{"source": {"principals": [caller(user).removeprefix("spiffe://") for user in users]}}],
                    "to": [{"operation": operation}],
                }
                for users, operation in rules
            ],
        },
    }


async def applied(client: Client, *objects: dict[str, Any]) -> None:
    made = await client("POST", "/apply", {"changes": [{"object": one} for one in objects]})
    assert made.status == 200, made.data


@pytest.fixture
async def todo(local: Client) -> Client:
    editors = [user for user, role in USERS.items() if role == "editor"]
    geniuses = [user for user, role in USERS.items() if role == "evil_genius"]
    own = [([user], {"methods": [UPDATE, DELETE], "paths": [f"/todos/{user}/*"]}) for user in editors]
    rules = [
        ([*USERS], {"methods": [READ_USER, READ]}),
        ([*editors, *geniuses], {"methods": [CREATE]}),
        (geniuses, {"methods": [UPDATE, DELETE]}),
        *own,
    ]
    await applied(local, workload("todo", APP, app="todo"), allow("todo", {"app": "todo"}, *rules))
    return local


def asked(user: str, action: str, path: str) -> dict[str, Any]:
    resource = {"type": "workload", "id": APP, "properties": {"path": path}}
    return {"subject": entity(caller(user)), "action": {"name": action}, "resource": resource}


def todo_cases() -> list[tuple[dict[str, Any], bool]]:
    cases = []
    for user, role in USERS.items():
        others = next(other for other in USERS if other != user)
        cases += [(asked(user, READ_USER, f"/users/{whom}"), True) for whom in ("beth@the-smiths.com", user)]
        cases.append((asked(user, READ, "/todos"), True))
        cases.append((asked(user, CREATE, "/todos"), role != "viewer"))
        for action, owner in product((UPDATE, DELETE), (others, user)):
            may = role == "evil_genius" or (role == "editor" and owner == user)
            cases.append((asked(user, action, f"/todos/{owner}/{TODO}"), may))
    return cases


async def test_each_decision_of_the_todo_application(todo: Client) -> None:
    cases = todo_cases()
    assert (len(cases), sum(wanted for _, wanted in cases)) == (40, 26)
    for question, wanted in cases:
        answer = await post(todo, "evaluation", question)
        assert (answer.status, answer.body["decision"]) == (200, wanted), question
    boxed = await post(todo, "evaluations", {"evaluations": [question for question, _ in cases]})
    assert [one["decision"] for one in boxed.body["evaluations"]] == [wanted for _, wanted in cases]


async def test_several_at_once_end_where_they_are_told_to(todo: Client) -> None:
    """One user, one action, and the todos of three: the first and the last are others'."""
    user = "morty@the-citadel.com"
    resources = [asked(user, UPDATE, f"/todos/{owner}/{TODO}")["resource"] for owner in ("rick@x", user, "rick@x")]
    body = {"subject": entity(caller(user)), "action": {"name": UPDATE}}
    for semantics, wanted in (
        ("execute_all", [False, True, False]),
        ("deny_on_first_deny", [False]),
        ("permit_on_first_permit", [False, True]),
    ):
        options = {"evaluations_semantic": semantics}
        found = await post(
            todo, "evaluations", {**body, "evaluations": [{"resource": one} for one in resources], "options": options}
        )
        assert [one["decision"] for one in found.body["evaluations"]] == wanted, semantics


async def test_what_our_model_has_no_word_for_is_denied(todo: Client) -> None:
    """A user, a todo and its owner as the scenario itself sends them: types and properties that no policy looks at."""
    user, todos = {"type": "user", "id": "rick@the-citadel.com"}, {"type": "todo", "id": "todo-1"}
    for question in (
        {"subject": user, "action": {"name": READ}, "resource": todos},
        {**asked("rick@the-citadel.com", READ, "/todos"), "subject": user},
        {**asked("rick@the-citadel.com", READ, "/todos"), "resource": todos},
    ):
        answer = await post(todo, "evaluation", question)
        assert (answer.status, answer.body["decision"]) == (200, False), question
    mine = asked("morty@the-citadel.com", UPDATE, "/todos/todo-1")
    mine["resource"]["properties"]["ownerID"] = "morty@the-citadel.com"
    assert (await post(todo, "evaluation", mine)).body["decision"] is False


@pytest.fixture
async def records(local: Client) -> Client:
    managers = [name for name, (role, _) in PEOPLE.items() if role == "manager"]
    objects = [
        workload(f"record-{name}", record(name), department=department, owner=owner)
        for name, (department, owner) in RECORDS.items()
    ]
    for department in sorted({department for department, _ in RECORDS.values()}):
        there = [name for name, (_, of) in PEOPLE.items() if of == department]
        heads = [name for name in there if name in managers]
        rules = [(sorted({*managers, *there}), {"methods": ["view"]})]
        rules += [(heads, {"methods": ["edit"]})] if heads else []
        objects.append(allow(department.lower(), {"department": department}, *rules))
    objects += [
        allow(f"of-{owner}", {"owner": owner}, ([owner], {"methods": ["view", "edit", "delete"]})) for owner in PEOPLE
    ]
    await applied(local, *objects)
    return local


def may(user: str, action: str, name: int) -> bool:
    """The scenario's rules."""
    (role, mine), (department, owner) = PEOPLE[user], RECORDS[name]
    if owner == user:
        return True
    if action == "view":
        return role == "manager" or mine == department
    return action == "edit" and role == "manager" and mine == department


def test_the_rules_are_those_of_the_scenario() -> None:
    """Some of what it publishes, so that the rules above are not their own judge."""
    assert [[user for user in PEOPLE if may(user, action, 110)] for action in ("view", "edit", "delete")] == [
        ["alice", "dan"],
        ["alice", "dan"],
        ["dan"],
    ]
    assert [user for user in PEOPLE if may(user, "view", 105)] == ["alice", "bob", "carol", "dan", "erin"]
    assert [user for user in PEOPLE if may(user, "view", 111)] == ["alice", "dan", "erin", "felix"]
    assert [name for name in RECORDS if may("bob", "delete", name)] == [102, 108, 114, 120]
    assert [name for name in RECORDS if may("carol", "view", name)] == [
        *(101, 102, 103, 105, 108, 109, 112, 115, 116, 117, 119),
    ]


async def found(client: Client, what: str, body: dict[str, Any]) -> list[str]:
    answer = await post(client, f"search/{what}", body)
    assert answer.status == 200, answer.data
    assert answer.body["page"]["next_token"] == ""
    return [one["name"] if what == "action" else one["id"] for one in answer.body["results"]]


async def test_each_search_of_the_records(records: Client) -> None:
    actions = ("view", "edit", "delete")
    for name, action in product(RECORDS, actions):
        body = {"subject": {"type": "workload"}, "action": {"name": action}, "resource": entity(record(name))}
        wanted = sorted(caller(user) for user in PEOPLE if may(user, action, name))
        assert await found(records, "subject", body) == wanted, (name, action)
    for user, action in product(PEOPLE, actions):
        body = {"subject": entity(caller(user)), "action": {"name": action}, "resource": {"type": "workload"}}
        wanted = [record(name) for name in RECORDS if may(user, action, name)]
        assert await found(records, "resource", body) == wanted, (user, action)
    for user, name in product(PEOPLE, RECORDS):
        body = {"subject": entity(caller(user)), "resource": entity(record(name))}
        wanted = sorted(action for action in actions if may(user, action, name))
        assert await found(records, "action", body) == wanted, (user, name)
