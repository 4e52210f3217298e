"""Reads the case files: groups hand their fields down, batches and tables of callers become plain steps.

A case file is `{about, server, agent, let, xfail, cases}`. `server` overrides the server's configuration; `agent` does
so for an agent, which is there for such a file alone (`agent-admin-uds` and `workload` are its sockets, its services
are called `agent:NAME`). `let` names objects that `@with` spreads. A case is one step of the player (see spire/steps.go
for its fields), or a group of cases:

- every field of a group but `cases` is handed down to its cases;
- with `batch: {in, out, echo}` a case's `item` is sent alone as `{in: [item]}`, and `status` names the code of its
  result; a result of OK carries `back`, or else the item with `echo` and the case's `change` laid over it;
- `{tiers, rows}` tries each row's method as every caller that `tiers` names.

The player knows these strings in requests and expectations: `${name}` (a value that was kept), `@id PATH[|DOMAIN]`,
`@sel TYPE:VALUE …`, `@mask FIELD …`, `@x COUNT`, `@bytes TEXT`, `@csr [key=NAME] [uri=…] [dns=…] [cn=…] [broken]`,
`@ca DOMAIN …`, `@pkix KEY`, `@jwk KEY-ID [tainted]`, `@fed DOMAIN HINT SEQUENCE`; and in lists `{@times, of}`.
Expectations know more: `get` is exact, `has` a subset; `null` must be absent, `"?"` may be, `"*"` is anything;
`@keep NAME [MATCHER]`, `@uuid`, `@re`, `@in SECONDS`, `@not`, `@chain PATH …`, `@jwt PATH …`; lists by
`{@len, @first, @each, @set, @sorted}`; `status` is the name of a code.

`xfail` says why a case cannot pass yet (null takes a group's back); `deviation` says why ours is asserted instead of
SPIRE's answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "cases"
STEP_FIELDS = frozenset({"as", "call", "send", "raw", "get", "has", "code", "reason", "past", "talk", "do", "with"})
CASE_FIELDS = STEP_FIELDS | {"name", "xfail", "deviation", "batch", "item", "status", "back", "change", "also"}

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing that must hold: the indices of its steps in the play, all of which must pass."""

    name: str
    steps: tuple[int, ...]
    xfail: str | None = None
    deviation: str | None = None


@dataclass(frozen=True, kw_only=True)
class Play:
    """One case file: what the player gets, and which steps make which case."""

    name: str
    about: str
    server: Json
    let: Json
    agent: Json | None = None
    steps: list[Json] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> Play:
    """Raises AssertionError for unknown fields and for names that are not unique."""
    content = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    unknown = content.keys() - {"about", "server", "agent", "let", "xfail", "cases"}
    assert not unknown, f"{name}: unknown fields {unknown}"
    play = Play(
        name=name,
        about=content["about"],
        server=content.get("server", {}),
        let=content.get("let", {}),
        agent=content.get("agent"),
    )
    for case in _flat(content["cases"], {"xfail": content.get("xfail")}):
        _add(play, case)
    seen = [case.name for case in play.cases]
    assert len(seen) == len(set(seen)), f"{name}: names twice: {sorted(n for n in seen if seen.count(n) > 1)}"
    return play


def _flat(cases: list[Json], given: Json) -> Iterator[Json]:
    for case in cases:
        merged = {**given, **case}
        if "cases" in case:
            del merged["cases"]
            yield from _flat(case["cases"], merged)
        elif "rows" in case:
            yield from _rows(case["tiers"], case["rows"])
        else:
            assert not merged.keys() - CASE_FIELDS, f"unknown fields in {merged}"
            yield merged


def _rows(callers: list[str], rows: list[list[str]]) -> Iterator[Json]:
    for row in rows:
        method, answers, *own = row
        steps = [_tier(method, who, answer, own) for who, answer in zip(callers, answers.split(), strict=True)]
        yield {"name": f"{method} as every caller", "many": steps}


def _tier(method: str, who: str, answer: str, own: list[str]) -> Json:
    expected: dict[str, Json] = {
        "yes": {"past": own},
        "no": {"code": "PermissionDenied"},
        "NA": {"code": "PermissionDenied", "reason": "AGENT_NOT_ATTESTED"},
        "absent": {"code": "Unimplemented"},
    }
    return {"name": f"{method} as {who}", "call": method, "as": who, **expected[answer]}


def _add(play: Play, case: Json) -> None:
    steps = case.get("many") or [_step(case)]
    first = len(play.steps)
    play.steps.extend(steps)
    play.cases.append(
        Case(
            name=case["name"],
            steps=tuple(range(first, len(play.steps))),
            xfail=case.get("xfail"),
            deviation=case.get("deviation"),
        )
    )


def _step(case: Json) -> Json:
    if "item" in case:
        case = {**case, **_batch(case)}
    return {key: value for key, value in case.items() if key in STEP_FIELDS | {"name"}}


def _batch(case: Json) -> Json:
    batch, item = case["batch"], case["item"]
    result = {"status": case["status"]}
    if "back" in case:
        result[batch["out"]] = case["back"]
    elif case["status"] == "OK":
        changes = {**batch["echo"], **case.get("change", {})}
        result[batch["out"]] = item if isinstance(item, str) else {**item, **changes}
    return {"send": {batch["in"]: [item], **case.get("also", {})}, "get": {"results": [result]}}
