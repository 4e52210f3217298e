"""What a condition may cost: its author writes it once, and every request to the workload pays."""

from __future__ import annotations

import time

import pytest

from policy import cel
from policy.model import Action, Request

NUMBERS = f"[{','.join(['1'] * 21)}]"
LOOKS = "||".join(["request.path.matches('(a|b|ab)*c')"] * 20)
SECONDS = 1.0


def doubling(loops: int) -> str:
    return "['aaaaaaaaaaaaaaaa']" + "".join(f".map(x{n}, x{n}+x{n}+x{n}+x{n})" for n in range(loops))


@pytest.mark.parametrize(
    "expression",
    [
        f"{doubling(13)}.size() == 1",
        "['a'].exists(a, [a+a].exists(b, [b + b].exists(c, c == 'aa')))",
        "['a'].all // a comment\n (a, a + a == '')",
        "['a'].all(a, '\\'' + a == \"it's\")",
        r"[r'\\'].all(a, a + '' == r'\\')",
        "['''it's'''].all(a, a+'' == '')",
    ],
)
def test_what_grows_with_each_loop_is_refused_when_it_is_written(expression: str) -> None:
    with pytest.raises(cel.ConditionError, match="beside a loop"):
        cel.check(expression)


@pytest.mark.parametrize(
    "expression",
    [
        f"{NUMBERS}.exists(a, {NUMBERS}.exists(b, {NUMBERS}.exists(c, {LOOKS})))",
        f"{NUMBERS}.map(a, {NUMBERS}).map(b, {NUMBERS}).exists(a, a.exists(b, {LOOKS}))",
        "[1]"
        + "".join(f".map(x{n}, [x{n},x{n},x{n},x{n},x{n},x{n},x{n},x{n}])" for n in range(9))
        + ".exists(a, a == a)",
        f"request.auth.claims.groups.exists(g, {LOOKS})",
    ],
)
def test_what_would_take_long_for_a_request_fails_at_once(expression: str) -> None:
    request = Request(path="ab" * 3000, claims={"groups": ["a"] * 9_000})
    cel.check(expression)
    begin = time.monotonic()
    assert not cel.holds(expression, Action.ALLOW, request)
    assert cel.holds(expression, Action.DENY, request)
    assert time.monotonic() - begin < 5 * SECONDS


@pytest.mark.parametrize(
    "expression",
    [
        "request.path == '/a' + '/' + source.namespace",
        "request.auth.claims.groups.exists(g, g == 'a' || g == 'b' || g.matches('^x[0-9]+$'))",
        "request.auth.claims.groups.all(g, request.auth.claims.groups.exists(h, g == h && h.size() > 0))",
        "!request.headers.exists(name, name.startsWith('x-debug') && request.headers[name] == '1+1')",
        "request.auth.claims.groups.filter(g, g.endsWith('1')).size() > 1",
    ],
)
def test_what_people_write_is_decided(expression: str) -> None:
    request = Request(
        principal="td/ns/shop/sa/web",
        path="/a/shop",
        headers={f"h{number}": "v" * 100 for number in range(40)} | {"cookie": "c" * 4_000},
        claims={"groups": ["a", *(f"x{number}" for number in range(100))]},
    )
    assert cel.compiled(expression)(request) is not None
