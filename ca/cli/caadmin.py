"""`caadmin`: administers a Burgee server and agent through their APIs."""

from __future__ import annotations

import typer

from ca.cli import agent, bundle, config, debug, entry, foresight, svid, token
from ca.cli import ca as authorities
from ca.cli.audit import audit
from ca.cli.exits import EXPLAINED, run
from ca.cli.health import health
from ca.cli.issued import issued
from ca.cli.prune import prune
from ca.cli.remote_options import offer
from ca.cli.version import VersionOption, version

app = typer.Typer(
    name="caadmin",
    help="Administer a Burgee server and agent through their APIs.",
    epilog=EXPLAINED,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for _noun, _commands in {
    "entry": entry.app,
    "agent": agent.app,
    "token": token.app,
    "bundle": bundle.app,
    "ca": authorities.app,
    "svid": svid.app,
    "ttl": foresight.ttl,
    "upstream": foresight.upstream,
    "config": config.app,
    "debug": debug.app,
}.items():
    app.add_typer(_commands, name=_noun, no_args_is_help=True)


@app.callback()
def caadmin(version: VersionOption = False) -> None:
    """Administer a Burgee server and agent through their APIs."""


app.command()(issued)
app.command()(audit)
app.command()(prune)
app.command()(health)
app.command()(foresight.outage_budget)
app.command()(version)
offer(app)


def main() -> None:
    """The console script."""
    run(app, "caadmin")


if __name__ == "__main__":
    main()
