"""The graph as one page that needs nothing else: no network, no library, and nothing in it that a name could break.

Names are data: they stand in a JSON block, in which no `<` is left, and the page's script puts them in as text. The
page's own policy lets no script and no style run but the two that are in it, by their hashes, and loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files

from policy.graph import Graph, Verdict

_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def page(graph: Graph) -> str:
    """HTML."""
    css, js = _part("graph.css"), _part("graph.js") + _part("details.js")
    csp = f"default-src 'none'; script-src '{_hash(js)}'; style-src '{_hash(css)}'; base-uri 'none'; form-action 'none'"
    parts = {"CSP": csp, "CSS": css, "JS": js, "DATA": _data(graph)}
    head, *rest = _part("graph.html").split("@@")
    return head + "".join(parts[text] if at % 2 == 0 else text for at, text in enumerate(rest))


def _data(graph: Graph) -> str:
    """As JSON that no parser of HTML finds anything in. Pairs are by the numbers of who calls and who is called."""
    document = graph.document()
    everybody = tuple(graph.principals())
    numbers = {who: number for number, who in enumerate(everybody)}
    document["everybody"] = list(everybody)
    document["pairs"] = [
        [numbers[pair.caller], numbers[pair.service], list(Verdict).index(pair.verdict)]
        for pair in graph.pairs()
        if pair.caller != pair.service
    ]
    text = json.dumps(document, separators=(",", ":"))
    return "".join(_ESCAPES.get(character, character) for character in text)


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


@cache
def _part(name: str) -> str:
    return files("policy").joinpath("page", name).read_text("utf-8")
