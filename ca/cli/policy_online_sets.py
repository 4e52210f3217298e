"""The commands of `caadmin policy` that work on files, held against what a server has where no files are named."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ca.cli import policy_offline, policy_offline_tools
from ca.cli.connection import AgentSocketOption, SocketOption, agent_socket, channel
from ca.cli.exits import Exit, leave
from ca.cli.policy_client import Api, ServerRefusal, policy_api
from ca.cli.policy_files import Form, all_of, caller_of, none_named, show, target_among
from ca.cli.policy_request import request_fields
from ca.cli.policy_texts import finding_lines, record_text
from ca.errors import BurgeeError, InvalidArgument, Unavailable

if TYPE_CHECKING:
    from policy.decision_record import DecisionRecord
    from policy.model import Target
    from policy.state import State

Given = Mapping[str, Any]
Command = Callable[..., None]
CALL_SECONDS = 30.0
MAX_RECORDS = 100_000


def either(
    offline: Command, online: Callable[[Given], None], when: Callable[[Given], bool], /, **options: tuple[Any, Any]
) -> Command:
    """`offline`, or `online` where `when` says so of what was given. `options` are (annotation, default) of parameters
    that are added, or take the place of those of the same name."""

    @wraps(offline)
    def command(**given: Any) -> None:
        if when(asked := {**given, "files": all_of(given.get("sources"), given.get("files"))}):
            _without_files(online, asked)
        else:
            offline(**{name: value for name, value in given.items() if name in known})

    signature = inspect.signature(offline, eval_str=True)
    known = set(signature.parameters)
    kind = inspect.Parameter.KEYWORD_ONLY
    added = {"socket": (SocketOption, None), **options}
    new = {n: inspect.Parameter(n, kind, default=d, annotation=a) for n, (a, d) in added.items()}
    kept = [new.pop(p.name, p.replace(kind=kind)) for p in signature.parameters.values()]
    command.__signature__ = signature.replace(parameters=[*kept, *new.values()])  # type: ignore[attr-defined]
    command.__doc__ = f"{inspect.cleandoc(offline.__doc__ or '')}\n\n{inspect.cleandoc(online.__doc__ or '')}"
    return command


def _without_files(online: Callable[[Given], None], given: Given) -> None:
    try:
        online(given)
    except Unavailable as error:
        if error.reason == "UNREACHABLE" and not given.get("files"):
            error.hint += f"; with {'FILE or ' if 'sources' in given else ''}--file none is needed"
        raise


class Server:
    """What a server has, to be decided by here."""

    def __init__(self, api: Api) -> None:
        from ca.cli.policy_plan import there

        mesh = api.get("/mesh")
        self._mesh = mesh
        self.revision = int(mesh["revision"])
        self.objects = {key: one.body for key, one in there(api).items()}
        self.targets = tuple(map(target_told, mesh["targets"]))

    def state(self, others: Mapping[Any, Mapping[str, Any]] | None = None, *, previous: State | None = None) -> State:
        """By its policies, or with others' laid over them."""
        from policy.book_values import Stored, etag_of
        from policy.model import Mesh
        from policy.state import state_of

        bodies = {**self.objects, **(others or {})}
        stored = {k: Stored(key=k, body=b, etag=etag_of(b), revision=self.revision) for k, b in bodies.items()}
        mesh = Mesh(
            trust_domains=tuple(self._mesh["trust_domains"]),
            root_namespace=self._mesh["root_namespace"],
            open_namespaces=frozenset(self._mesh["open_namespaces"]),
            providers=frozenset(self._mesh["providers"]),
        )
        return state_of(self.revision, stored, mesh, self._all_targets, previous=previous)

    def with_files(self, files: list[Path], workloads: list[Path] | None, previous: State, namespace: str) -> State:
        """As it would be if these were applied."""
        from ca.cli.policy_sources import read_sources

        wanted = read_sources([*files, *(workloads or ())], namespace).objects
        return self.state({key: one.body for key, one in wanted.items()}, previous=previous)

    def _all_targets(self, described: tuple[Target, ...]) -> tuple[Target, ...]:
        """Those of now, and those that files add or describe anew."""
        new = [one for one in described if one not in self.targets]
        names = {one.spiffe_id for one in new}
        return (*(one for one in self.targets if one.spiffe_id not in names), *new)


