"""Every plugin has a page: its options as the models have them, an example, what it stops and what it does not."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
from pydantic import BaseModel

from tests.docs.pages import blocks
from tests.docs.reason_codes import ROOT
from tests.support.plugin_pages import with_tables

KINDS = {
    "burgee.node_attestors": "node-attestor",
    "burgee.workload_attestors": "workload-attestor",
    "burgee.key_managers": "key-manager",
    "burgee.upstream_authorities": "upstream",
    "burgee.bundle_publishers": "bundle-publisher",
}
OURS = ("attestor.", "ca.")
PLUGINS = [
    (kind, found)
    for group, kind in KINDS.items()
    for found in entry_points(group=group)
    if found.value.startswith(OURS)
]


def page_of(kind: str, plugin: EntryPoint) -> Path:
    return ROOT / f"docs/plugins/{kind}-{plugin.name}.md"


def models(plugin: EntryPoint) -> list[type[BaseModel]]:
    """Those that have options."""
    loaded = plugin.load()
    found = [getattr(loaded, name, None) for name in ("config", "server_config", "agent_config")]
    return [model for model in found if model is not None and model.model_fields]


def test_there_are_plugins() -> None:
    assert {kind for kind, _ in PLUGINS} == set(KINDS.values())


@pytest.mark.parametrize(("kind", "plugin"), PLUGINS, ids=[f"{kind}-{plugin.name}" for kind, plugin in PLUGINS])
def test_the_page_of_a_plugin(kind: str, plugin: EntryPoint) -> None:
    page = page_of(kind, plugin)
    text = page.read_text()
    for model in models(plugin):
        assert f"<!-- table: {model.__module__} {model.__name__} -->" in text, "its table is made from its model"
    assert with_tables(text) == text, "run `make proto`"
    assert any(plugin.name in example for example in blocks(page, "yaml")), "an example"
    for said in (r"threats? it stops", r"(and the ones? it does not|threat it does not)"):
        assert re.search(said, text, re.I), said
    if kind == "node-attestor":
        assert re.search(r"^## (Replay|The same evidence again)$", text, re.M), (
            "what becomes of evidence that is shown again"
        )
    assert page.name in (ROOT / "mkdocs.yml").read_text(), "it is in the navigation"
