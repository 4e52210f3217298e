"""The page in a real Chromium: what a click and a key do, and that no name is ever more than text."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from policy.graph import Graph, graph_of
from policy.graph_page import page
from policy.model import Attribute, Clause, Match, MatchKind, Mesh, Origin, Policy, Rule, Scope, Target
from policy.parse import parse
from policy.snapshot import compile_set
from tests.support.chromium import Page, chromium

pytestmark = [pytest.mark.real("chromium"), pytest.mark.xdist_group("chromium")]

MESH = Mesh(trust_domains=("example.org",))
SHOP = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: orders, namespace: shop}
spec:
  selector: {matchLabels: {app: orders}}
  rules:
  - from: [{source: {principals: ["example.org/ns/shop/sa/web", "partner.example/b2b"]}}]
    to: [{operation: {methods: ["GET", "POST"], paths: ["/orders/*"]}}]
  - from: [{source: {namespaces: ["ops"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ledger, namespace: pay}
spec:
  rules:
  - from: [{source: {principals: ["example.org/ns/shop/sa/orders"]}}]
    to: [{operation: {methods: ["PUT"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-audit, namespace: shop}
spec:
  action: DENY
  rules: [{from: [{source: {principals: ["example.org/ns/ops/sa/audit"]}}]}]
"""
SERVICES = (("shop", "web"), ("shop", "orders"), ("pay", "ledger"), ("ops", "audit"), ("ops", "deploy"))
HOSTILE = (
    "<img src=x onerror=pwned=1>",
    "</script><script>window.pwned=1</script>",
    "\"'><svg/onload=pwned=1>",
    "]]><!--<script>\u2028window.pwned=1//",
    "javascript:pwned=1",
    "&lt;b&gt;&amp;",
    "$& ${pwned=1} `pwned`",
    "__proto__",
)


def shop() -> Graph:
    targets = [
        Target(spiffe_id=f"spiffe://example.org/ns/{ns}/sa/{name}", namespace=ns, labels=(("app", name),))
        for ns, name in SERVICES
    ]
    return graph_of(compile_set(parse(SHOP, "shop.yaml").policies, MESH, targets), revision=7)


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory, chromium(Path(directory)) as found:
        yield found


@pytest.fixture
def opened(browser: Page, tmp_path: Path) -> Page:
    return show(browser, tmp_path, shop())


def show(browser: Page, directory: Path, graph: Graph) -> Page:
    path = directory / "graph.html"
    path.write_text(page(graph), "utf-8")
    browser.open(path)
    return browser


def rows(opened: Page) -> list[str]:
    found: list[str] = opened.js("[...document.querySelectorAll('#details .row')].map((row) => row.innerText)")
    return found


def lines(opened: Page, classes: str) -> int:
    count: int = opened.js(f"document.querySelectorAll('#focus .edge{classes}').length")
    return count


def test_everything_is_drawn_and_nothing_is_fetched(opened: Page) -> None:
    assert opened.js("document.querySelectorAll('#picture .node').length") == 7
    assert opened.js("document.getElementById('counts').textContent") == "5 services · 6 edges · 4 rules · revision 7"
    assert [url.partition(":")[0] for url in opened.requests] == ["file"] * len(opened.requests)
    assert opened.complaints == []


def test_a_click_tells_who_reaches_a_service_and_what_it_reaches(opened: Page) -> None:
    opened.click("#picture .node[data-id$='sa/orders'] .hit")
    assert opened.js("document.querySelector('#details h2').textContent") == "orders"
    told = rows(opened)
    assert any(
        "web" in row and "GET" in row and "/orders/*" in row and "shop/orders#0 · shop.yaml:" in row for row in told
    )
    assert any("ns ops" in row and "any request" in row for row in told)
    assert any("audit" in row and "shop/not-audit#0" in row for row in told)
    assert any("ledger" in row and "PUT" in row for row in told)
    chips = opened.js("[...document.querySelectorAll('#details button.chip')].map((chip) => chip.textContent)")
    assert sorted(chips) == ["b2b", "deploy", "web"]
    assert lines(opened, ".from") == 1
    assert lines(opened, ".to.deny") == 1
    assert opened.js("document.querySelectorAll('#picture .node.to').length") == 4
    assert opened.js("decodeURIComponent(location.hash)") == "#spiffe://example.org/ns/shop/sa/orders"
    opened.click("#details .row[data-id$='sa/ledger'] button")
    assert opened.js("document.querySelector('#details h2').textContent") == "ledger"


def test_all_can_be_done_with_keys(opened: Page) -> None:
    opened.key("/", text="/")
    assert opened.js("document.activeElement.id") == "search"
    opened.type("led")
    names = "[...document.querySelectorAll('#list .items button span:first-child')].map((e) => e.textContent)"
    assert opened.js(names) == ["ledger"]
    opened.key("ArrowDown")
    assert opened.js("document.activeElement.dataset.id").endswith("sa/ledger")
    opened.key("Enter", text="\r")
    assert opened.js("document.querySelector('#details h2').textContent") == "ledger"
    opened.key("Escape")
    assert opened.js("document.querySelector('#details h2').textContent") == "Choose a service"
    assert len(opened.js(names)) == 7
    opened.js("document.querySelector('#list .items button').focus()")
    opened.key("ArrowDown")
    opened.key("ArrowDown")
    opened.key("ArrowUp")
    assert opened.js(f"document.activeElement.firstChild.textContent === {names}[1]")


