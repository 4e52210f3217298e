"""Generated policies for the benchmarks: the same rules for every engine, in two shapes.

`mesh`: five rules for each target. `gateway`: all rules on one target. Of the rules a tenth denies; principals are
70 % exact (a third of those name three), 25 % a namespace, 5 % anybody; paths 50 % a prefix, 40 % exact, 10 %
any; methods 85 % one to three of six.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from policy.model import Action, Attribute, Clause, Match, MatchKind, Mesh, Policy, Request, Rule, Scope, Target

DOMAIN = "prod.example.org"
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD")
MESH = Mesh(trust_domains=(DOMAIN,))
RULES_PER_TARGET = 5
RULES_PER_POLICY = 100


@dataclass(frozen=True)
class Plain:
    """One rule in words that every engine has. Empty is anything; a `*` at the end of a text is a prefix."""

    target: str
    deny: bool
    principals: tuple[str, ...]
    methods: tuple[str, ...]
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Shape:
    """Rules, and requests as (target, principal, method, path)."""

    rules: tuple[Plain, ...]
    targets: tuple[str, ...]
    requests: tuple[tuple[str, str, str, str], ...]


def spiffe_id(number: int) -> str:
    """Of one of the services that call and are called."""
    return f"{DOMAIN}/ns/ns-{number % 50}/sa/svc-{number}"


def shape(kind: str, count: int, *, seed: int = 7, requests: int = 2000) -> Shape:
    """`count` rules in one of the two shapes."""
    rnd = random.Random(seed)
    targets = tuple(spiffe_id(n) for n in range(1 if kind == "gateway" else max(1, count // RULES_PER_TARGET)))
    services = max(20, count // RULES_PER_TARGET)
    rules = tuple(_rule(rnd, targets[n % len(targets)], services) for n in range(count))
    return Shape(rules, targets, tuple(_request(rnd, rnd.choice(rules), services) for _ in range(requests)))


def _rule(rnd: random.Random, target: str, services: int) -> Plain:
    who = rnd.random()
    if who < 0.7:
        count = 3 if rnd.random() < 0.3 else 1
        principals = tuple(spiffe_id(rnd.randrange(services)) for _ in range(count))
    elif who < 0.95:
        principals = (f"{DOMAIN}/ns/ns-{rnd.randrange(50)}/*",)
    else:
        principals = ()
    where, item = rnd.random(), rnd.randrange(5000)
    if where < 0.5:
        paths: tuple[str, ...] = (f"/api/v1/orders-{item}/*",)
    elif where < 0.9:
        paths = tuple(f"/api/v1/items-{item + n}/detail" for n in range(rnd.choice((1, 2))))
    else:
        paths = ()
    methods = tuple(rnd.sample(METHODS, rnd.randint(1, 3))) if rnd.random() < 0.85 else ()
    return Plain(target, rnd.random() < 0.1, principals, methods, paths)


def _request(rnd: random.Random, rule: Plain, services: int) -> tuple[str, str, str, str]:
    principal = (rule.principals or (spiffe_id(rnd.randrange(services)),))[0].replace("*", "sa/svc-1")
    path = (rule.paths or ("/anything",))[0].replace("*", f"{rnd.randrange(100)}/lines")
    what = rnd.random()
    if what > 0.75:
        path = f"/other/{rnd.randrange(1000)}"
    elif what > 0.5:
        principal = spiffe_id(rnd.randrange(services))
    return rule.target, principal, rnd.choice(rule.methods or METHODS), path


def policies(made: Shape) -> list[Policy]:
    """As ours: for each target and action, policies of as many rules as an object can hold and a person can read."""
    by_policy: dict[tuple[str, Action], list[Rule]] = {}
    for rule in made.rules:
        by_policy.setdefault((rule.target, Action.DENY if rule.deny else Action.ALLOW), []).append(ours(rule))
    return [
        Policy(
            namespace=target.split("/")[2],
            name=f"{target.rpartition('/')[2]}-{action.lower()}-{at // RULES_PER_POLICY}",
            action=action,
            scope=Scope(spiffe_ids=(Match(MatchKind.EXACT, f"spiffe://{target}"),)),
            rules=tuple(rules[at : at + RULES_PER_POLICY]),
        )
        for (target, action), rules in by_policy.items()
        for at in range(0, len(rules), RULES_PER_POLICY)
    ]


def ours(rule: Plain) -> Rule:
    """One rule as ours."""
    operation = tuple(
        Clause(attribute=attribute, matches=tuple(map(_match, values)))
        for attribute, values in ((Attribute.METHOD, rule.methods), (Attribute.PATH, rule.paths))
        if values
    )
    source = (Clause(attribute=Attribute.SOURCE_PRINCIPAL, matches=tuple(map(_match, rule.principals))),)
    return Rule(sources=(source,) if rule.principals else (), operations=(operation,) if operation else ())


def _match(text: str) -> Match:
    return Match(MatchKind.PREFIX, text[:-1]) if text.endswith("*") else Match(MatchKind.EXACT, text)


def targets(made: Shape) -> list[Target]:
    """The workloads that are called."""
    return [Target(spiffe_id=f"spiffe://{t}", namespace=t.split("/")[2]) for t in made.targets]


def requests(made: Shape) -> list[tuple[str, Request]]:
    """As ours, each with its target."""
    return [
        (f"spiffe://{target}", Request(principal=principal, method=method, path=path))
        for target, principal, method, path in made.requests
    ]
