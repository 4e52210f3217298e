"""`caadmin policy` on a server: `plan`, `apply`, `get`, `list`, `delete` and `rollback`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ca.cli.confirm import YesOption, confirm
from ca.cli.connection import SocketOption
from ca.cli.exits import Exit, leave
from ca.cli.output import Output, OutputOption, columns, emit, plain
from ca.cli.policy_client import PATHS, Api, object_path, policy_api
from ca.cli.policy_files import NAMESPACE, NamespaceOption, named
from ca.cli.policy_names import KindArgument, ObjectArgument, ObjectsArgument, complete_revision, kind_of, names_of
from ca.cli.policy_others import IgnoreOthersOption
from ca.cli.policy_plan import Asked, Plan, made, send
from ca.cli.policy_sources import Sources, read_sources
from ca.cli.policy_texts import difference_text, finding_lines
from policy.book_values import AUTHORIZATION

SourcesArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="FILE|DIR|-...",
        help="Policies and Workload objects: YAML or JSON, or standard input.",
        show_default=False,
    ),
]
AlsoOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--file", "-f", metavar="FILE|DIR|-", help="The same as FILE|DIR|-, for who is used to it.", show_default=False
    ),
]
OwnerOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Whose they are: what is applied is marked so, and changed by another owner only by taking it over.",
        show_default=False,
    ),
]
PruneOption = Annotated[
    bool, typer.Option("--prune", help="Delete what is marked as this owner's and is in no file; nothing else.")
]
ForceOption = Annotated[
    bool,
    typer.Option(
        "--force", help="Prune also more than 20 objects, or more than half of what the owner has: look twice first."
    ),
]
TakeOverOption = Annotated[
    bool, typer.Option("--take-over", help="Change also what another owner applied; from then on it is this owner's.")
]
NoteOption = Annotated[str, typer.Option(help="Why; kept with the revision.", show_default=False)]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what it would do, and do nothing.")]


class ObjectForm(StrEnum):
    """How objects are printed."""

    YAML = "yaml"
    JSON = "json"


def plan(
    sources: SourcesArgument = None,
    files: AlsoOption = None,
    owner: OwnerOption = "",
    prune: PruneOption = False,
    namespace: NamespaceOption = NAMESPACE,
    ignore_others: IgnoreOthersOption = False,
    force: ForceOption = False,
    take_over: TakeOverOption = False,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Say what `apply` would do: objects that would be created, changed and pruned, what lint finds in them, which
    requests would be decided otherwise, and whether an invariant would not hold. Nothing is changed.

    Exits with 0 if there is nothing to do, with 4 if there are changes, and with 1, 2 or 3 if they would be refused.
    """
    asked = Asked(owner=owner, prune=prune, force=force, take_over=take_over)
    found = read_sources(named(sources, files), namespace, ignore_others)
    with policy_api(socket) as api:
        planned = made(api, found, asked)
    emit(planned.document(), output, lambda: _plan_text(planned, found))
    leave(Exit.OK if planned.empty else Exit.CHANGES)


