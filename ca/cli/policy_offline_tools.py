"""`caadmin policy` on files: `graph`, `replay`, `suggest`, `import`, `export` and `envoy-snippet`."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ca.cli.arguments import DURATION_HELP, duration
from ca.cli.exits import Exit, leave
from ca.cli.output import plain
from ca.cli.policy_files import (
    NAMESPACE,
    ROOT,
    FilesOption,
    Form,
    FormOption,
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
    read_log,
    read_texts,
    refused,
    show,
    target_of,
)
from ca.cli.policy_offline import given, write
from ca.errors import InvalidArgument

if TYPE_CHECKING:
    from policy.imports.losses import Imported
    from policy.model import Target

LogOption = Annotated[
    list[Path], typer.Option("--log", metavar="FILE|-", help="A decision log: JSON lines. Can be given several times.")
]


class GraphForm(StrEnum):
    """How the graph is written."""

    HTML = "html"
    JSON = "json"
    DOT = "dot"


class Source(StrEnum):
    """Whose policies are read."""

    CONSUL = "consul"
    LINKERD = "linkerd"
    ENVOY_RBAC = "envoy-rbac"


class Format(StrEnum):
    """What a target's policies are written as."""

    ENVOY = "envoy"
    CEDAR = "cedar"


class SnippetForm(StrEnum):
    """How a proxy's configuration is written."""

    YAML = "yaml"
    JSON = "json"


def graph(
    sources: SourcesArgument = None,
    files: FilesOption = None,
    namespace: NamespaceOption = NAMESPACE,
    workloads: WorkloadsOption = None,
    trust_domain: TrustDomainOption = None,
    root_namespace: RootOption = ROOT,
    open_namespace: OpenOption = None,
    provider: ProviderOption = None,
    output: Annotated[
        GraphForm, typer.Option("--output", "-o", help="A page to look at, or for programs.")
    ] = GraphForm.HTML,
    to: Annotated[
        Path | None, typer.Option(help="Write into this file instead of standard output.", show_default=False)
    ] = None,
) -> None:
    """Draw who can reach whom: a page that needs no network, JSON, or Graphviz's DOT."""
    from policy.graph import graph_of
    from policy.graph_dot import dot
    from policy.graph_page import page

    loaded = load(
        given(all_of(sources, files), workloads, trust_domain, root_namespace, open_namespace, provider, namespace)
    )
    found = graph_of(loaded.snapshot, revision=loaded.revision)
    if output is GraphForm.JSON:
        text = json.dumps(found.document(), indent=2) + "\n"
    else:
        text = page(found) if output is GraphForm.HTML else dot(found)
    if to is None:
        print(text, end="")
    else:
        write(to, text)
        print(f"{to}: {len(found.services)} services, {len(found.edges)} edges")


def replay(
    log: LogOption,
    sources: SourcesArgument = None,
    files: FilesOption = None,
    namespace: NamespaceOption = NAMESPACE,
    current: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE|DIR|-",
            help="The policies that hold now: records that these decide otherwise are set apart.",
            show_default=False,
        ),
    ] = None,
    workloads: WorkloadsOption = None,
    trust_domain: TrustDomainOption = None,
    root_namespace: RootOption = ROOT,
    open_namespace: OpenOption = None,
    provider: ProviderOption = None,
    output: FormOption = Form.TEXT,
) -> None:
    """Decide a log's requests by the proposed policies of FILE: what is newly denied or allowed, and by which rule.
    Exits with 1 if anything is."""
    from policy.replay import replay as replayed

    proposed = load(
        given(all_of(sources, files), workloads, trust_domain, root_namespace, open_namespace, provider, namespace)
    )
    now: Loaded | None = None
    if current:
        domains = list(proposed.mesh.trust_domains)
        now = load(given(current, workloads, domains, root_namespace, open_namespace, provider, namespace))
    found = replayed(read_log(log), proposed.snapshot, current=now.snapshot if now is not None else None)
    show(output, found.document(), found.text())
    leave(Exit.FAILED if found.changed else Exit.OK)


