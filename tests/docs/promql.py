"""As much of PromQL as our alert rules use, over two scrapes of the text format: enough to see a rule trip."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]

_SELECTOR = re.compile(r"(burgee_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)(=|!=)"([^"]*)"')
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "==": lambda a, b: a == b,
}


@dataclass(frozen=True)
class Scrapes:
    """What /metrics said before and says now, and the time now."""

    before: str
    now: str
    time: float


def evaluate(expression: str, scrapes: Scrapes) -> Vector:
    """The series for which the rule's condition holds. Raises ValueError for what is not understood."""
    kept: Vector | None = None
    for part in expression.split(" and "):
        held = _comparison(part.strip(), scrapes)
        kept = held if kept is None else {labels: value for labels, value in kept.items() if labels in held}
    return kept or {}


def _comparison(text: str, scrapes: Scrapes) -> Vector:
    match = re.fullmatch(r"(.+?) (<|>|==) ([\d.]+)", text)
    if match is None:
        raise ValueError(text)
    left, sign, right = match.groups()
    return {k: v for k, v in _value(left, scrapes).items() if _COMPARISONS[sign](v, float(right))}


def _value(text: str, scrapes: Scrapes) -> Vector:
    if match := re.fullmatch(r"increase\((.+)\[\w+\]\)", text):
        before, now = _series(match[1], scrapes.before), _series(match[1], scrapes.now)
        return {labels: value - before.get(labels, 0.0) for labels, value in now.items()}
    if match := re.fullmatch(r"(.+) - time\(\)", text):
        return {labels: value - scrapes.time for labels, value in _series(match[1], scrapes.now).items()}
    if match := re.fullmatch(r"time\(\) - (.+)", text):
        return {labels: scrapes.time - value for labels, value in _series(match[1], scrapes.now).items()}
    return _series(text, scrapes.now)


def _series(selector: str, scrape: str) -> Vector:
    match = _SELECTOR.fullmatch(selector)
    if match is None:
        raise ValueError(selector)
    wanted = [(name, sign == "=", value) for name, sign, value in _MATCHER.findall(match[2] or "")]
    found: Vector = {}
    for family in text_string_to_metric_families(scrape):
        for sample in family.samples:
            fits = all((sample.labels.get(name) == value) is equal for name, equal, value in wanted)
            if sample.name == match[1] and fits:
                found[frozenset(sample.labels.items())] = sample.value
    return found
