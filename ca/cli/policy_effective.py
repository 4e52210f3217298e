"""`caadmin policy effective`: what the Envoy of one workload is sent, from files or from what a server has."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ca.cli.connection import SocketOption
from ca.cli.exits import Exit, leave
from ca.cli.output import plain
from ca.cli.policy_files import (
    NAMESPACE,
    ROOT,
    FilesOption,
    Loaded,
    NamespaceOption,
    OpenOption,
    ProviderOption,
    RootOption,
    SourcesArgument,
    TrustDomainOption,
    WorkloadsOption,
    all_of,
    load,
    target_among,
)
from ca.cli.policy_offline import given
from ca.cli.policy_offline_tools import SnippetForm
from ca.errors import InvalidArgument

if TYPE_CHECKING:
    from pathlib import Path

    from policy.model import Policy, Target

CalledArgument = Annotated[str, typer.Argument(metavar="TARGET", help="A SPIFFE ID, or its last part.")]
TcpOption = Annotated[bool, typer.Option("--tcp", help="For connections that are not HTTP.")]
AskOption = Annotated[
    bool, typer.Option("--ask/--no-ask", help="Envoy has a filter behind it that asks what cannot be pushed.")
]
JwtOption = Annotated[bool, typer.Option("--jwt/--no-jwt", help="Envoy takes our filter for tokens with it.")]
EffectiveForm = Annotated[SnippetForm, typer.Option("--output", "-o", help="How to print it.")]


def effective(
    target: CalledArgument,
    sources: SourcesArgument = None,
    files: FilesOption = None,
    namespace: NamespaceOption = NAMESPACE,
    workloads: WorkloadsOption = None,
    trust_domain: TrustDomainOption = None,
    root_namespace: RootOption = ROOT,
    open_namespace: OpenOption = None,
    provider: ProviderOption = None,
    tcp: TcpOption = False,
    ask: AskOption = True,
    jwt: JwtOption = False,
    output: EffectiveForm = SnippetForm.YAML,
    socket: SocketOption = None,
) -> None:
    """Show what the agent sends the Envoy of a workload: the resource's name and the filter in it, which policies it is
    made of, and under `asked` each rule that Envoy cannot decide by itself and why, so that it asks the agent. Exits
    with 1 where it has no means to ask, and refuses that.

    Without files, by what the server has.

    Example: caadmin policy effective orders -o json
    """
    named = all_of(sources, files)
    if named:
        found = load(given(named, workloads, trust_domain, root_namespace, open_namespace, provider, namespace))
    else:
        found = _of_server(socket)
    document = _document(found, target_among(found.targets, target), tcp=tcp, ask=ask, jwt=jwt and not tcp)
    if output is SnippetForm.JSON:
        print(json.dumps(document, indent=2))
    else:
        from policy.written import dumped

        print(dumped([document]).removeprefix("---\n"), end="")
    refused = [] if ask else document["asked"]
    for one in refused:
        print(plain(f"{one['rule']} is refused: {one['reason']}"), file=sys.stderr)
    leave(Exit.FAILED if refused else Exit.OK)


def _of_server(socket: Path | None) -> Loaded:
    from ca.cli.policy_client import policy_api
    from ca.cli.policy_online_sets import Server

    with policy_api(socket) as api:
        server = Server(api)
    state = server.state()
    targets = tuple(server.targets)
    return Loaded(
        parsed=state.parsed, mesh=state.mesh, targets=targets, snapshot=state.snapshot, revision=state.revision
    )


def _document(found: Loaded, spiffe_id: str, *, tcp: bool, ask: bool, jwt: bool) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    from policy.envoy import Proxy, http_filter, network_filter
    from policy.envoy_names import Resource

    target, policies = _meant(found, spiffe_id)
    proxy = Proxy(ext_authz=ask, jwt=jwt)
    made: Any
    made, unsaid = (network_filter if tcp else http_filter)(target, policies, found.mesh, proxy)
    document = {
        "spiffe_id": spiffe_id,
        "namespace": target.namespace,
        "labels": dict(target.labels),
        "revision": found.revision,
        "policies": [policy.id for policy in policies],
        "resource": str(Resource(protocol="tcp" if tcp else "http", proxy=proxy)),
        "asked": [{"rule": f"{one.policy}#{one.rule}", "reason": one.reason} for one in unsaid],
    }
    if jwt:
        document["tokens"] = _tokens(found, target)
    filter = {"@type": f"type.googleapis.com/{made.DESCRIPTOR.full_name}"}
    return {**document, "filter": {**filter, **MessageToDict(made, preserving_proto_field_name=True)}}


def _meant(found: Loaded, spiffe_id: str) -> tuple[Target, Sequence[Policy]]:
    """Raises InvalidArgument (TARGET)."""
    judges = found.snapshot.judges(spiffe_id)
    if len(judges) != 1:
        what = "no workload has" if not judges else "workloads with different policies share"
        hint = "what its agent attested decides: `caadmin explain workload` on the node" if judges else ""
        raise InvalidArgument(f"{what} the ID `{spiffe_id}`", reason="TARGET", hint=hint)
    return found.snapshot.targets[spiffe_id][0], judges[0].policies


def _tokens(found: Loaded, target: Target) -> list[dict[str, Any]]:
    """Whose tokens are believed. Their keys are the server's and the agent's to put in."""
    from policy.tokens import rules_for

    root = found.mesh.root_namespace
    rules = rules_for(found.parsed.request_authentications, target, root_namespace=root)
    return [{"issuer": one.issuer, "audiences": list(one.audiences)} for one in rules]