def suggest(
    log: LogOption,
    workloads: WorkloadsOption = None,
    namespace: NamespaceOption = NAMESPACE,
    identifiers: Annotated[
        int, typer.Option(min=2, help="So many different identifiers in a place of paths make any fit there.")
    ] = 3,
    words: Annotated[int, typer.Option(min=2, help="So many different words of any look do.")] = 20,
    output: FormOption = Form.TEXT,
) -> None:
    """Write policies that allow what a log shows was allowed, and say what they admit beyond it. Nothing is applied."""
    from policy.path_shapes import Thresholds
    from policy.suggest import suggest as suggested

    found = suggested(
        read_log(log),
        targets=_targets(workloads, namespace),
        thresholds=Thresholds(identifiers=identifiers, words=words),
    )
    if output is Form.JSON:
        print(json.dumps(found.document(), indent=2))
    else:
        print(found.text(), end="")


def _targets(workloads: list[Path] | None, namespace: str) -> tuple[Target, ...]:
    from policy.parse import parse_all
    from policy.problems import Refused
    from policy.state import ANY_HOST

    try:
        return parse_all(read_texts(workloads or ()), default_namespace=namespace, jwks_hosts=ANY_HOST).targets
    except Refused as error:
        refused(error)


def import_(
    source: Annotated[Source, typer.Argument(help="Whose they are.", show_choices=True)],
    files: Annotated[list[Path], typer.Argument(metavar="FILE|DIR|-...", help="What is read: YAML or JSON.")],
    strict: Annotated[bool, typer.Option("--strict", help="Write nothing if anything cannot be said.")] = False,
    trust_domain: Annotated[
        str, typer.Option(help="In which the callers' SPIFFE IDs are. For Consul and Linkerd.")
    ] = "cluster.local",
    namespace: Annotated[
        str, typer.Option(help="Where policies go whose source names none. For Consul and Envoy.")
    ] = "default",
    principal: Annotated[
        str, typer.Option(help="How a Consul service's SPIFFE ID is written, without `spiffe://`.")
    ] = "{trust_domain}/ns/{namespace}/sa/{service}",
    default_allow: Annotated[
        bool, typer.Option("--default-allow", help="Consul allows what no intention is for.")
    ] = False,
    default_policy: Annotated[
        str, typer.Option(help="Linkerd's default policy of the cluster.")
    ] = "all-unauthenticated",
    spiffe_id: Annotated[
        list[str] | None, typer.Option(help="Whom an Envoy's policies are for.", show_default=False)
    ] = None,
    name: Annotated[str, typer.Option(help="How an Envoy's policies are called.")] = "rbac",
    workloads: WorkloadsOption = None,
    output: FormOption = Form.TEXT,
) -> None:
    """Write others' policies as ours, and tell on standard error what could not be said. What could not is never
    allowed. Exits with 1 if --strict and there was anything."""
    from policy.problems import Refused

    texts = list(read_texts(files))
    try:
        if source is Source.CONSUL:
            from policy.imports import consul

            options = consul.Options(
                trust_domain=trust_domain,
                principal=principal,
                namespace=namespace,
                default_allow=default_allow,
                services=_targets(workloads, namespace),
            )
            found = consul.import_consul(texts, options)
        elif source is Source.LINKERD:
            from policy.imports import linkerd

            found = linkerd.import_linkerd(
                texts, linkerd.Options(trust_domain=trust_domain, default_policy=default_policy)
            )
        else:
            from policy.imports import envoy_rbac

            found = envoy_rbac.import_envoy_rbac(
                texts, envoy_rbac.Options(namespace=namespace, name=name, spiffe_ids=tuple(spiffe_id or ()))
            )
    except Refused as error:
        refused(error)
    _imported(found, output, strict=strict)


def _imported(found: Imported, output: Form, *, strict: bool) -> None:
    stopped = strict and bool(found.losses)
    if output is Form.JSON:
        document = found.document()
        print(json.dumps({**document, "objects": []} if stopped else document, indent=2))
    else:
        for loss in found.losses:
            print(plain(str(loss)), file=sys.stderr)
        print("" if stopped else found.yaml(), end="")
    leave(Exit.FAILED if stopped else Exit.OK)


