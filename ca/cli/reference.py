"""Prints the command line reference as Markdown: `python -m ca.cli.reference`. The same on every terminal."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from ca.cli import burgee, caadmin
from ca.cli.connection import AGENT_VARIABLE, SERVER_VARIABLE
from ca.cli.exits import EXPLAINED
from ca.identity.endpoint import ENVIRONMENT_VARIABLE

_HEAD = f"""# Command line

Printed by `python -m ca.cli.reference`; change the code, then run `make proto`.

{EXPLAINED}

Errors go to standard error with a stable reason code and, where one helps, a hint. Colours appear on a terminal alone,
and not when `NO_COLOR` is set. `--install-completion` installs completion for your shell, `--version` prints the
version. `-o` is short for `--output` everywhere. Durations are seconds, or such as `90s`, `1h30m` and `7d`.

`caadmin` looks for the server's admin socket, the agent's and the Workload API by one rule, so that all commands mean
the same pair: the option (`--socket`, `--agent-socket`, `--endpoint`), else its environment variable
(`{SERVER_VARIABLE}`, `{AGENT_VARIABLE}`, `{ENVIRONMENT_VARIABLE}`), else the `burgee up` that runs in this
directory, else where an installed server or agent has it.
"""
_KINDS: dict[Any, str] = {int: "NUMBER", float: "NUMBER", Path: "PATH"}
_GLOBAL = {"--help", "--install-completion", "--show-completion"}


def reference() -> str:
    """Every command of both programs with its arguments and options."""
    parts = [_HEAD]
    for name, app in (("burgee", burgee.app), ("caadmin", caadmin.program())):
        parts += _commands(name, typer.main.get_command(app), level=2)
    return "\n".join(parts)


def _commands(path: str, command: Any, level: int) -> Iterator[str]:
    yield f"{'#' * min(level, 4)} {path}\n"
    if text := inspect.cleandoc(command.help or ""):
        yield f"{text}\n"
    children = getattr(command, "commands", {})
    if not children:
        yield f"```text\n{' '.join([path, *_usage(command)])}\n```\n"
        yield from _table(command)
    for name in children:
        yield from _commands(f"{path} {name}", children[name], level + 1)


def _usage(command: Any) -> Iterator[str]:
    if _options(command):
        yield "[OPTIONS]"
    for parameter in _arguments(command):
        name = parameter.metavar or parameter.name.upper()
        yield name if parameter.required else f"[{name}]"
    if command.context_settings.get("allow_extra_args"):
        yield "[ARGUMENTS]..."


def _table(command: Any) -> Iterator[str]:
    rows = [(f"`{p.metavar or p.name.upper()}`", p.help or "", "") for p in _arguments(command)]
    rows += [(_names(option), _help(option), _default(option)) for option in _options(command)]
    if rows:
        lines = ["| | | Default |", "|---|---|---|"]
        lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
        yield "\n".join(lines) + "\n"


def _arguments(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "argument"]


def _options(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "option" and not _GLOBAL & set(p.opts) and not p.hidden]


def _names(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    return names if option.is_flag else f"{names} {_metavar(option)}"


def _metavar(option: Any) -> str:
    kind: type[Any] = option.type_descriptor.annotation
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"`{'|'.join(str(choice.value) for choice in kind)}`"
    return f"`{option.metavar or _KINDS.get(kind, 'TEXT')}`"


def _help(option: Any) -> str:
    text = option.help or ""
    if option.envvar:
        text += f" Environment: `{option.envvar}`."
    return f"{text} Required." if option.required else text


def _default(option: Any) -> str:
    value = getattr(option.default, "value", option.default)
    if option.is_flag and not option.secondary_opts:
        return ""
    if isinstance(value, bool):
        return f"`{(option.opts if value else option.secondary_opts)[0]}`"
    return "" if value in (None, "", ()) else f"`{value}`"


if __name__ == "__main__":
    print(reference().rstrip("\n"))
