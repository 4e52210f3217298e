"""`caadmin ca rotate`: a whole rotation, step by step as each becomes safe; stopped and taken up again at any time."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ca.cli.ca_calls import STEP_SECONDS, KindArgument, rotate_value
from ca.cli.ca_status import blocker_line, blockers_table
from ca.cli.confirm import YesOption, confirm
from ca.cli.connection import SocketOption, channel, server_socket
from ca.cli.exits import Exit
from ca.cli.output import Output, OutputOption, emit, plain

if TYPE_CHECKING:
    from ca.proto.burgee import authority_pb2

LOOK_SECONDS = 1.0
SETTLE_SECONDS = 10.0
"""With --force nobody is cut off who is about to be ready: only when for so long nobody has become so,"""
MOST_SECONDS = 60.0
"""or when a step has waited for so long."""
SHOWN = 5
NAMED = 20


def rotate(
    kind: KindArgument,
    replacing: Annotated[
        str,
        typer.Option(
            help="The authority to be replaced, to go on with a rotation that was begun. Default: the one that signs."
        ),
    ] = "",
    taint: Annotated[
        bool, typer.Option("--taint", help="Its key is stolen: have everything replaced at once, and revoke it.")
    ] = False,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            help="Leave the old authority in the bundle until its end; with --taint it is tainted and not revoked.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the next step is and what it waits for.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Wait 10 s for those who are about to be ready, 60 s at most; then cut off who is not. Asks first.",
        ),
    ] = False,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Replace an authority: prepare, wait until all have it, activate, wait until all is re-issued, remove the old.

    Waits as long as it takes. Ctrl-C stops it, and breaks nothing; the same command with --replacing goes on.
    """
    from ca.proto.burgee import authority_pb2, authority_pb2_grpc

    request = authority_pb2.RotateRequest(kind=kind.value, replacing=replacing, taint=taint, keep=keep, dry_run=dry_run)
    with channel(server_socket(socket)) as opened:
        stub = authority_pb2_grpc.AuthoritiesStub(opened)

        def call(sent: authority_pb2.RotateRequest) -> authority_pb2.RotateResponse:
            return stub.Rotate(sent, timeout=STEP_SECONDS)

        if dry_run:
            data = rotate_value(call(request))
            emit(data, output, lambda: _next(kind, data))
            return
        walk = _Walk(kind, call, loud=output is Output.TABLE)
        data = walk.run(request, force=force, yes=yes)
    emit(data, output, lambda: f"{kind} authority {plain(data['replacing'])} is replaced")