def export(
    form: Annotated[Format, typer.Argument(metavar="FORMAT", help="envoy or cedar.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A SPIFFE ID, or its last part.")],
    tcp: Annotated[bool, typer.Option("--tcp", help="For connections that are not HTTP.")] = False,
    ask: Annotated[bool, typer.Option("--ask", help="Envoy has an ext_authz filter behind it.")] = False,
    jwt: Annotated[bool, typer.Option("--jwt", help="Envoy has our filter for tokens before it.")] = False,
    files: FilesOption = None,
    namespace: NamespaceOption = NAMESPACE,
    workloads: WorkloadsOption = None,
    trust_domain: TrustDomainOption = None,
    root_namespace: RootOption = ROOT,
    open_namespace: OpenOption = None,
    provider: ProviderOption = None,
) -> None:
    """Write a target's policies as the filter that its Envoy is sent, or as Cedar. Exits with 1 where it cannot be
    said; Envoy denies what it cannot say and cannot ask about."""
    loaded = load(given(files, workloads, trust_domain, root_namespace, open_namespace, provider, namespace))
    name = target_of(loaded, target)
    targets = loaded.snapshot.targets.get(name, ())
    judges = loaded.snapshot.judges(name)
    if len(judges) != 1:
        what = "no workload has" if not judges else "workloads with different policies share"
        raise InvalidArgument(f"{what} the ID `{name}`", reason="TARGET")
    policies = judges[0].policies
    if form is Format.CEDAR:
        from policy.cedar import Inexpressible, cedar_text

        try:
            print(cedar_text(targets[0], policies, loaded.mesh, http=not tcp), end="")
        except Inexpressible as error:
            print(f"error: Cedar cannot say this: {plain(str(error))}", file=sys.stderr)
            leave(Exit.FAILED)
        return
    from google.protobuf.json_format import MessageToDict

    from policy.envoy import Proxy, http_filter, network_filter

    made: Any
    made, unsaid = (network_filter if tcp else http_filter)(
        targets[0], policies, loaded.mesh, Proxy(ext_authz=ask, jwt=jwt)
    )
    for one in unsaid:
        verb = "is asked about" if ask else "is refused"
        print(plain(f"{one.policy}#{one.rule} {verb}: {one.reason}"), file=sys.stderr)
    print(json.dumps(MessageToDict(made, preserving_proto_field_name=True), indent=2))
    leave(Exit.FAILED if unsaid and not ask else Exit.OK)


def envoy_snippet(
    agent_socket: Annotated[
        str, typer.Option(metavar="PATH", help="The agent's socket that proxies are served on.")
    ] = "/run/burgee/workload.sock",
    prefix: Annotated[str, typer.Option(help="What this proxy's decisions begin with.")] = "proxy",
    spiffe_id: Annotated[
        str, typer.Option(help="Whose policies, where the proxy holds several IDs.", show_default=False)
    ] = "",
    cluster: Annotated[str, typer.Option(help="How the agent's cluster is called.")] = "burgee",
    tcp: Annotated[bool, typer.Option("--tcp", help="For a TcpProxy instead of HTTP.")] = False,
    ask: Annotated[bool, typer.Option("--ask/--no-ask", help="With a filter that asks what cannot be pushed.")] = True,
    jwt: Annotated[
        bool, typer.Option("--jwt/--no-jwt", help="With a filter that verifies tokens (Envoy 1.39 or newer).")
    ] = False,
    connections_last: Annotated[
        str,
        typer.Option(help=f"With --tcp: how long a connection may keep the policies it began with. {DURATION_HELP}"),
    ] = "0",
    output: Annotated[SnippetForm, typer.Option("--output", "-o", help="How to print it.")] = SnippetForm.YAML,
) -> None:
    """Print what a proxy's configuration needs so that policies reach it: filters that refuse until they are
    delivered, the access log, the answer to who is refused, and the agent's cluster."""
    from policy.envoy import Proxy
    from policy.envoy_snippet import http_snippet, network_snippet
    from policy.written import dumped

    proxy = Proxy(ext_authz=ask, jwt=jwt and not tcp)
    if tcp:
        seconds = duration(connections_last)
        found = network_snippet(
            proxy, cluster, agent_socket, prefix=prefix, spiffe_id=spiffe_id, connection_seconds=seconds
        )
    else:
        found = http_snippet(proxy, cluster, agent_socket, prefix=prefix, spiffe_id=spiffe_id)
    print(json.dumps(found, indent=2) if output is SnippetForm.JSON else dumped([found]).removeprefix("---\n"))
