"""`version`: which Burgee this is."""

from __future__ import annotations

import platform
from typing import Annotated

import typer

from ca.cli.output import Output, OutputOption, emit


def _show(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", help="Print the version and exit.", callback=_show, is_eager=True)
]


def version(output: OutputOption = Output.TABLE) -> None:
    """Print the version."""
    data = {"version": package_version(), "python": platform.python_version()}
    emit(data, output, lambda: f"burgee {data['version']} (Python {data['python']})")


def package_version() -> str:
    """Of the installed package."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("burgee")
    except PackageNotFoundError:
        return "unknown"
