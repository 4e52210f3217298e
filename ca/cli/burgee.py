"""`burgee`: starts the server, the agent, a cluster's controller, or with `up` all that a first look needs."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ca.cli.exits import EXPLAINED, Exit, leave, run
from ca.cli.version import VersionOption, version
from ca.up.options import DEFAULT_DIRECTORY, DEFAULT_PORT, DEFAULT_TRUST_DOMAIN, Options

app = typer.Typer(
    name="burgee",
    help="Burgee: a SPIFFE identity authority.",
    epilog=EXPLAINED,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(version)


@app.callback()
def burgee(version: VersionOption = False) -> None:
    """Burgee: a SPIFFE identity authority."""


_PROGRAMS = {"server": "ca.serve", "agent": "sds.agent", "controller": "ca.controller"}
_PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


class UpOutput(StrEnum):
    """How `burgee up` reports."""

    TEXT = "text"
    JSON = "json"


@app.command(context_settings=_PASS_ON)
def server(context: typer.Context) -> None:
    """Run the server. Arguments: --config FILE, and --check to only check the file."""
    _become("server", context.args)


@app.command(context_settings=_PASS_ON)
def agent(context: typer.Context) -> None:
    """Run the agent of this node. Arguments: --config FILE, and --check to only check the file."""
    _become("agent", context.args)


@app.command(context_settings=_PASS_ON)
def controller(context: typer.Context) -> None:
    """Keep entries for the pods of a Kubernetes cluster.

    Arguments: --config FILE; --check to only check the file; --dry-run to only say what would be done.
    """
    _become("controller", context.args)


@app.command()
def up(
    once: Annotated[
        bool, typer.Option("--once", help="Bring everything up, verify it, print a summary and end.")
    ] = False,
    demo: Annotated[bool, typer.Option("--demo/--no-demo", help="With the demo of two services, or without.")] = True,
    trust_domain: Annotated[str, typer.Option(help="The trust domain.")] = DEFAULT_TRUST_DOMAIN,
    directory: Annotated[Path, typer.Option("--dir", help="Where state is kept between runs.")] = DEFAULT_DIRECTORY,
    port: Annotated[
        int, typer.Option(help="The server's port on loopback; 0 for any.", min=0, max=65535)
    ] = DEFAULT_PORT,
    output: Annotated[UpOutput, typer.Option("--output", "-o", help="For people or for programs.")] = UpOutput.TEXT,
) -> None:
    """Run server, agent and a demo in one go.

    The demo is two services behind real Envoys, speaking mTLS with identities issued here. Everything runs in the
    foreground until Ctrl-C. A second run in the same directory goes on with the same authority and agent.
    """
    from ca.identity.spiffe_id import TrustDomain
    from ca.up.run import up as run_up

    options = Options(
        trust_domain=TrustDomain.parse(trust_domain),
        directory=directory,
        port=port,
        once=once,
        demo=demo,
        output=output.value,
    )
    leave(Exit(run_up(options)))


def _become(program: str, arguments: list[str]) -> NoReturn:
    """Replace this process by the program, which reads its own arguments. -P: the current directory is no place to
    import from."""
    command = [sys.executable, "-P", "-m", _PROGRAMS[program], *arguments]
    os.execv(sys.executable, command)  # noqa: S606 - an argument list is what keeps a shell out


def main() -> None:
    """The console script."""
    run(app, "burgee")


if __name__ == "__main__":
    main()
