"""`caadmin policy` on a server that runs: `rollout`, `watch` and `decisions`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ca.cli.arguments import DURATION_HELP, instant_or_ago, waiting
from ca.cli.connection import AgentSocketOption, Remote, SocketOption, agent_socket, channel, server_socket
from ca.cli.output import Output, OutputOption, bold, emit, plain
from ca.cli.policy_client import Api, ServerRefusal, policy_api
from ca.cli.policy_texts import NOT_PUSHED, decision_lines, decision_row, proxy_detail, rollout_text, seconds
from ca.errors import FailedPrecondition, InvalidArgument, Unavailable

if TYPE_CHECKING:
    from ca.proto.burgee import decisions_pb2

Document = Mapping[str, Any]
LOOK_SECONDS = 0.1
LONGEST_SECONDS = 1.0
WAIT_SECONDS = 30
CALL_SECONDS = 60.0
AGENT_PAGE = 1000


def rollout(
    wait: Annotated[
        bool, typer.Option("--wait", help="Until each agent has the policies, and each proxy has taken them over.")
    ] = False,
    timeout: Annotated[str, typer.Option(help=f"With --wait: how long. {DURATION_HELP}")] = "60s",
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Show which policies each agent has, and what each of its proxies made of them, in the proxy's own words.

    An agent for whose workloads a revision changes nothing is sent nothing, and is current with an older revision. A
    proxy is `acked` when it has taken over what it was sent, `sent` when it has not answered, and `nacked` when it
    refuses it and goes on by what it had. An `unlogged` one does not tell the agent of its decisions.

    With --wait, exits with 1 when a proxy or an agent refuses, or when the time is over.
    """
    deadline, pause = time.monotonic() + waiting(timeout), LOOK_SECONDS
    with policy_api(socket) as api:
        found = api.get("/rollout")
        while wait and found["pushed"] and _waits(found) and not _refused(found) and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_SECONDS)
            found = api.get("/rollout")
    emit({**found, "complete": found["pushed"] and not _waits(found)}, output, lambda: rollout_text(found))
    if not wait:
        return
    if not found["pushed"]:
        hint = "`push_service: true` in the server's configuration"
        raise FailedPrecondition(NOT_PUSHED, reason="POLICIES_NOT_PUSHED", hint=hint)
    if refused := _refused(found):
        raise FailedPrecondition(
            f"not everybody takes over revision {found['revision']}: {'; '.join(refused[:3])}",
            reason="POLICY_NACKED",
            hint="who refuses goes on by what it had: what is tighter now does not hold there",
        )
    if waits := _waits(found):
        raise FailedPrecondition(f"not there in time: {'; '.join(waits[:3])}", reason="ROLLOUT_TIMEOUT")


def _waits(found: Document) -> list[str]:
    """Who has not taken over what it needs. Who is not there cannot be waited for: it is sent it when it comes."""
    agents = [f"agent {one['agent']} is {one['state']}" for one in found["agents"] if one["state"] == "behind"]
    return agents + [
        f"proxy {one['proxy']} ({one['resource']}) is {one['state']} with revision {one['revision']}"
        for one in found["proxies"]
        if not one["current"] and one["agent_state"] in ("behind", "current") and one["state"] != "nacked"
    ]


def _refused(found: Document) -> list[str]:
    agents = [f"agent {one['agent']}: {one['error']}" for one in found["agents"] if one["state"] == "failed"]
    return agents + [
        f"proxy {one['proxy']} ({one['resource']}): {proxy_detail(one)}"
        for one in found["proxies"]
        if one["state"] == "nacked"
    ]


class Lines(StrEnum):
    """How what comes is printed."""

    TEXT = "text"
    JSON = "json"


def watch(
    after: Annotated[
        int | None,
        typer.Option(min=0, help="Begin with the revision after this one. Default: the newest.", show_default=False),
    ] = None,
    count: Annotated[int, typer.Option(min=0, help="End after so many revisions; 0 for never.")] = 0,
    output: Annotated[Lines, typer.Option("--output", "-o", help="For people or for programs.")] = Lines.TEXT,
    socket: SocketOption = None,
) -> None:
    """Print revisions as they come: who wrote what, and why. Ends with Ctrl-C."""
    from ca.cli.policy_plan import newest

    left = count or sys.maxsize
    with policy_api(socket) as api:
        known = newest(api) if after is None else after
        try:
            for found in _revisions(api, known):
                _tell(found, output)
                left -= 1
                if not left:
                    return
        except KeyboardInterrupt:
            return


