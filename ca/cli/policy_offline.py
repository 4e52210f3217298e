"""`caadmin policy` on files: `validate`, `lint`, `test`, `explain` and `diff`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ca.cli.exits import Exit, leave
from ca.cli.output import plain
from ca.cli.policy_files import (
    NAMESPACE,
    ROOT,
    FilesOption,
    Form,
    FormOption,
    Given,
    NamespaceOption,
    OpenOption,
    ProviderOption,
    RootOption,
    TrustDomainOption,
    WorkloadsOption,
    caller_of,
    load,
    named,
    read_texts,
    refused,
    show,
    target_of,
)
from ca.cli.policy_others import IgnoreOthersOption, sifted
from ca.errors import InvalidArgument

if TYPE_CHECKING:
    from policy.problems import Problem


class OutcomeForm(StrEnum):
    """How the outcome of tests is printed."""

    TEXT = "text"
    JSON = "json"
    JUNIT = "junit"


def validate(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE|DIR|-...", help="The same as --file.", show_default=False),
    ] = None,
    files: FilesOption = None,
    namespace: NamespaceOption = NAMESPACE,
    ignore_others: IgnoreOthersOption = False,
    jwks_host: Annotated[
        list[str] | None,
        typer.Option(help="A host that `jwksUri` may name. Default: the one that it names.", show_default=False),
    ] = None,
    output: FormOption = Form.TEXT,
) -> None:
    """Read policies as the server would, and tell everything that is wrong with them, with its place. Exits with 1 if
    anything is."""
    from policy.documents import read
    from policy.parse import PolicySet, parse_documents
    from policy.problems import Refused
    from policy.state import ANY_HOST

    paths = named(sources, files)
    parsed = PolicySet()
    problems: tuple[Problem, ...] = ()
    try:
        hosts = frozenset(jwks_host) if jwks_host else ANY_HOST
        documents = sifted([(name, read(text, name)) for name, text in read_texts(paths)], ignore=ignore_others)
        parsed = parse_documents(documents, default_namespace=namespace, jwks_hosts=hosts)
    except Refused as error:
        problems = error.problems
    counts = {
        "AuthorizationPolicy": len(parsed.policies),
        "RequestAuthentication": len(parsed.request_authentications),
        "PeerAuthentication": len(parsed.peer_authentications),
        "Workload": len(parsed.targets),
    }
    document = {
        "valid": not problems,
        "objects": counts,
        "problems": [_problem(one) for one in problems],
        "warnings": [_problem(one) for one in parsed.warnings],
    }
    lines = [plain(str(one)) for one in (*problems, *parsed.warnings)]
    if not problems:
        lines.append("valid: " + (", ".join(f"{n} {kind}" for kind, n in counts.items() if n) or "nothing"))
    show(output, document, "\n".join(lines))
    leave(Exit.FAILED if problems else Exit.OK)


def _problem(one: Problem) -> dict[str, Any]:
    return {
        "code": one.code,
        "message": one.message,
        "origin": str(one.origin),
        "pointer": one.pointer,
        "hint": one.hint,
    }


def lint(
    files: FilesOption = None,
    namespace: NamespaceOption = NAMESPACE,
    workloads: WorkloadsOption = None,
    invariants: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE|DIR|-", help="Invariants that must hold besides.", show_default=False),
    ] = None,
    trust_domain: TrustDomainOption = None,
    root_namespace: RootOption = ROOT,
    open_namespace: OpenOption = None,
    provider: ProviderOption = None,
    output: FormOption = Form.TEXT,
) -> None:
    """Find rules that never match or decide nothing, policies that are for nobody, and invariants that do not hold.
    Exits with 1 on errors and warnings."""
    from policy import lint as linting
    from policy.findings import Severity
    from policy.invariant_texts import read
    from policy.invariants import check
    from policy.problems import Refused

    loaded = load(given(files, workloads, trust_domain, root_namespace, open_namespace, provider, namespace))
    findings = linting.lint(loaded.parsed, loaded.mesh, loaded.targets)
    try:
        wanted = [one for name, text in read_texts(invariants or ()) for one in read(text, name)]
    except Refused as error:
        refused(error)
    violations = check(wanted, loaded.snapshot)
    document = {
        "findings": [one.document() for one in findings],
        "violations": [one.document() for one in violations],
        "invariants": len(wanted),
    }
    lines = [*map(str, violations), *(one.text() for one in findings)]
    show(output, document, "\n".join(lines) or "nothing found")
    found = violations or any(one.severity is not Severity.INFO for one in findings)
    leave(Exit.FAILED if found else Exit.OK)


def run_tests(
    tests: Annotated[list[Path], typer.Argument(metavar="TESTS...", help="Files or directories of tests.")],
    files: FilesOption = None,
    namespace: NamespaceOption = NAMESPACE,
    workloads: WorkloadsOption = None,
    trust_domain: TrustDomainOption = None,
    root_namespace: RootOption = ROOT,
    open_namespace: OpenOption = None,
    provider: ProviderOption = None,
    output: Annotated[OutcomeForm, typer.Option("--output", "-o", help="How to print the outcome.")] = OutcomeForm.TEXT,
    junit: Annotated[
        Path | None, typer.Option(help="Write JUnit's XML into this file besides.", show_default=False)
    ] = None,
) -> None:
    """Decide the requests of test files, and compare with what they want. Exits with 1 if any is decided otherwise."""
    from policy.problems import Refused
    from policy.scenarios import read_cases, run

    loaded = load(given(files, workloads, trust_domain, root_namespace, open_namespace, provider, namespace))
    try:
        cases = read_cases(read_texts(tests))
    except Refused as error:
        refused(error)
    report = run(cases, loaded.snapshot)
    if junit is not None:
        write(junit, report.junit())
    if output is OutcomeForm.JUNIT:
        print(report.junit(), end="")
    else:
        show(Form(output.value), report.document(), report.text())
    leave(Exit.FAILED if report.failed else Exit.OK)


def write(path: Path, text: str) -> None:
    """A result into a file. Raises InvalidArgument where it cannot be written."""
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise InvalidArgument(f"cannot write `{path}`: {error.strerror}", reason="FILE") from error


def explain(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="Who is called: a SPIFFE ID, or its last part where that is enough.")
    ],
    principal: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Who calls: a SPIFFE ID, or its last part where that is enough. Default: no certificate.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[str | None, typer.Option(help="The method. Default: GET.", show_default=False)] = None,
    path: Annotated[str | None, typer.Option(help="The path. Default: /.", show_default=False)] = None,
    host: Annotated[str | None, typer.Option(help="The authority.", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help="The port that is called.", show_default=False)] = None,
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A header.", show_default=False)
    ] = None,
    claim: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A claim of a verified token.", show_default=False),
    ] = None,
    source_ip: Annotated[str | None, typer.Option(help="Where the connection is from.", show_default=False)] = None,
    remote_ip: Annotated[str | None, typer.Option(help="The client's address.", show_default=False)] = None,
    sni: Annotated[str | None, typer.Option(help="The name in the TLS handshake.", show_default=False)] = None,
    tcp: Annotated[bool, typer.Option("--tcp", help="A connection that is not HTTP.")] = False,
    files: FilesOption = None,
    namespace: NamespaceOption = NAMESPACE,
    workloads: WorkloadsOption = None,
    trust_domain: TrustDomainOption = None,
    root_namespace: RootOption = ROOT,
    open_namespace: OpenOption = None,
    provider: ProviderOption = None,
    output: FormOption = Form.TEXT,
) -> None:
    """Say why a request is allowed or denied: the rule that decides, or those that came nearest.

    Example: caadmin policy explain orders --from spiffe://example.org/ns/shop/sa/web --method POST --path /v1/pay
    -f policies/
    """
    from policy.explain import explain as explained
    from policy.model import Request
    from policy.paths import without_query

    loaded = load(given(files, workloads, trust_domain, root_namespace, open_namespace, provider, namespace))
    caller = None if principal is None else caller_of(loaded.targets, principal).removeprefix("spiffe://")
    request = Request(
        principal=caller,
        http=not tcp,
        source_ip=source_ip,
        remote_ip=remote_ip,
        destination_port=port,
        sni=sni,
        headers={name.lower(): value for name, value in pairs(header, "--header")},
        claims=dict(pairs(claim, "--claim")) if claim else None,
        method=None if tcp else method or "GET",
        path=None if tcp else without_query(path or "/"),
        host=None if tcp else host,
    )
    found = explained(loaded.snapshot, target_of(loaded, target), request, revision=loaded.revision)
    show(output, found.document(), found.text())


def pairs(texts: list[str] | None, option: str) -> list[tuple[str, str]]:
    """(name, value) of each. Raises InvalidArgument."""
    parts = [text.partition("=") for text in texts or ()]
    if any(not mark or not name for name, mark, _ in parts):
        raise InvalidArgument(f"{option} wants NAME=VALUE", reason="USAGE")
    return [(name, value) for name, _, value in parts]


def diff(
    files: FilesOption = None,
    namespace: NamespaceOption = NAMESPACE,
    before: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE|DIR|-", help="The policies to compare with.", show_default=False),
    ] = None,
    workloads: WorkloadsOption = None,
    trust_domain: TrustDomainOption = None,
    root_namespace: RootOption = ROOT,
    open_namespace: OpenOption = None,
    provider: ProviderOption = None,
    output: FormOption = Form.TEXT,
) -> None:
    """Say what is decided otherwise by --file than by --before: which requests, each class with an example. Exits with
    1 if anything is, or if it could not be told."""
    from policy.diff import difference

    new = load(given(files, workloads, trust_domain, root_namespace, open_namespace, provider, namespace))
    domains = list(new.mesh.trust_domains)
    old = load(given(before, workloads, domains, root_namespace, open_namespace, provider, namespace), "--before")
    found = difference(old.snapshot, new.snapshot)
    show(output, found.document(), found.text())
    if not found.complete:
        print("not everything was compared", file=sys.stderr)
    leave(Exit.OK if found.empty else Exit.FAILED)


def given(
    files: list[Path] | None,
    workloads: list[Path] | None,
    trust_domain: list[str] | None,
    root_namespace: str,
    open_namespace: list[str] | None,
    provider: list[str] | None,
    namespace: str,
) -> Given:
    """What the options of a command say."""
    return Given(
        files=files,
        workloads=workloads,
        trust_domains=trust_domain,
        root_namespace=root_namespace,
        open_namespaces=open_namespace,
        providers=provider,
        namespace=namespace,
    )
