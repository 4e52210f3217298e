"""Objects as YAML that our reader gives back as they are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import yaml

from policy.documents import plain


class _Dumper(yaml.SafeDumper):
    """Puts into quotes what our reader would take for something else than a text, and writes everything out."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain(text) == text else "'")


def _mapping(dumper: yaml.SafeDumper, mapping: OrderedDict[str, Any]) -> yaml.Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", mapping.items())


_Dumper.add_representer(str, _text)
_Dumper.add_representer(OrderedDict, _mapping)


def dumped(objects: Sequence[dict[str, Any]]) -> str:
    """A document each."""
    if not objects:
        return ""
    text: str = yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, explicit_start=True, width=120)
    return text