def test_namespaces_methods_and_denies_are_filtered(opened: Page) -> None:
    opened.click("#list .group:nth-child(1) input")
    assert (
        opened.js("[...document.querySelectorAll('#picture .node')].some((n) => n.dataset.id.includes('/ops/sa'))")
        is False
    )
    opened.click("#list .group:nth-child(1) input")
    opened.click("#list button[data-id$='sa/orders']")
    before = lines(opened, "")
    opened.click("#denies")
    assert lines(opened, "") == before - 1
    opened.js("document.getElementById('method').value = 'PUT'")
    opened.js("document.getElementById('method').dispatchEvent(new Event('change'))")
    assert not any("GET" in row for row in rows(opened))
    assert any("ns ops" in row for row in rows(opened))


def test_light_dark_and_nearer(opened: Page) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light = opened.js(colour)
    opened.click("#theme")
    assert opened.js(colour) != light
    box = "document.getElementById('picture').getAttribute('viewBox')"
    whole = opened.js(box)
    opened.click("#in")
    assert opened.js(box) != whole
    opened.click("#fit")
    assert opened.js(box) == whole


def test_no_name_becomes_markup(browser: Page, tmp_path: Path) -> None:
    def rule(text: str) -> Rule:
        def clause(attribute: Attribute, kind: MatchKind = MatchKind.EXACT, key: tuple[str, ...] = ()) -> Clause:
            return Clause(attribute=attribute, matches=(Match(kind, text),), key=key)

        return Rule(
            sources=((clause(Attribute.SOURCE_PRINCIPAL),), (clause(Attribute.SOURCE_NAMESPACE, MatchKind.NAMESPACE),)),
            operations=((clause(Attribute.PATH), clause(Attribute.METHOD)),),
            conditions=(clause(Attribute.HEADER, key=(text,)),),
            condition=text,
            origin=Origin(text, 1, 1),
        )

    targets = [Target(spiffe_id=f"spiffe://td/{text}", namespace=text, labels=((text, text),)) for text in HOSTILE]
    policies = [
        Policy(namespace=text, name=text, scope=Scope(), rules=(rule(text), rule(HOSTILE[0]))) for text in HOSTILE
    ]
    opened = show(browser, tmp_path, graph_of(compile_set(policies, MESH, targets)))
    tags = set(opened.js("[...document.querySelectorAll('*')].map((e) => e.tagName.toLowerCase())"))
    for number in range(len(HOSTILE)):
        opened.click(f"#list .group:nth-child({number + 1}) .items button")
        tags |= set(opened.js("[...document.querySelectorAll('*')].map((e) => e.tagName.toLowerCase())"))
    assert "img" not in tags
    assert opened.js("document.querySelectorAll('script').length") == 2
    assert opened.js("typeof window.pwned") == "undefined"
    assert opened.js("[...document.querySelectorAll('[onerror],[onload]')].length") == 0
    assert opened.js("({}).service === undefined && ({}).name === undefined")
    assert opened.complaints == []
    assert all(url.startswith("file:") and url.endswith("graph.html") for url in opened.requests)
    shown = opened.js("[...document.querySelectorAll('#list .items button')].map((b) => b.dataset.id)")
    assert {f"spiffe://td/{text}" for text in HOSTILE} <= set(shown)


def test_the_policy_of_the_page_lets_nothing_else_run(opened: Page) -> None:
    put = "(t, k, v) => { const e = document.createElement(t); e[k] = v; document.body.append(e); }"
    opened.js(f"({put})('script', 'textContent', 'window.pwned = 1')")
    opened.js(f"({put})('img', 'src', 'http://127.0.0.1:1/x')")
    assert opened.js("typeof window.pwned") == "undefined"
    assert any("Content Security Policy" in complaint for complaint in opened.complaints)


def test_three_hundred_services(browser: Page, tmp_path: Path) -> None:
    def principal(number: int) -> str:
        return f"example.org/ns/n{number % 10}/sa/service-{number}"

    targets = [Target(spiffe_id=f"spiffe://{principal(n)}", namespace=f"n{n % 10}") for n in range(300)]
    policies = []
    for n in range(300):
        callers = tuple(Match(MatchKind.EXACT, principal((n * 7 + k) % 300)) for k in range(1, 4))
        rule = Rule(sources=((Clause(attribute=Attribute.SOURCE_PRINCIPAL, matches=callers),),))
        scope = Scope(spiffe_ids=(Match(MatchKind.EXACT, f"spiffe://{principal(n)}"),))
        policies.append(Policy(namespace=f"n{n % 10}", name=f"p{n}", scope=scope, rules=(rule,)))
    policies.append(Policy(namespace="n3", name="all", rules=(Rule(),)))
    opened = show(browser, tmp_path, graph_of(compile_set(policies, MESH, targets)))
    assert opened.js("document.querySelectorAll('#picture circle.mark').length") == 300
    opened.click("#list button[data-id$='service-13']")
    assert lines(opened, ".to") == 300
    spent = opened.js("(() => { const t = performance.now(); draw(); return performance.now() - t; })()")
    assert spent < 5000


def test_a_page_without_services_says_so(browser: Page, tmp_path: Path) -> None:
    opened = show(browser, tmp_path, Graph())
    assert opened.js("document.getElementById('empty').hidden") is False


def test_the_source_holds_no_name_outside_its_data() -> None:
    text = page(shop())
    outside = re.sub(r'<script type="application/json" id="data">.*?</script>', "", text, flags=re.DOTALL)
    assert "example.org" not in outside
    assert "innerHTML" not in text
    assert text.count("http") == text.count("http://www.w3.org/2000/svg") + text.count("http-equiv")
