"""`caadmin wait`: starts a program when its identity is there, or says why it is not."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from ca.cli.arguments import DURATION_HELP, waiting
from ca.cli.svid import EndpointOption
from ca.cli.workload import workload_client
from ca.errors import BurgeeError, Code, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from ca.identity.spiffe_id import SpiffeId

if TYPE_CHECKING:
    from ca.cli.workload import WorkloadClient

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 1.0
CALL_SECONDS = 5.0
"""One question; the agent itself waits up to five seconds for an SVID that is under way."""

_CHANGED_BY_PYTHON = ("SIGPIPE", "SIGXFSZ")
"""Signals that this program ignores and the next one need not."""


class What(StrEnum):
    """What to wait for."""

    SVID = "svid"
    JWT = "jwt"
    BUNDLE = "bundle"


def wait(
    program: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- COMMAND [ARGUMENTS]...", help="Runs in the place of this process.", show_default=False
        ),
    ] = None,
    what: Annotated[
        What, typer.Option("--for", help="An X.509-SVID, a JWT-SVID for --audience, or the trust bundle.")
    ] = What.SVID,
    spiffe_id: Annotated[str, typer.Option("--id", help="Only an SVID of this SPIFFE ID will do.")] = "",
    audience: Annotated[
        list[str] | None, typer.Option(help="With --for jwt: whom the token is for. Repeatable.", show_default=False)
    ] = None,
    timeout: Annotated[str, typer.Option(help=f"How long to wait. {DURATION_HELP}")] = "30s",
    endpoint: EndpointOption = None,
) -> None:
    """Wait until the Workload API gives this process its identity, then become the command.

    Example: caadmin wait --for svid --timeout 30s -- ./app --port 8080

    The agent attests the command anew when it asks for itself: an entry that selects it by its path or hash is not for
    the process that waits. Exits with 1 when the time is over, and says what the last refusal was.
    """
    _check(what, spiffe_id, audience)
    deadline = time.monotonic() + waiting(timeout)
    until(lambda seconds: _ask(endpoint, what, spiffe_id, audience or [], seconds), deadline, _asked(what, spiffe_id))
    if program:
        become(program)


def _check(what: What, spiffe_id: str, audience: list[str] | None) -> None:
    """Raises InvalidArgument for what can never come."""
    if (what is What.JWT) != bool(audience):
        raise InvalidArgument("--for jwt and --audience go together", reason="USAGE")
    if spiffe_id:
        if what is What.BUNDLE:
            raise InvalidArgument("--id is of no use with --for bundle", reason="USAGE")
        SpiffeId.parse(spiffe_id)


def until(ask: Callable[[float], None], deadline: float, wanted: str) -> None:
    """Asks again and again, with the seconds that one question may take, until it raises nothing.

    Raises FailedPrecondition (WAIT_TIMEOUT) with the last refusal, or at once what cannot pass.
    """
    pause = FIRST_PAUSE_SECONDS
    while True:
        left = deadline - time.monotonic()
        try:
            ask(min(max(left, FIRST_PAUSE_SECONDS), CALL_SECONDS))
            return
        except BurgeeError as error:
            if error.code is Code.INVALID_ARGUMENT:  # SPIFFE Workload Endpoint §6: not to be retried
                raise
            refusal = error
        left = deadline - time.monotonic()
        if left <= 0:
            raise FailedPrecondition(
                f"no {wanted} in time; last: {refusal.detail} ({refusal.reason})",
                reason="WAIT_TIMEOUT",
                hint=refusal.hint,
            ) from refusal
        time.sleep(min(pause, left))
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def become(program: Sequence[str]) -> None:
    """Run a program in the place of this process, with its process id, and with signals as they were at first."""
    sys.stdout.flush()
    sys.stderr.flush()
    for name in _CHANGED_BY_PYTHON:
        if (number := getattr(signal, name, None)) is not None:
            signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(program[0], list(program))  # noqa: S606 - the caller's own command, without a shell
    except OSError as error:
        raise NotFound(f"cannot run `{program[0]}`: {error.strerror}", reason="COMMAND") from error


def _ask(endpoint: str | None, what: What, spiffe_id: str, audience: list[str], seconds: float) -> None:
    with workload_client(endpoint) as client:
        found = _found(client, what, spiffe_id, audience, seconds)
    if spiffe_id and spiffe_id not in found:
        raise Unavailable(
            f"no SVID of `{spiffe_id}` is given to this process",
            reason="SVID_NOT_GIVEN",
            hint=f"it is given {', '.join(found)}",
        )


def _found(client: WorkloadClient, what: What, spiffe_id: str, audience: list[str], seconds: float) -> list[str]:
    """The SPIFFE IDs of what is given now."""
    if what is What.SVID:
        return [svid.spiffe_id for svid in client.fetch_x509_once(seconds).svids]
    if what is What.JWT:
        return [svid.spiffe_id for svid in client.fetch_jwt(audience, spiffe_id, seconds).svids]
    return list(client.fetch_x509_bundles(seconds).bundles)


def _asked(what: What, spiffe_id: str) -> str:
    name = {What.SVID: "X.509-SVID", What.JWT: "JWT-SVID", What.BUNDLE: "trust bundle"}[what]
    return f"{name} of `{spiffe_id}`" if spiffe_id else name
