"""Results as a table for people, or as JSON or YAML for programs."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from ca.identity.text import printable

_OURS = re.compile(r"(\x1b\[(?:0|1|31|32)m)")


class Output(StrEnum):
    """How a result is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to print the result.", show_choices=True)]


def emit(data: Any, output: Output, table: Callable[[], str]) -> None:
    """Print `data` as JSON or YAML, or what `table` makes for a person."""
    if output is Output.JSON:
        print(json.dumps(data, indent=2))
    elif output is Output.YAML:
        import yaml

        print(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), end="")
    elif text := table():
        print(_tame(text))


def columns(headers: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> str:
    """Left-aligned columns, two spaces apart, never wrapped; `empty` when there is no row."""
    cells = [[plain(cell) for cell in row] for row in rows]
    if not cells:
        return empty
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    lines: list[str] = [bold("  ".join(h.ljust(w) for h, w in zip(headers, widths, strict=True)).rstrip())]
    lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines)


def fields(pairs: Iterable[tuple[str, object]]) -> str:
    """`name  value` lines; pairs whose value is None or empty are left out, lists take a line per element."""
    shown: list[tuple[str, str]] = []
    for name, value in pairs:
        if isinstance(value, list):
            shown += [(name if number == 0 else "", plain(item)) for number, item in enumerate(value)]
        elif value is not None and value != "":
            shown.append((name, plain(value)))
    width = max((len(name) for name, _ in shown), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in shown)


class Painted(str):
    """Text of ours with colour in it."""

    __slots__ = ()


def plain(value: object) -> str:
    """On one line, and with nothing in it that a terminal obeys: what a server, or whoever told it, may have chosen."""
    return value if isinstance(value, Painted) else printable(str(value))


def _tame(text: str) -> str:
    """The last look at what is printed: nothing but lines, tabs and our own colours."""
    return "".join(part if _OURS.fullmatch(part) else printable(part, besides="\n\t") for part in _OURS.split(text))


def timestamp(seconds: int) -> str | None:
    """Unix seconds as RFC 3339 in UTC; None for 0, which the wire uses for "none"."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds else None


def until(text: str | None, now: datetime | None = None) -> str:
    """An RFC 3339 time with how far away it is, for people."""
    if text is None:
        return "never"
    seconds = round((datetime.fromisoformat(text) - (now or datetime.now(UTC))).total_seconds())
    return f"{text} (in {span(seconds)})" if seconds >= 0 else f"{text} ({span(-seconds)} ago)"


def span(seconds: int) -> str:
    """Seconds as the two largest units: `58s`, `4m 10s`, `3h 5m`, `6d 2h`."""
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
        if len(parts) == 2 or (parts and not count):
            break
    return " ".join(parts)


def bold(text: str) -> Painted:
    return _paint("1", text)


def green(text: str) -> Painted:
    return _paint("32", text)


def red(text: str) -> Painted:
    return _paint("31", text)


def _paint(code: str, text: str) -> Painted:
    """Colour on a terminal alone, and not with NO_COLOR."""
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    return Painted(f"\x1b[{code}m{plain(text)}\x1b[0m" if colour else plain(text))
