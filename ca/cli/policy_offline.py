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
    SourcesArgument,
    TrustDomainOption,
    WorkloadsOption,
    all_of,
    caller_of,
    load,
    named,
    read_texts,
    refused,
    show,
    target_of,
    tests_among,
)
from ca.cli.policy_others import IgnoreOthersOption, sifted
from ca.cli.policy_request import (
    CallerOption,
    ClaimOption,
    HeaderOption,
    HostOption,
    MethodOption,
    PathOption,
    PortOption,
    RemoteIpOption,
    SniOption,
    SourceIpOption,
    TargetArgument,
    TcpOption,
    request_fields,
)
from ca.errors import InvalidArgument

if TYPE_CHECKING:
    from policy.problems import Problem


class OutcomeForm(StrEnum):
    """How the outcome of tests is printed."""

    TEXT = "text"
    JSON = "json"
    JUNIT = "junit"


def validate(
    sources: SourcesArgument = None,
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
    sources: SourcesArgument = None,
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

    loaded = load(
        given(all_of(sources, files), workloads, trust_domain, root_namespace, open_namespace, provider, namespace)
    )
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
    tests: Annotated[
        list[Path],
        typer.Argument(
            metavar="TESTS|FILE|DIR...", help="Tests and policies: files, or directories that hold either or both."
        ),
    ],
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
    """Decide the requests of test files, and compare with what they want. Exits with 1 if any is decided otherwise.

    A file whose documents say their kind holds policies, any other holds tests.

    Example: caadmin policy test policies/ tests/
    """
    from policy.problems import Refused
    from policy.scenarios import read_cases, run

    wanted, policies = tests_among(tests)
    if not wanted:
        raise InvalidArgument("no tests are among these files", reason="USAGE", hint="a file with a list under `tests`")
    loaded = load(
        given(files, workloads, trust_domain, root_namespace, open_namespace, provider, namespace), beside=policies
    )
    try:
        cases = read_cases(wanted)
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
    target: TargetArgument,
    principal: CallerOption = None,
    method: MethodOption = None,
    path: PathOption = None,
    host: HostOption = None,
    port: PortOption = None,
    header: HeaderOption = None,
    claim: ClaimOption = None,
    source_ip: SourceIpOption = None,
    remote_ip: RemoteIpOption = None,
    sni: SniOption = None,
    tcp: TcpOption = False,
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
    asked = request_fields(locals())
    from policy.explain import explain as explained
    from policy.model import Request

    loaded = load(given(files, workloads, trust_domain, root_namespace, open_namespace, provider, namespace))
    if principal is not None:
        asked["principal"] = caller_of(loaded.targets, principal).removeprefix("spiffe://")
    found = explained(loaded.snapshot, target_of(loaded, target), Request(**asked), revision=loaded.revision)
    show(output, found.document(), found.text())


def diff(
    sources: SourcesArgument = None,
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
    """Say what is decided otherwise by the policies of FILE than by --before: which requests, each class with an
    example. Exits with 1 if anything is, or if it could not be told."""
    from policy.diff import difference

    new = load(
        given(all_of(sources, files), workloads, trust_domain, root_namespace, open_namespace, provider, namespace)
    )
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