class _Walk:
    """Calls again until it is finished, and tells of what changes."""

    def __init__(self, kind: str, call: Any, *, loud: bool) -> None:
        self._kind = kind
        self._call = call
        self._loud = loud
        self._told = ""
        self._patience = _Patience()
        self._cut_off: list[dict[str, Any]] = []

    def run(self, request: authority_pb2.RotateRequest, *, force: bool, yes: bool) -> dict[str, Any]:
        """The last answer."""
        import grpc

        data: dict[str, Any] = {}
        try:
            while not data.get("finished"):
                data = self._next(request, data)
                looked = request.dry_run
                request.replacing, request.force, request.dry_run = data["replacing"], False, False
                if force and data["waits_for"] and self._patience.is_over(data, time.monotonic()):
                    confirm(_losses(data), yes=yes)
                    self._give_up(data)
                    request.force = True
                    continue
                if looked and not data["waits_for"]:
                    continue
                self._tell(data)
                if not data["done"] and not data["finished"]:
                    request.dry_run = bool(data["waits_for"])  # looking is not recorded
                    time.sleep(LOOK_SECONDS)
            return {**data, "cut_off": self._cut_off}
        except KeyboardInterrupt:
            self._say(f"stopped; nothing is undone. {self._how_to_go_on(request)}")
            raise typer.Exit(Exit.FAILED) from None
        except grpc.RpcError:
            if data:
                self._say(self._how_to_go_on(request))
            raise

    def _give_up(self, data: dict[str, Any]) -> None:
        self._cut_off += data["waits_for"]
        self._say(
            f"cutting off with {data['step']}:\n{blockers_table(data['waits_for'], data['waits_for_total'], NAMED)}"
        )

    def _next(self, request: authority_pb2.RotateRequest, before: dict[str, Any]) -> dict[str, Any]:
        """One call. What was there and is there no more has been replaced, by whoever was quicker."""
        import grpc

        from ca.runtime.rpc_errors import error_of

        try:
            return rotate_value(self._call(request))
        except grpc.RpcError as error:
            failed: Any = error  # the declared type hides that a call's error has code() and details()
            if before and error_of(failed).reason == "AUTHORITY_UNKNOWN":
                return {**before, "step": "", "done": False, "finished": True, "waits_for": [], "waits_for_total": 0}
            raise

    def _how_to_go_on(self, request: authority_pb2.RotateRequest) -> str:
        words = [f"--replacing {plain(request.replacing)}"]
        words += ["--taint"] * request.taint + ["--keep"] * request.keep
        return f"go on with: caadmin ca rotate {self._kind} {' '.join(words)}"

    def _tell(self, data: dict[str, Any]) -> None:
        if not data["step"]:
            return
        line = _done(data) if data["done"] else _waits(data)
        if line != self._told:
            self._say(line)
        self._told = line

    def _say(self, line: str) -> None:
        if self._loud:
            print(line, file=sys.stderr, flush=True)


class _Patience:
    """How long whoever forces a step waits for those who are getting ready: they need seconds, and are many."""

    def __init__(self) -> None:
        self._step = ""
        self._fewest = 0
        self._began = self._moved = 0.0

    def is_over(self, data: dict[str, Any], now: float) -> bool:
        """Whether the rest is to be cut off."""
        step, number = data["step"], data["waits_for_total"]
        if step != self._step:
            self._step, self._fewest, self._began, self._moved = step, number, now, now
        elif number < self._fewest:
            self._fewest, self._moved = number, now
        return now - self._moved >= SETTLE_SECONDS or now - self._began >= MOST_SECONDS


def _done(data: dict[str, Any]) -> str:
    about = data["successor"] if data["step"] == "activate" else data["replacing"]
    words = {
        "prepare": f"a successor of {plain(about)} is made and published",
        "activate": f"{plain(about)} signs now",
        "taint": f"{plain(about)} is tainted: what hangs on it is replaced",
        "revoke": f"{plain(about)} is revoked",
        "prune": f"{plain(about)} has left the bundle",
    }
    return words[data["step"]]


def _waits(data: dict[str, Any]) -> str:
    first = blocker_line(data["waits_for"][0]) if data["waits_for"] else ""
    if data["step"] == "activate":
        return f"waiting: {data['agents_acked']} of {data['agents']} agents have it; {first}"
    return f"waiting: {data['hanging']} of {data['alive']} SVIDs hang on {plain(data['replacing'])} still; {first}"


def _losses(data: dict[str, Any]) -> list[str]:
    return [line.strip() for line in blockers_table(data["waits_for"], data["waits_for_total"], SHOWN).splitlines()]


def _next(kind: str, data: dict[str, Any]) -> str:
    if data["finished"]:
        return f"{kind} authority {plain(data['replacing'])} is replaced already"
    target = plain(data["successor"] if data["step"] == "activate" else data["replacing"])
    about = f"a successor of {target}" if data["step"] == "prepare" else target
    head = f"next: {data['step']} {about}"
    if not data["waits_for_total"]:
        return f"{head}, at once"
    shown = blockers_table(data["waits_for"], data["waits_for_total"], NAMED)
    return f"{head}, which waits for {data['waits_for_total']}:\n{shown}"
