"""CEL conditions: types are checked when they are written, attributes are the page's, hostile ones are bounded."""

from __future__ import annotations

import re
import time

import pytest

from policy import cel
from policy.model import Action, Request
from tests.policy.test_validation import PAGE

REQUEST = Request(
    principal="td/ns/shop/sa/web",
    source_ip="10.0.0.1",
    destination_port=80,
    method="GET",
    path="/a",
    headers={"x-a": "v"},
    claims={"iss": "i", "sub": "s", "groups": ["a", "b"], "n": 3, "inner": {"x": True}},
)


@pytest.mark.parametrize(
    "expression",
    [
        "source.principal == 'td/ns/shop/sa/web'",
        "source.namespace == 'shop' && source.serviceAccount == 'web' && source.trustDomain == 'td'",
        "source.ip == '10.0.0.1' && remote.ip == ''",
        "destination.port in [80, 443]",
        "request.method == 'GET' && request.path.startsWith('/a') && request.host == ''",
        "request.headers['x-a'] == 'v' && !('x-b' in request.headers)",
        "request.auth.principal == 'i/s'",
        "request.auth.claims.groups.exists(g, g == 'b')",
        "request.auth.claims.n == 3 && request.auth.claims.inner.x",
        "request.path.matches('^/[a-z]$')",
        "request.path.matches('^/[)(a]$') && matches(request.path, r'^/\\w$')",
        "request.path.matches(request.path) && request.path.matches('^/' + '[a-z]$')",
        "connection.sni == '' && destination.ip == ''",
    ],
)
def test_holds(expression: str) -> None:
    for action in Action:
        assert cel.holds(expression, action, REQUEST)
        assert not cel.holds(f"!({expression})", action, REQUEST)


@pytest.mark.parametrize("expression", ["request.headers['no'] == 'v'", "1 / (destination.port - 80) == 1"])
def test_what_fails_never_allows_more(expression: str) -> None:
    assert not cel.holds(expression, Action.ALLOW, REQUEST)
    assert cel.holds(expression, Action.DENY, REQUEST)
    assert cel.holds(expression, Action.CUSTOM, REQUEST)


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("source.principal == 1", "no matching overload"),
        ("request.methd == 'GET'", "undeclared reference"),
        ("request.method", "must be of type bool"),
        ("request.method ==", "Syntax error"),
        ("request.path.matches('(')", "regular expression: missing \\)"),
        ("matches(request.path, r'a{2000}')", "invalid repetition size"),
        ("!(request.path.matches('^/a$') || request.path.matches(\"(?=a)\"))", "invalid perl operator"),
        ("true" + " " * 5000, "at most 4096"),
        ("(" * 2000 + "true" + ")" * 2000, "recursion"),
    ],
)
def test_is_refused(expression: str, words: str) -> None:
    with pytest.raises(cel.ConditionError, match=words):
        cel.check(expression)


def test_hostile_conditions_end_soon() -> None:
    lists = f"[{','.join('1' * 1) + ',1' * 200}]"
    begin = time.process_time()
    nested = f"{lists}.all(a, {lists}.all(b, {lists}.all(c, a * b * c > 0)))"
    assert not cel.holds(nested, Action.ALLOW, REQUEST)
    long = Request(path="a" * 50_000 + "!")
    assert not cel.holds("request.path.matches('(a*)*b')", Action.ALLOW, long)
    assert time.process_time() - begin < 5


def test_the_page_has_every_attribute() -> None:
    rows = re.findall(r"^\| `([a-z.A-Z]+)` \| (string|int|map of [a-z ]+) \|$", PAGE.read_text(), re.MULTILINE)
    assert dict(rows) == {name: kind for name, (kind, _) in cel.VARIABLES.items()}
