"""`caadmin policy revisions`, `grants` and `invariants`: what was, who may, and what must hold."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ca.cli.confirm import YesOption, confirm
from ca.cli.connection import SocketOption
from ca.cli.exits import Exit, leave
from ca.cli.output import Output, OutputOption, columns, emit, plain
from ca.cli.policy_client import Api, ServerRefusal, policy_api
from ca.cli.policy_files import read_texts
from ca.cli.policy_names import complete_grant, complete_revision
from ca.cli.policy_texts import difference_text, revision_text, seconds
from ca.errors import InvalidArgument

IDLE = (
    "no workload that is known is meant by its target, so that it checks nothing; `namespace/account` is of IDs that "
    "end with `/ns/namespace/sa/account`"
)
revisions = typer.Typer(help="What was written, when, and by whom.")
grants = typer.Typer(help="Who may read and write policies. For admins.")
invariants = typer.Typer(help="What no policy may ever allow. For admins.")


class RoleName(StrEnum):
    """What a grant gives."""

    READER = "reader"
    AUTHOR = "author"
    ADMIN = "admin"


RevisionArgument = Annotated[
    int, typer.Argument(min=0, metavar="REVISION", help="Its number.", autocompletion=complete_revision)
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what it would do, and do nothing.")]


@revisions.command("list")
def list_revisions(
    limit: Annotated[int, typer.Option(min=1, help="So many of the newest.")] = 20,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """List revisions, the newest first."""
    with policy_api(socket) as api:
        items = list(api.pages("/revisions", most=limit))
    heads = ("REVISION", "AT", "BY", "OBJECTS", "NOTE")
    rows = [(r["number"], seconds(r["at"]), r["actor"], r["count"], r["note"]) for r in items]
    emit({"items": items}, output, lambda: columns(heads, rows, empty="nothing was ever written"))


@revisions.command("show")
def show_revision(revision: RevisionArgument, output: OutputOption = Output.TABLE, socket: SocketOption = None) -> None:
    """Show which objects a revision created, changed and deleted; with -o, as they were before and after."""
    with policy_api(socket) as api:
        found = api.get(f"/revisions/{revision}")
    emit(found, output, lambda: revision_text(found))


@revisions.command("diff")
def diff_revisions(
    revision: RevisionArgument,
    other: Annotated[
        int | None,
        typer.Argument(
            min=0,
            metavar="OTHER",
            help="A second one. Without it, the first is compared with the one before.",
            autocompletion=complete_revision,
            show_default=False,
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Say which requests are decided otherwise by the second revision than by the first. Exits with 1 if any is."""
    before, after = (max(revision - 1, 0), revision) if other is None else (revision, other)
    with policy_api(socket) as api:
        found = api.get("/analyses/diff", before=before, after=after)
    emit(found, output, lambda: difference_text(found["difference"]))
    leave(Exit.OK if found["difference"]["equivalent"] else Exit.FAILED)


@grants.command("list")
def list_grants(output: OutputOption = Output.TABLE, socket: SocketOption = None) -> None:
    """List who may do what. The SPIFFE IDs of `policy.admins` in the server's configuration need no grant."""
    with policy_api(socket) as api:
        items = list(api.pages("/grants"))
    rows = [(g["name"], g["role"], g["spiffe_id"], ", ".join(g["namespaces"]) or "-") for g in items]
    heads = ("NAME", "ROLE", "SPIFFE ID", "NAMESPACES")
    emit({"items": items}, output, lambda: columns(heads, rows, empty="no grants"))


GrantArgument = Annotated[str, typer.Argument(metavar="NAME", help="Its name.", autocompletion=complete_grant)]


