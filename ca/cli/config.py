"""`caadmin config`: check a configuration file as the program that reads it would."""

from __future__ import annotations

import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ca.cli.exits import Exit, leave
from ca.cli.output import Output, OutputOption, emit, green
from ca.errors import ConfigError

app = typer.Typer(help="Configuration files.")

CHECK_SECONDS = 60


class Kind(StrEnum):
    """Whose configuration it is."""

    SERVER = "server"
    AGENT = "agent"


_PROGRAMS = {Kind.SERVER: "ca.serve", Kind.AGENT: "sds.agent"}
_SIGNS = {
    Kind.SERVER: {"bind_address", "bind_port", "store", "keys", "node_attestors", "ca_ttl_seconds", "bundle_file"},
    Kind.AGENT: {"servers", "workload_socket", "trust", "node_attestor", "workload_attestors", "cache", "sds"},
}
"""Keys that only one of them has."""
_SHORTEST = {"trust_domain", "data_dir"}
"""What both have, and all that a server needs; an agent's file has more."""


@app.callback()
def config() -> None:
    """Configuration files."""


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The configuration file.")],
    kind: Annotated[
        Kind | None, typer.Option(help="Whose configuration it is; told by its keys otherwise.", show_default=False)
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Check a server's or an agent's configuration, plugins included, without starting anything.

    Exits with 2 when it is bad.
    """
    kind = kind or detect(file)
    # The program itself judges; a process of its own keeps each one's code out of the other and out of here.
    done = subprocess.run(
        [sys.executable, "-P", "-m", _PROGRAMS[kind], "--config", str(file), "--check"],
        capture_output=True,
        text=True,
        timeout=CHECK_SECONDS,
        check=False,
    )
    words = done.stderr.strip() if done.returncode else ""
    data = {
        "file": str(file),
        "kind": kind.value,
        "valid": done.returncode == 0,
        "problem": words,
    }
    if words and output is Output.TABLE:
        print(words, file=sys.stderr)
    emit(data, output, lambda: "" if done.returncode else f"{file}: {green('valid')} ({kind} configuration)")
    leave(Exit.USAGE if done.returncode else Exit.OK)


def detect(file: Path) -> Kind:
    """By the keys that only one kind of file has. Raises ConfigError when they do not tell."""
    import yaml

    try:
        document = yaml.safe_load(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read `{file}`: {error.strerror}", reason="FILE") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"`{file}` is not YAML: {str(error).splitlines()[0]}") from error
    keys = set(document) if isinstance(document, dict) else set()
    scores = {kind: len(keys & signs) for kind, signs in _SIGNS.items()}
    best = max(scores, key=lambda kind: scores[kind])
    if not any(scores.values()) and keys >= _SHORTEST:
        return Kind.SERVER
    if len({*scores.values()}) == 1:
        raise ConfigError(f"cannot tell whose configuration `{file}` is", hint="say --kind server or --kind agent")
    return best
