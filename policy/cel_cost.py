"""What a CEL condition may cost: the library bounds the steps of its loops, and not what a step takes, nor what grows.

`[p].exists(a, [a + a].exists(b, [b + b]…))` doubles a text with each loop, and a loop of 10,000 steps that looks
through a long path in each takes seconds. So texts are not put together beside loops, and a condition that might take
too long for a request is not evaluated for it: that is a failure, which never allows more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

MAX_STEPS = 10_000
"""Of all loops of an evaluation together: the library's own bound."""
BUDGET = 50_000_000
"""Letters that may be looked at: a third of a second of the slowest function, `matches`."""
VALUE = 8
"""What looking at a value costs, in letters."""

_LOOPS = frozenset({"all", "exists", "exists_one", "filter", "map"})
_TOKEN = re.compile(
    r"//[^\n]*"
    r"|(?:[rR][bB]?|[bB][rR])(?:\"\"\"[\s\S]*?\"\"\"|'''[\s\S]*?'''|\"[^\"\r\n]*\"|'[^'\r\n]*')"
    r"|[bB]?(?:\"\"\"(?:\\[\s\S]|[^\\])*?\"\"\"|'''(?:\\[\s\S]|[^\\])*?'''"
    r"|\"(?:\\.|[^\\\"\r\n])*\"|'(?:\\.|[^\\'\r\n])*')"
    r"|[A-Za-z_][A-Za-z_0-9]*|\S"
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of an expression. `depth` is how many loops stand in one another, `growth` how often what a loop's variable holds
    may stand in one value in the end, `calls` how many functions look at texts, `literal` the longest list in it."""

    depth: int
    calls: int
    growth: int
    literal: int
    sums: int

    @property
    def grows(self) -> bool:
        """Whether it puts together what loops could put together again."""
        return bool(self.depth and self.sums)

    def too_much(self, inputs: Mapping[str, Any]) -> bool:
        """Whether it might take too long with these."""
        longest, values, widest = _measured(inputs)
        steps = min(max(widest, self.literal) ** self.depth, MAX_STEPS) if self.depth else 1
        size = longest + VALUE * (values + min(self.growth, BUDGET))
        return steps * (self.calls + self.sums**2) * size > BUDGET


def cost_of(expression: str) -> Cost:
    """Of an expression that compiles."""
    tokens = [found[0] for found in _TOKEN.finditer(expression) if not found[0].startswith("//")]
    depth, growth = _loops(tokens)
    return Cost(
        depth=depth,
        calls=1 + tokens.count("("),
        growth=growth,
        literal=1 + tokens.count(","),
        sums=tokens.count("+"),
    )


def patterns_of(expression: str) -> Iterator[str]:
    """The regular expressions that are written out in it, as they are written."""
    tokens = [found[0] for found in _TOKEN.finditer(expression) if not found[0].startswith("//")]
    for begin, (name, after) in enumerate(pairwise(tokens)):
        if (name, after) != ("matches", "("):
            continue
        level = 0
        for end in range(begin + 1, len(tokens)):
            level += (tokens[end] == "(") - (tokens[end] == ")")
            if not level:
                if tokens[end - 1][-1] in "\"'" and tokens[end - 2] in ("(", ","):
                    yield tokens[end - 1]
                break


def _loops(tokens: list[str]) -> tuple[int, int]:
    """How deep they are, and how often their variables are used, multiplied."""
    opened: list[bool] = []
    deepest, growth = 0, 1
    for number, word in enumerate(tokens):
        if word == "(":
            loop = number > 0 and tokens[number - 1] in _LOOPS
            opened.append(loop)
            deepest = max(deepest, sum(opened))
            if loop:
                growth *= max(1, _uses(tokens, number + 1))
        elif word == ")" and opened:
            opened.pop()
    # One loop after another lengthens what the next goes through, as one in another does.
    in_a_row = sum(1 for name, after in pairwise(tokens) if name == "map" and after == "(")
    return max(deepest, min(deepest, 1) * in_a_row), growth


def _uses(tokens: list[str], begin: int) -> int:
    """How often the variable of a loop stands in it, its declaration apart."""
    name, level, found = tokens[begin] if begin < len(tokens) else "", 1, -1
    for word in tokens[begin:]:
        level += (word in ("(", "[", "{")) - (word in (")", "]", "}"))
        if not level:
            break
        found += word == name
    return found


def _measured(value: Any) -> tuple[int, int, int]:
    """The longest text, how many values there are, and the most values in one list or mapping."""
    longest, values, widest = 0, 0, 0
    left = [value]
    while left:
        one = left.pop()
        values += 1
        if isinstance(one, str):
            longest = max(longest, len(one))
        elif isinstance(one, Mapping):
            widest = max(widest, len(one))
            left += one.keys()
            left += one.values()
        elif isinstance(one, list | tuple):
            widest = max(widest, len(one))
            left += one
    return longest, values, widest