def target_told(found: Given) -> Target:
    from policy.model import Target

    return Target(
        spiffe_id=found["spiffe_id"],
        namespace=found["namespace"],
        labels=tuple(found["labels"].items()),
        references=tuple((kind, name) for kind, name in found["references"]),
        waypoint=found["waypoint"],
        normalized=found["normalized"],
    )


def _no_files(given: Given) -> bool:
    return not given["files"]


def _lint(given: Given) -> None:
    """Without files, what the server has is looked at."""
    if given["invariants"] or given["workloads"]:
        raise InvalidArgument("--invariants and --workloads go with files", reason="USAGE")
    with policy_api(given["socket"]) as api:
        found = api.get("/analyses/lint")
    show(given["output"], found, "\n".join(finding_lines(found["findings"], {})) or "nothing found")
    leave(Exit.FAILED if any(one["severity"] != "info" for one in found["findings"]) else Exit.OK)


def _graph(given: Given) -> None:
    """Without files, what the server has is drawn."""
    form = policy_offline_tools.GraphForm
    media = {form.HTML: "text/html", form.JSON: "application/json", form.DOT: "text/vnd.graphviz"}[given["output"]]
    with policy_api(given["socket"]) as api:
        answer = api.call("GET", "/analyses/graph", headers={"Accept": media})
    text = answer.data.decode()
    if given["output"] is form.JSON:
        text = json.dumps(answer.json["graph"], indent=2) + "\n"
    if given["to"] is None:
        print(text, end="")
    else:
        policy_offline.write(given["to"], text)
        print(f"{given['to']}: {len(text.encode()) >> 10} KiB")


def _diff(given: Given) -> None:
    """Without --before, with what the server has: what would be decided otherwise if the files were applied."""
    from policy.diff import difference

    if not given["files"]:
        raise none_named()
    with policy_api(given["socket"]) as api:
        server = Server(api)
    before = server.state()
    after = server.with_files(given["files"], given["workloads"], before, given["namespace"])
    found = difference(before.snapshot, after.snapshot)
    show(given["output"], found.document(), found.text())
    leave(Exit.OK if found.empty else Exit.FAILED)


def _replay(given: Given) -> None:
    """With --online, the files are laid over what the server has, and that is what is proposed; without --log, the
    decisions of the server, or with --agent of this node's proxies, are decided again."""
    from ca.cli.policy_files import read_log
    from policy.replay import replay

    if not given["files"]:
        raise none_named()
    with policy_api(given["socket"]) as api:
        server = Server(api)
        records = list(read_log(given["log"])) if given["log"] else _records(api, given)
    now = server.state()
    proposed = server.with_files(given["files"], given["workloads"], now, given["namespace"])
    found = replay(records, proposed.snapshot, current=now.snapshot)
    show(given["output"], found.document(), found.text())
    leave(Exit.FAILED if found.changed else Exit.OK)


def _suggest(given: Given) -> None:
    """Without --log, by the decisions of the server, or with --agent of this node's proxies, for the workloads that the
    server knows."""
    from policy.path_shapes import Thresholds
    from policy.suggest import suggest

    with policy_api(given["socket"]) as api:
        server = Server(api)
        records = _records(api, given)
    thresholds = Thresholds(identifiers=given["identifiers"], words=given["words"])
    found = suggest(records, targets=server.targets, thresholds=thresholds)
    if given["output"] is Form.JSON:
        print(json.dumps(found.document(), indent=2))
    else:
        print(found.text(), end="")


def _records(api: Api, given: Given) -> list[DecisionRecord]:
    """Of the agent of this node, or of the server."""
    from ca.cli.policy_online_views import of_agent
    from ca.proto.burgee import decisions_pb2
    from policy.decision_record import DecisionRecord

    if given["agent"]:
        found = of_agent(agent_socket(given["agent_socket_path"]), decisions_pb2.Filter(), {}, MAX_RECORDS)
    else:
        found = api.pages("/decisions", most=MAX_RECORDS)
    return [DecisionRecord.from_document(one) for one in found]


def _explain(given: Given) -> None:
    """Without --file, by what the server has. With --decision, what a response, a log or a trace names is explained:
    the agent of this node is asked for it, then the server; the rules are those of the revision that decided."""
    if (given["target"] is None) == (given["decision"] is None):
        raise InvalidArgument("either a TARGET or --decision", reason="USAGE")
    with policy_api(given["socket"]) as api:
        if given["decision"] is not None:
            _explain_decision(api, given)
            return
        body = {"target": given["target"], "request": request_fields(given)}
        _name_in_full(api, body)
        found = api.call("POST", "/explain", body).json
    show(given["output"], found["explanation"], found["text"])


