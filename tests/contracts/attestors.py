"""What the contract suites of attestors need to know about each plugin; its own test module says it.

`tests/attestor/<kind>/test_<name>.py` defines `contract_sample()`. A plugin in another package names its own by an
entry point `<kind>.<name>` of the group `burgee.contract_samples`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ca.ports import NodeHost
from ca.runtime.config import StrictModel


@dataclass(kw_only=True)
class NodeSample:
    """Configurations of both halves that belong together, and the server's host that makes them succeed once."""

    host: NodeHost
    server: Mapping[str, Any] = field(default_factory=dict)
    agent: Mapping[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class WorkloadSample:
    """A configuration with which the attestor finds something about the test's own process.

    `tree` is what stands for its /proc directory where the test's process cannot be what the attestor looks for.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    tree: Path | None = None


def sample(kind: str, name: str) -> Any:
    """The plugin's `contract_sample()`; a plugin without one fails the suite."""
    for point in entry_points(group="burgee.contract_samples", name=f"{kind}.{name}"):
        return point.load()()
    module = _module(f"tests.attestor.{kind}.test_{name}")
    return module.contract_sample()


def check_model(model: type[Any]) -> None:
    """A plugin's configuration is as strict as ours, and documented."""
    assert issubclass(model, StrictModel)
    assert model.model_config["extra"] == "forbid"
    assert model.model_config["frozen"]
    assert model.__doc__
    for name, value in model.model_fields.items():
        assert value.description, f"`{name}` of {model.__qualname__} has no description"


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        pytest.fail(f"a plugin is tested by `{name}`, which must define `contract_sample()`")