def apply(
    sources: SourcesArgument = None,
    files: AlsoOption = None,
    owner: OwnerOption = "",
    prune: PruneOption = False,
    namespace: NamespaceOption = NAMESPACE,
    ignore_others: IgnoreOthersOption = False,
    force: ForceOption = False,
    take_over: TakeOverOption = False,
    note: NoteOption = "",
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Make the server have what the files say: all of it as one revision, or nothing of it. What `plan` says is shown
    first; if the server's policies change after that, nothing is written. Asks before objects are pruned or taken over.

    Example: caadmin policy apply policies/ --owner shop --prune --note "orders may be read"
    """
    asked = Asked(owner=owner, prune=prune, force=force, take_over=take_over, note=note)
    found = read_sources(named(sources, files), namespace, ignore_others)
    with policy_api(socket) as api:
        planned = made(api, found, asked)
        if output is Output.TABLE:
            emit(None, output, lambda: _plan_text(planned, found))
        number = None if planned.empty or dry_run else _applied(api, planned, found, asked, yes=yes)
    done = planned.empty or dry_run
    words = f"nothing was written; revision {planned.revision} stays" if done else f"revision {number}"
    emit({**planned.document(), "dry_run": dry_run, "applied_revision": number}, output, lambda: words)


def _applied(api: Api, planned: Plan, found: Sources, asked: Asked, *, yes: bool) -> int | None:
    losses = [f"{key}, which is deleted" for key in planned.pruned]
    losses += [
        f"{key} as `{owner}` applied it" if owner else f"{key} as it was written by hand"
        for key, owner in planned.taken.items()
    ]
    confirm(losses, yes=yes)
    number: int | None = send(api, planned, found, asked, dry_run=False)["revision"]
    return number


def _plan_text(planned: Plan, found: Sources) -> str:
    if planned.empty:
        return f"nothing to do: {len(planned.unchanged)} objects are as they should be"
    lines = [f"+ {found.objects[key]}" for key in planned.created]
    lines += [f"~ {found.objects[key]}{_from(planned, key)}" for key in planned.changed]
    lines += [f"- {key}" for key in planned.pruned]
    counts = (("created", planned.created), ("changed", planned.changed), ("pruned", planned.pruned))
    said = [f"{len(keys)} {name}" for name, keys in (*counts, ("unchanged", planned.unchanged)) if keys]
    notes = [str(one) for one in found.warnings]
    notes += finding_lines(planned.outcome["findings"], _object_places(found))
    sections = ["\n".join(lines), ", ".join(said), *(["\n".join(notes)] if notes else [])]
    return "\n\n".join([*sections, difference_text(planned.outcome["difference"])]).rstrip()


def _from(planned: Plan, key: Any) -> str:
    if key not in planned.taken:
        return ""
    return f", taken over from `{planned.taken[key]}`" if planned.taken[key] else ", written by hand so far"


def _object_places(found: Sources) -> dict[str, str]:
    """`namespace/name` of policies → where they are written."""
    return {
        f"{key.namespace}/{key.name}": f"{one.source}:{one.node.line}"
        for key, one in found.objects.items()
        if key.kind == AUTHORIZATION
    }


def get(
    kind: KindArgument,
    name: ObjectArgument,
    output: Annotated[ObjectForm, typer.Option("--output", "-o", help="How to print it.")] = ObjectForm.YAML,
    socket: SocketOption = None,
) -> None:
    """Print an object as it was written, so that it can be changed and applied again."""
    with policy_api(socket) as api:
        found = api.get(object_path(kind_of(kind), *names_of(name)))
    if output is ObjectForm.JSON:
        emit(found, Output.JSON, str)
    else:
        from policy.written import dumped

        print(plain_lines(dumped([found]).removeprefix("---\n")), end="")


def plain_lines(text: str) -> str:
    """Nothing in it that a terminal obeys."""
    from ca.identity.text import printable

    return printable(text, besides="\n\t")


def list_(
    kind: Annotated[str | None, typer.Option(help="Only objects of this kind.", show_default=False)] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Only those of this namespace.", show_default=False)
    ] = None,
    owner: Annotated[
        str | None, typer.Option(help="Only those that this owner applied; '' for those by hand.", show_default=False)
    ] = None,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """List policies and Workload objects: of all kinds and namespaces that the caller may read."""
    kinds = PATHS if kind is None else {kind_of(kind): PATHS[kind_of(kind)]}
    below = "" if namespace is None else f"/{namespace}"
    with policy_api(socket) as api:
        items = [item for path in kinds.values() for item in api.pages(f"/{path}{below}")]
    items = [item for item in items if owner in (None, item["owner"])]
    emit({"items": items}, output, lambda: _list_text(items))


def _list_text(items: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for item in items:
        body, metadata = item["object"], item["object"]["metadata"]
        rows.append(
            (body["kind"], metadata["namespace"], metadata["name"], _gist(body), item["owner"] or "-", item["revision"])
        )
    return columns(("KIND", "NAMESPACE", "NAME", "WHAT", "OWNER", "REVISION"), rows, empty="no policies")


def _gist(body: Mapping[str, Any]) -> str:
    spec = body.get("spec") or {}
    if body["kind"] == AUTHORIZATION:
        rules = spec.get("rules") or []
        return f"{spec.get('action', 'ALLOW')}, {len(rules)} {'rule' if len(rules) == 1 else 'rules'}"
    return str(spec.get("spiffeId") or "-")


def delete(
    kind: KindArgument,
    names: ObjectsArgument,
    take_over: Annotated[bool, typer.Option("--take-over", help="Delete also what an owner applied.")] = False,
    note: NoteOption = "",
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Delete objects, as one revision. What would be decided otherwise is shown first."""
    wanted = kind_of(kind)
    keys = [names_of(name) for name in names]
    with policy_api(socket) as api:
        changes = [_deletion(api, wanted, *key, force=take_over) for key in keys]
        body = {"changes": changes, "note": note}
        _rehearsed_then_done(
            api, "/apply", body, [f"{wanted} {n}" for n in names], dry_run=dry_run, yes=yes, output=output
        )


def _deletion(api: Api, kind: str, namespace: str, name: str, *, force: bool) -> dict[str, Any]:
    etag = api.call("GET", object_path(kind, namespace, name)).headers["etag"].strip('"')
    return {"delete": {"kind": kind, "namespace": namespace, "name": name}, "if_match": etag, "force": force}


def rollback(
    revision: Annotated[
        int,
        typer.Argument(min=0, help="The revision whose content shall hold again.", autocompletion=complete_revision),
    ],
    note: NoteOption = "",
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Go back to a revision: a new one, in which all is as it was then. What would be decided otherwise is shown
    first; revisions after it stay, and can be gone back to.

    If all is as it was then, nothing is written, and it exits with 0."""
    with policy_api(socket) as api:
        path, loss = f"/revisions/{revision}/rollback", f"what was changed after revision {revision}"
        _rehearsed_then_done(api, path, {"note": note}, [loss], dry_run=dry_run, yes=yes, output=output)


def _rehearsed_then_done(
    api: Api, path: str, body: dict[str, Any], losses: Iterable[str], *, dry_run: bool, yes: bool, output: Output
) -> None:
    """Shown, asked about, and done on top of the revision that it was shown for."""
    from ca.cli.policy_plan import newest

    body = {**body, "expected_revision": newest(api)}
    found = api.call("POST", path, body, query={"dry_run": True}).json
    if not found["changed"]:
        words = f"nothing to do: everything is so already; revision {body['expected_revision']} stays"
        emit(found, output, lambda: words)
        return
    if output is Output.TABLE:
        emit(None, output, lambda: difference_text(found["difference"]) or "nothing would be decided otherwise")
    if not dry_run:
        if not yes:
            sys.stdout.flush()
        confirm(list(losses), yes=yes)
        found = api.call("POST", path, body).json
    number = found["revision"]
    words = "nothing was written" if number is None else f"revision {number}"
    emit(found, output, lambda: plain(words))
