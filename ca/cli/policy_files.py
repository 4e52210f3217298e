"""Policies from files and directories, and the mesh that they are meant for, for the commands that need no server."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ca.cli.exits import Exit
from ca.cli.output import plain
from ca.errors import InvalidArgument

if TYPE_CHECKING:
    from policy.decision_record import DecisionRecord
    from policy.model import Mesh, Target
    from policy.parse import PolicySet
    from policy.problems import Refused
    from policy.snapshot import Snapshot

SUFFIXES = (".yaml", ".yml", ".json")
MAX_FILES = 10_000
MAX_BYTES = 16 << 20
Text = tuple[str, bytes]
"""A file's name and content."""


class Form(StrEnum):
    """How a result is printed."""

    TEXT = "text"
    JSON = "json"


FormOption = Annotated[Form, typer.Option("--output", "-o", help="For people or for programs.", show_choices=True)]
FilesOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--file",
        "-f",
        metavar="FILE|DIR|-",
        help="Policies: a file, all YAML and JSON files of a directory, or - for standard input; as often as needed.",
        show_default=False,
    ),
]
SourcesArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="FILE|DIR|-...",
        help="Policies: YAML or JSON files, directories of them, or - for standard input. The same as --file.",
        show_default=False,
    ),
]
WorkloadsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--workloads",
        metavar="FILE|DIR|-",
        help="`Workload` objects beside those among the policies: who can be called.",
        show_default=False,
    ),
]
TrustDomainOption = Annotated[
    list[str] | None,
    typer.Option(
        "--trust-domain",
        help="The own trust domain, then its aliases. Default: that of the first workload.",
        show_default=False,
    ),
]
RootOption = Annotated[str, typer.Option("--root-namespace", help="Policies of this namespace are for the whole mesh.")]
OpenOption = Annotated[
    list[str] | None,
    typer.Option("--open-namespace", help="A namespace with Istio's default, which is to allow.", show_default=False),
]
ProviderOption = Annotated[
    list[str] | None,
    typer.Option("--provider", help="A provider that CUSTOM policies may name.", show_default=False),
]
ROOT = "istio-system"
NamespaceOption = Annotated[str, typer.Option("--namespace", "-n", help="The namespace of objects that name none.")]
NAMESPACE = "default"


@dataclass(frozen=True, kw_only=True)
class Given:
    """Where policies come from, and the mesh that they hold in."""

    files: Sequence[Path] | None
    workloads: Sequence[Path] | None = None
    trust_domains: Sequence[str] | None = None
    root_namespace: str = ROOT
    open_namespaces: Sequence[str] | None = None
    providers: Sequence[str] | None = None
    namespace: str = NAMESPACE

    def mesh(self, targets: Sequence[Target]) -> Mesh:
        """What holds for all of them."""
        from policy.model import Mesh

        domains = tuple(self.trust_domains or ())
        if not domains:
            ids = (target.spiffe_id.removeprefix("spiffe://").partition("/")[0] for target in targets)
            domains = (next(ids, "cluster.local"),)
        return Mesh(
            trust_domains=domains,
            root_namespace=self.root_namespace,
            open_namespaces=frozenset(self.open_namespaces or ()),
            providers=frozenset(self.providers or ()),
        )


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A set of policies, compiled. `revision` None: it is no revision of a server's."""

    parsed: PolicySet
    mesh: Mesh
    targets: tuple[Target, ...]
    snapshot: Snapshot
    revision: int | None = None


def load(given: Given, option: str = "", *, beside: Sequence[Text] = ()) -> Loaded:
    """Reads and compiles, `beside` too. Exits with 2 where something cannot be read."""
    from policy.parse import parse_all
    from policy.problems import Refused
    from policy.snapshot import compile_set
    from policy.state import ANY_HOST

    if not given.files and not beside:
        raise none_named(option)
    texts = dict(beside) | dict(read_texts([*(given.files or ()), *(given.workloads or ())]))
    try:
        parsed = parse_all(texts.items(), default_namespace=given.namespace, jwks_hosts=ANY_HOST)
    except Refused as error:
        refused(error)
    targets = tuple(parsed.targets)
    mesh = given.mesh(targets)
    snapshot = compile_set(parsed.policies, mesh, targets, peers=parsed.peer_authentications)
    return Loaded(parsed=parsed, mesh=mesh, targets=targets, snapshot=snapshot)


def all_of(sources: Sequence[Path] | None, files: Sequence[Path] | None) -> list[Path]:
    """What is named by arguments and by --file."""
    return [*(sources or ()), *(files or ())]


