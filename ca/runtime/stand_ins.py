"""Importing a library without what it brings along for uses that it is not put to here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def stand_ins(*names: str) -> Iterator[None]:
    """While libraries are imported in it, these modules are empty shells, in which every name is a class of that name.

    Those that are loaded already stay. Whoever imports them afterwards gets the real ones.
    """
    made = {name: _shell(name) for name in names if name not in sys.modules}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def _shell(name: str) -> ModuleType:
    shell = ModuleType(name)
    shell.__getattr__ = lambda name: type(name, (), {})  # type: ignore[method-assign]
    return shell


def load_protobuf() -> None:
    """Protobuf without its messages in pure Python, which it imports even where others are used: 1.3 MB.

    To be called before anything else imports it. Where there are no others it changes nothing.
    """
    from google.protobuf.internal import api_implementation

    if api_implementation.Type() != "python":
        with stand_ins("google.protobuf.internal.python_message"):
            from google.protobuf.internal import builder  # noqa: F401