def _revisions(api: Api, known: int) -> Iterator[Document]:
    """Each one after `known` that is kept, as long as somebody reads. A server that is away is waited for."""
    away = False
    while True:
        try:
            found = api.get("/watch", after=known, wait_seconds=WAIT_SECONDS)
            for number in range(known + 1, found["revision"] + 1):
                if (one := _revision(api, number)) is not None:
                    yield one
                known = number
            away = False
        except Unavailable as error:
            if not away:
                print(plain(f"waiting: {error.detail}"), file=sys.stderr)
            away = True
            time.sleep(LONGEST_SECONDS)


def _revision(api: Api, number: int) -> Document | None:
    """None for one that is kept no more."""
    try:
        return api.get(f"/revisions/{number}")
    except ServerRefusal as error:
        if error.reason != "POLICY_REVISION_NOT_FOUND":
            raise
        return None


def _tell(found: Document, output: Lines) -> None:
    if output is Lines.JSON:
        print(json.dumps(found, separators=(",", ":")), flush=True)
        return
    print(
        bold(plain(f"revision {found['number']}  {seconds(found['at'])}  {found['actor']}  {found['note']}".rstrip()))
    )
    for one in found["changes"]:
        sign = "+" if one["before"] is None else "-" if one["after"] is None else "~"
        print(plain(f"  {sign} {one['kind']} {one['namespace']}/{one['name']}"), flush=True)