def named(sources: Sequence[Path] | None, files: Sequence[Path] | None) -> list[Path]:
    """The same, of which there must be any. Raises InvalidArgument."""
    if not (found := all_of(sources, files)):
        raise none_named()
    return found


def none_named(option: str = "") -> InvalidArgument:
    """Nobody said which policies, by an argument or --file, or where only an option says it, by that."""
    how = f"{option} FILE" if option else "FILE, or --file FILE"
    hint = "a file, a directory, or - for standard input"
    return InvalidArgument(f"say which policies are meant: {how}", reason="USAGE", hint=hint)


def tests_among(paths: Iterable[Path]) -> tuple[list[Text], list[Text]]:
    """Files that hold tests, and those that hold policies: of which a document, or one of its items, says its kind.
    Raises InvalidArgument."""
    found: tuple[list[Text], list[Text]] = ([], [])
    for text in read_texts(paths):
        found[_has_objects(*text)].append(text)
    return found


def _has_objects(source: str, text: bytes) -> bool:
    from policy.documents import read
    from policy.problems import Refused

    try:
        roots = [root.value for root in read(text, source)]
    except Refused:
        return False  # who reads its tests says what is wrong
    items = [item.value for value in roots if isinstance(value, list) for item in value]
    return any(isinstance(one, dict) and one.keys() & {"kind", "apiVersion"} for one in (*roots, *items))


def read_texts(paths: Iterable[Path]) -> Iterator[Text]:
    """(name, content) of files, of the files of directories, and of standard input, each once. Raises
    InvalidArgument."""
    seen: set[Path] = set()
    for path in paths:
        for file in _files(path):
            if file not in seen:
                seen.add(file)
                yield str(file), _content(file)


def _files(path: Path) -> list[Path]:
    if str(path) == "-" or not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    if not found:
        raise InvalidArgument(f"`{path}` has no YAML or JSON files", reason="FILE")
    if len(found) > MAX_FILES:
        raise InvalidArgument(f"`{path}` has more than {MAX_FILES} files", reason="FILE")
    return found


def _content(path: Path) -> bytes:
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with path.open("rb") as stream:
                data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidArgument(f"cannot read `{path}`: {error.strerror}", reason="FILE") from error
    return data


def refused(error: Refused) -> NoReturn:
    """Tells every problem, and ends with 2."""
    for problem in error.problems:
        print(plain(str(problem)), file=sys.stderr)
    raise typer.Exit(Exit.USAGE)


def target_of(loaded: Loaded, name: str) -> str:
    """A SPIFFE ID, or that of the one workload whose ID ends with a name. Raises InvalidArgument."""
    return target_among(loaded.targets, name)


def target_among(targets: Sequence[Target], name: str) -> str:
    """The same, of targets from elsewhere."""
    if name.startswith("spiffe://"):
        return name
    found = sorted({t.spiffe_id for t in targets if t.spiffe_id.endswith(f"/{name}")})
    if len(found) == 1:
        return found[0]
    hint = "write its SPIFFE ID" if not found else f"one of {', '.join(found[:10])}"
    what = "no workload is" if not found else f"{len(found)} workloads are"
    raise InvalidArgument(f"{what} called `{name}`", reason="TARGET", hint=hint)


def caller_of(targets: Sequence[Target], name: str) -> str:
    """A SPIFFE ID as it is given, with `spiffe://` or without, or that of the one workload whose ID ends with a name.
    Raises InvalidArgument."""
    return name if "/" in name else target_among(targets, name)


def read_log(paths: Iterable[Path]) -> Iterator[DecisionRecord]:
    """Records of decision logs; lines that are none are counted, and the count is told at the end."""
    from policy.decision_record import MAX_LINE_BYTES, DecisionRecord

    strange = 0
    for path in paths:
        try:
            with nullcontext(sys.stdin.buffer) if str(path) == "-" else path.open("rb") as stream:
                while line := stream.readline(MAX_LINE_BYTES + 1):
                    if not line.strip():
                        continue
                    try:
                        yield DecisionRecord.from_json(line)
                    except ValueError:
                        strange += 1
        except OSError as error:
            raise InvalidArgument(f"cannot read `{path}`: {error.strerror}", reason="FILE") from error
    if strange:
        print(f"{strange} lines are no decisions, and were passed over", file=sys.stderr)


def show(form: Form, document: Any, text: str) -> None:
    """Either form."""
    from ca.cli.output import Output, emit

    emit(document, Output.JSON if form is Form.JSON else Output.TABLE, lambda: text)