@grants.command("set")
def set_grant(
    name: GrantArgument,
    spiffe_id: Annotated[str, typer.Option(help="Whom it is for; with `*` at its end, all that begin so.")],
    role: Annotated[RoleName, typer.Option(help="What it gives.", show_choices=True)],
    namespace: Annotated[
        list[str] | None,
        typer.Option(
            "--namespace", "-n", help="Where; a reader may have `*`, an admin has none. Repeatable.", show_default=False
        ),
    ] = None,
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Create a grant, or make another of it. It holds from the next call of who is named on."""
    body = {"spiffe_id": spiffe_id, "role": role.value, "namespaces": namespace or []}
    with policy_api(socket) as api:
        known = {one["name"]: one["etag"] for one in api.pages("/grants")}
        headers = {"If-Match": f'"{known[name]}"'} if name in known else {"If-None-Match": "*"}
        found = api.call("PUT", _grant(name), body, query={"dry_run": dry_run}, headers=headers).json
    said = f"{found['spiffe_id']} may be {found['role']}{_of(found)}"
    emit(found, output, lambda: "\n".join(found.get("effect") or [said]))


@grants.command("delete")
def delete_grant(
    name: GrantArgument, yes: YesOption = False, output: OutputOption = Output.TABLE, socket: SocketOption = None
) -> None:
    """Delete a grant. It holds from the next call of who is named on."""
    with policy_api(socket) as api:
        found = api.get(_grant(name))
        confirm([f"the right of {found['spiffe_id']} as {found['role']}{_of(found)}"], yes=yes)
        found = api.call("DELETE", _grant(name), headers={"If-Match": f'"{found["etag"]}"'}).json
    emit(found, output, lambda: f"{found['spiffe_id']} is {found['role']} no more{_of(found)}")


def _grant(name: str) -> str:
    from urllib.parse import quote

    return f"/grants/{quote(name, safe='')}"


def _of(grant: Mapping[str, Any]) -> str:
    return f" of {', '.join(grant['namespaces'])}" if grant["namespaces"] else ""


@invariants.command("get")
def get_invariants(output: OutputOption = Output.TABLE, socket: SocketOption = None) -> None:
    """Print the invariants as they were written."""
    with policy_api(socket) as api:
        found = api.get("/invariants")
    emit(found, output, lambda: found["text"].removesuffix("\n"))


@invariants.command("set")
def set_invariants(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE|-", help="All of them, in YAML.", show_default=False)
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Have none.")] = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Replace the invariants. They must hold by the newest revision, and from then on no write may break one. Asks
    before invariants go."""
    if (file is None) != clear:
        raise InvalidArgument("either a file or --clear", reason="USAGE")
    text = "" if file is None else _text(file)
    if text:
        _tell(text, str(file))
    with policy_api(socket) as api:
        before = api.get("/invariants")
        gone = sorted(_names(before["text"]) - _names(text))
        if not dry_run:
            confirm([f"the invariant {name}" for name in gone], yes=yes)
        found = _put(api, text, before["etag"], str(file), dry_run=dry_run)
        idle = _idle(api, text)
    for name in idle:
        print(plain(f"{name}: {IDLE}"), file=sys.stderr)
    count = len(_names(text))
    emit(found, output, lambda: "1 invariant holds" if count == 1 else f"{count} invariants hold")


def _idle(api: Api, text: str) -> list[str]:
    """Invariants that are for no workload that the server knows."""
    from ca.cli.policy_online_sets import target_told
    from policy.invariant_texts import read
    from policy.invariants import is_about_nobody

    wanted = read(text, "") if text else ()
    targets = [target_told(one) for one in api.get("/mesh")["targets"]] if wanted else []
    return [one.name for one in wanted if is_about_nobody(one, targets)]


def _text(file: Path) -> str:
    ((_, data),) = read_texts([file])
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"`{file}` is not UTF-8", reason="FILE") from error


def _names(text: str) -> set[str]:
    """Of the invariants of a text, as far as it is one."""
    from policy.invariant_texts import read
    from policy.problems import Refused

    try:
        return {one.name for one in read(text, "")} if text else set()
    except Refused:
        return set()


def _put(api: Api, text: str, etag: str, source: str, *, dry_run: bool) -> Any:
    headers = {"If-Match": f'"{etag}"'} if etag else {}
    try:
        return api.call("PUT", "/invariants", {"text": text}, query={"dry_run": dry_run}, headers=headers).json
    except ServerRefusal as error:
        if error.reason == "INVARIANTS_INVALID":
            _tell(text, source)
        raise


def _tell(text: str, source: str) -> None:
    """The same problems with lines of the file."""
    from ca.cli.policy_files import refused
    from policy.invariant_texts import read
    from policy.problems import Refused

    try:
        read(text, source)
    except Refused as error:
        refused(error)