class Records(StrEnum):
    """How decisions are printed; as lines they can be replayed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    LINES = "jsonl"


IdOption = Annotated[str, typer.Option(help="Only of this ID; with `*` at its end, all that begin so.")]
CalledOption = Annotated[str, typer.Option(help="Only calls of this one: a SPIFFE ID, or its beginning and `*`.")]
CallerOption = Annotated[str, typer.Option("--from", help="Only calls by this one, likewise.")]
PolicyOption = Annotated[
    str, typer.Option(help="Only what this policy decided: NAMESPACE/NAME, or its beginning and `*`.")
]
VerdictOption = Annotated[bool | None, typer.Option("--allowed/--denied", help="Only these.", show_default=False)]
SourceOption = Annotated[
    str, typer.Option(help="Only what was decided so: ext_authz, pushed, authzen or evaluate.", show_default=False)
]
SinceOption = Annotated[
    str | None, typer.Option(help="Only from then on: a time, or how long ago, such as 10m.", show_default=False)
]
UntilOption = Annotated[
    str | None, typer.Option(help="Only before: a time, or how long ago, such as 10m.", show_default=False)
]
LimitOption = Annotated[int, typer.Option(min=1, help="At most so many, the newest.")]
AgentOption = Annotated[bool, typer.Option("--agent", help="Ask the agent of this node, whose proxies it serves.")]
FollowOption = Annotated[bool, typer.Option("--follow", help="Print decisions as they are made. Ends with Ctrl-C.")]
CountOption = Annotated[int, typer.Option(min=0, help="With --follow: end after so many; 0 for never.")]
RecordsOption = Annotated[Records, typer.Option("--output", "-o", help="How to print them; jsonl can be replayed.")]


def decisions(
    id: IdOption = "",
    target: CalledOption = "",
    principal: CallerOption = "",
    policy: PolicyOption = "",
    allowed: VerdictOption = None,
    source: SourceOption = "",
    since: SinceOption = None,
    until: UntilOption = None,
    limit: LimitOption = 100,
    agent: AgentOption = False,
    follow: FollowOption = False,
    count: CountOption = 0,
    output: RecordsOption = Records.TABLE,
    agent_socket_path: AgentSocketOption = None,
    socket: SocketOption = None,
) -> None:
    """Show what was decided, the newest first: by the server, or with --agent by the proxies of this node.

    What a proxy decides by pushed policies, or asks its agent about, is in the agent's log; what the server was asked
    is in its own.
    """
    wanted: dict[str, Any] = {
        "id": id,
        "target": target,
        "principal": principal.removeprefix("spiffe://"),
        "policy": policy,
        "source": source,
    }
    where = agent_socket(agent_socket_path) if agent else server_socket(socket)
    if follow:
        if since is not None or until is not None:
            raise InvalidArgument("--since and --until are not for --follow, which begins now", reason="USAGE")
        _follow(where, "agent" if agent else "server", _filter(wanted, allowed), output, count)
        return
    times = {"since": _time(since), "until": _time(until)}
    if agent:
        found = list(of_agent(where, _filter(wanted, allowed), times, limit))
    else:
        asked = {name: value for name, value in wanted.items() if value}
        with policy_api(socket) as api:
            found = list(api.pages("/decisions", most=limit, allowed=allowed, **asked, **times))
    if output is Records.LINES:
        for one in found:
            print(json.dumps(one, separators=(",", ":")))
    else:
        emit({"items": found}, Output(output.value), lambda: decision_lines(found))
        if not found and not agent:
            print("what proxies decided is in the logs of their agents: --agent asks this node's", file=sys.stderr)


def _time(text: str | None) -> str | None:
    return None if text is None else datetime.fromtimestamp(instant_or_ago(text), UTC).isoformat()


def _filter(wanted: Mapping[str, Any], allowed: bool | None) -> decisions_pb2.Filter:
    from ca.proto.burgee import decisions_pb2

    return decisions_pb2.Filter(**wanted, allowed=allowed)


def of_agent(
    where: Path | Remote, wanted: decisions_pb2.Filter, times: Mapping[str, Any], limit: int
) -> Iterator[dict[str, Any]]:
    """The newest `limit` decisions of an agent's log, the newest first."""
    from ca.proto.burgee import decisions_pb2, decisions_pb2_grpc

    told: set[str] = set()
    with channel(where, who="agent") as opened:
        stub = decisions_pb2_grpc.DecisionsStub(opened)
        while len(told) < limit:
            request = decisions_pb2.ListRequest(filter=wanted, limit=AGENT_PAGE, **times)
            answer = stub.List(request, timeout=CALL_SECONDS)
            if answer.lost:
                print(f"{answer.lost} decisions among these were lost", file=sys.stderr)
            page = [json.loads(one.record) for one in answer.decisions]
            fresh = [one for one in page if one["id"] not in told][: limit - len(told)]
            yield from fresh
            told.update(one["id"] for one in fresh)
            if answer.complete or not fresh:
                return
            last = datetime.fromisoformat(page[-1]["at"]) + timedelta(microseconds=1)  # others may be of that time
            times = {**times, "until": last.isoformat()}


def _follow(where: Path | Remote, who: str, wanted: decisions_pb2.Filter, output: Records, count: int) -> None:
    if output is Records.YAML:
        raise InvalidArgument("--follow prints text or JSON lines", reason="USAGE")
    left = count or sys.maxsize
    try:
        for record, missed in _watched(where, who, wanted):
            if missed:
                print(f"{missed} decisions went by unseen", file=sys.stderr)
            if record is None:
                continue
            print(_line(record) if output is Records.TABLE else json.dumps(record, separators=(",", ":")), flush=True)
            left -= 1
            if not left:
                return
    except KeyboardInterrupt:
        return


def _watched(where: Path | Remote, who: str, wanted: decisions_pb2.Filter) -> Iterator[tuple[Document | None, int]]:
    from ca.proto.burgee import decisions_pb2, decisions_pb2_grpc

    with channel(where, who=who) as opened:
        call = decisions_pb2_grpc.DecisionsStub(opened).Watch(decisions_pb2.WatchRequest(filter=wanted))
        try:
            for answer in call:
                record = json.loads(answer.decision.record) if answer.HasField("decision") else None
                yield record, answer.missed
        finally:
            call.cancel()


def _line(record: Document) -> str:
    cells: Sequence[object] = decision_row(record)
    return "  ".join(plain(cell) for cell in cells)