def _name_in_full(api: Api, body: dict[str, Any]) -> None:
    """Whoever is named by the last part of an ID; the server is asked for its workloads only then."""
    caller = body["request"].get("principal", "/")
    if body["target"].startswith("spiffe://") and "/" in caller:
        return
    targets = tuple(map(target_told, api.get("/mesh")["targets"]))
    body["target"] = target_among(targets, body["target"])
    if "/" not in caller:
        body["request"]["principal"] = caller_of(targets, caller)


def _explain_decision(api: Api, given: Given) -> None:
    record = _of_agent(given)
    if record is None:
        found = api.call("POST", "/explain", {"decision": given["decision"]}).json
    else:
        body = {"target": record["target"], "request": _recorded(record)}
        if record.get("revision"):
            body["revision"] = record["revision"]
        try:
            found = {**api.call("POST", "/explain", body).json, "record": record}
        except (ServerRefusal, Unavailable):
            show(given["output"], {"record": record}, record_text(record))  # which is known all the same
            raise
    document = {**found["explanation"], "record": found["record"]}
    show(given["output"], document, f"{record_text(found['record'])}\n\n{found['text']}")


def _of_agent(given: Given) -> dict[str, Any] | None:
    """The record, where there is an agent that has it."""
    from ca.proto.burgee import decisions_pb2, decisions_pb2_grpc

    path = agent_socket(given["agent_socket_path"])
    if not path.exists():
        return None
    try:
        with channel(path, who="agent") as opened:
            request = decisions_pb2.GetRequest(id=given["decision"])
            answer = decisions_pb2_grpc.DecisionsStub(opened).Get(request, timeout=CALL_SECONDS)
    except BurgeeError as error:
        if given["agent_socket_path"] is not None and error.reason != "DECISION_NOT_FOUND":
            raise
        return None
    found: dict[str, Any] = json.loads(answer.record)
    return found


def _recorded(record: Given) -> dict[str, Any]:
    """The request of a record, as it is asked about."""
    names = ("principal", "source_ip", "remote_ip", "destination_ip", "sni", "http", "method", "path", "host")
    found = {name: record[name] for name in (*names, "headers", "claims", "metadata") if name in record}
    return found | ({"destination_port": record["port"]} if "port" in record else {})


DecisionOption = Annotated[
    str | None,
    typer.Option(
        "--decision", metavar="ID", help="A decision by its ID, as the client was told it.", show_default=False
    ),
]
OnlineOption = Annotated[
    bool, typer.Option("--online", help="Against what the server has, instead of the files alone and --current.")
]
AgentOption = Annotated[
    bool, typer.Option("--agent", help="Without --log: what the agent of this node has of its proxies.")
]
_TARGET = Annotated[
    str | None,
    typer.Argument(
        metavar="TARGET",
        help="Who is called: a SPIFFE ID, or its last part where that is enough.",
        show_default=False,
    ),
]
_LOG = Annotated[
    list[Path] | None,
    typer.Option(
        "--log",
        metavar="FILE|-",
        help="A decision log: JSON lines. Can be given several times. Default: the server's own.",
        show_default=False,
    ),
]

_LOGS: dict[str, tuple[Any, Any]] = {
    "log": (_LOG, None),
    "agent": (AgentOption, False),
    "agent_socket_path": (AgentSocketOption, None),
}

lint = either(policy_offline.lint, _lint, _no_files)
graph = either(policy_offline_tools.graph, _graph, _no_files)
diff = either(policy_offline.diff, _diff, lambda given: not given["before"])
replay = either(
    policy_offline_tools.replay,
    _replay,
    lambda given: given["online"] or not given["log"],
    online=(OnlineOption, False),
    **_LOGS,
)
suggest = either(policy_offline_tools.suggest, _suggest, lambda given: not given["log"], **_LOGS)
explain = either(
    policy_offline.explain,
    _explain,
    lambda given: not given["files"] or given["decision"] is not None,
    target=(_TARGET, None),
    decision=(DecisionOption, None),
    agent_socket_path=(AgentSocketOption, None),
)
