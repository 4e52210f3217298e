"""`caadmin ca status` for people: the life of each authority as a column of steps, done or still to come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ca.cli.output import green, plain, red, until

DONE, OPEN = "[x]", "[ ]"
WIDTH = 14


def status_table(data: dict[str, Any]) -> str:
    """All authorities, this server's own first."""
    own = [one for one in data["authorities"] if one["server"] == data["server"]]
    others = [one for one in data["authorities"] if one["server"] != data["server"]]
    blocks = ["\n".join(_lines(one, data["agents"])) for one in own]
    blocks += ["\n".join(_lines(one, data["agents"], of=one["server"])) for one in others]
    return "\n\n".join(blocks) or "there is no authority yet"


def _lines(one: dict[str, Any], agents: int, of: str = "") -> Iterator[str]:
    state = f"{one['status']}, tainted" if one["tainted"] else one["status"]
    paint = green if one["status"] == "active" else red if one["tainted"] else plain
    where = f" of server {plain(of)}" if of else ""
    yield f"{one['kind']} {plain(one['authority_id'])}  {paint(state)}{where}"
    if one["upstream_authority_id"]:
        yield _line("below", plain(one["upstream_authority_id"]), "   ")
    if one["status"] == "revoked":
        yield _line("revoked", until(one["revoked_at"]), DONE)
        return
    yield _line("published", until(one["published_at"]), DONE)
    yield from _acknowledged(one, agents)
    yield from _active(one)
    if one["tainted"]:
        yield _line("tainted", until(one["tainted_at"]) if one["tainted_at"] else "", DONE)
    if one["status"] == "old":
        yield _unused(one)
    elif one["status"] == "active" and (one["alive"] or one["hanging"]):
        yield _line("signed", f"{_hanging(one)}", "   ")
    if one["next_step"] == "prepare":
        yield _line("successor", f"is made {until(one['next_at'])}", OPEN)
    yield _line("ends", until(one["not_after"]), OPEN)


def _acknowledged(one: dict[str, Any], agents: int) -> Iterator[str]:
    acked = one["agents_acked"]
    yield _line("acknowledged", f"by {acked} of {agents} agents", DONE if acked == agents else OPEN)
    for blocker in one["behind"]:
        yield f"{'':{len(DONE) + WIDTH + 4}}{blocker_line(blocker)}"
    if more := one["behind_total"] - len(one["behind"]):
        yield f"{'':{len(DONE) + WIDTH + 4}}and {more} more"


def _active(one: dict[str, Any]) -> Iterator[str]:
    if one["activated_at"]:
        yield _line(
            "active since" if one["status"] == "active" else "was active from", until(one["activated_at"]), DONE
        )
    elif one["status"] == "prepared" and one["next_step"] == "activate":
        late = f", at the latest {until(one['last_safe_at'])}" if one["behind_total"] and one["last_safe_at"] else ""
        yield _line("signs", f"by schedule {until(one['next_at'])}{late}", OPEN)


def _unused(one: dict[str, Any]) -> str:
    if not one["hanging"]:
        return _line("unused", "nothing hangs on it any more", DONE)
    return _line("unused", f"{_hanging(one)}, the last ends {until(one['last_hanging_not_after'])}", OPEN)


def _hanging(one: dict[str, Any]) -> str:
    if one["kind"] == "jwt":
        return f"up to {one['hanging']} JWT-SVIDs are valid"
    return f"{one['hanging']} of {one['alive']} SVIDs hang on it"


def _line(name: str, text: str, mark: str) -> str:
    return f"  {mark} {name.ljust(WIDTH)} {text}".rstrip()


def blocker_line(blocker: dict[str, Any]) -> str:
    """`agent spiffe://…: why (REASON, until …)`."""
    end = f", until {blocker['until']}" if blocker["until"] else ""
    return plain(f"{blocker['kind']} {blocker['who']}: {blocker['detail']} ({blocker['reason']}{end})")


def blockers_table(blockers: list[dict[str, Any]], total: int, most: int) -> str:
    """The first of them, a line each."""
    lines = [f"  {blocker_line(blocker)}" for blocker in blockers[:most]]
    if total > len(lines):
        lines.append(f"  and {total - len(lines)} more; --output json names up to 1000")
    return "\n".join(lines)
