"""`caadmin`: administers a Burgee server and agent through their APIs."""

from __future__ import annotations

import atexit
import gc
import sys
from importlib import import_module
from typing import Any

import typer

from ca.cli.exits import EXPLAINED, run
from ca.cli.remote_options import offer
from ca.cli.version import VersionOption

GARBAGE_THRESHOLD = 50_000
"""New objects before garbage is looked for: more than a short call makes."""

_NOUNS = {
    "entry": "ca.cli.entry:app",
    "agent": "ca.cli.agent:app",
    "token": "ca.cli.token:app",
    "bundle": "ca.cli.bundle:app",
    "ca": "ca.cli.ca:app",
    "policy": "ca.cli.policy:app",
    "svid": "ca.cli.svid:app",
    "ttl": "ca.cli.foresight:ttl",
    "upstream": "ca.cli.foresight:upstream",
    "config": "ca.cli.config:app",
    "debug": "ca.cli.debug:app",
    "explain": "ca.cli.explain:app",
}
_COMMANDS = {
    "issued": "ca.cli.issued:issued",
    "exchange": "ca.cli.exchange:exchange",
    "audit": "ca.cli.audit:audit",
    "prune": "ca.cli.prune:prune",
    "health": "ca.cli.health:health",
    "doctor": "ca.cli.doctor:doctor",
    "wait": "ca.cli.wait:wait",
    "outage-budget": "ca.cli.foresight:outage_budget",
    "version": "ca.cli.version:version",
}


def program(word: str = "") -> typer.Typer:
    """With all its commands, or with the one alone that begins with `word`: loading the others costs more than most
    calls take."""
    app = typer.Typer(
        name="caadmin",
        help="Administer a Burgee server and agent through their APIs.",
        epilog=EXPLAINED,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(caadmin)
    alone = word in _NOUNS or word in _COMMANDS
    for noun, where in _NOUNS.items():
        if noun == word or not alone:
            app.add_typer(_found(where), name=noun, no_args_is_help=True)
    for name, where in _COMMANDS.items():
        if name == word or not alone:
            app.command(name)(_found(where))
    offer(app)
    return app


def caadmin(version: VersionOption = False) -> None:
    """Administer a Burgee server and agent through their APIs."""


def _found(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


def main() -> None:
    """The console script. A fifth of what a short call takes was the search for garbage, during it and at its end."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    atexit.register(gc.freeze)
    run(program(sys.argv[1] if len(sys.argv) > 1 else ""), "caadmin")


if __name__ == "__main__":
    main()
