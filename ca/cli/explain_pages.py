"""What `caadmin explain` prints for people: one subject a paragraph, the verdict and the next step last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ca.cli.output import bold, green, plain, red, until

WIDTH = 11
SHOWN_HISTORY = 8


def workload_page(data: dict[str, Any]) -> str:
    """Of `explain workload`."""
    process = data["process"]
    share = f", {process['share']}" if process["share"] else ""
    paragraphs = [
        ("process", [f"pid {process['pid']}, uid {process['uid']}, gid {process['gid']}{share}"]),
        ("attestors", list(_attestors(data["attestors"]))),
        ("selectors", data["selectors"]),
        ("agent", list(_agent(data["agent"]))),
        ("identities", list(_identities(data["identities"]))),
        ("policies", list(_policies(data["policies"]))),
        ("closest", list(_closest(data["nearest"]))),
        ("before", list(_history(data["history"]))),
        ("verdict", list(_verdict(data["verdict"]))),
        ("next", list(_next(data["verdict"]))),
    ]
    return _page(paragraphs)


def agent_page(data: dict[str, Any]) -> str:
    """Of `explain agent`."""
    others = data["others"]
    if not others:
        return _node_page(data)
    all_of_them = 1 + len(others) + data["more_others"]
    pages = [plain(f"{all_of_them} nodes came from there, those in trouble first")]
    pages += [_node_page(one) for one in (data, *others)]
    if data["more_others"]:
        pages.append(plain(f"and {data['more_others']} more: caadmin agent list"))
    return "\n\n".join(pages)


def _node_page(data: dict[str, Any]) -> str:
    verdict = data["verdict"]
    mark = green("OK") if verdict["reason"] == "OK" else red(verdict["reason"])
    paragraphs = [
        ("agent", list(_attested(data))),
        ("selectors", data["selectors"]),
        ("entries", list(_entries(data))),
        ("attempts", list(_attempts(data["attempts"]))),
        ("verdict", [mark, plain(verdict["detail"])]),
        ("next", list(_next(verdict))),
    ]
    return _page(paragraphs)


def _page(paragraphs: Iterable[tuple[str, list[Any]]]) -> str:
    """Names on the left; a paragraph without lines is left out."""
    lines = []
    for name, texts in paragraphs:
        for number, text in enumerate(texts):
            label = bold(name) + " " * (WIDTH - len(name)) if number == 0 else " " * WIDTH
            lines.append(f"{label} {plain(text)}")
    return "\n".join(lines)


def _attestors(outcomes: list[dict[str, Any]]) -> Iterator[str]:
    width = max((len(one["attestor"]) for one in outcomes), default=0)
    for one in outcomes:
        name, took = one["attestor"].ljust(width), f"{one['milliseconds']:.1f} ms"
        if one["ok"]:
            yield f"{name}  ok, {one['selectors']} selectors, {took}"
        else:
            yield f"{name}  FAILED: {one['detail']} ({one['reason']}), {took}"
        if one["hint"]:
            yield f"{' ' * width}  hint: {one['hint']}"
        for note in one["notes"]:
            yield f"{' ' * width}  {note['what']}: {note['value']}"


def _count(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


def _agent(status: dict[str, Any]) -> Iterator[str]:
    yield f"{status['spiffe_id'] or 'no identity'}, {status['state']}, {_count(status['entries'], 'entry', 'entries')}"
    if status["reason"]:
        yield f"{status['detail']} ({status['reason']})"
    yield f"last word of the server: {until(status['last_sync_at'])}"


def _identities(identities: list[dict[str, Any]]) -> Iterator[str]:
    for one in identities:
        end = one["svid_expires_at"]
        state = f"until {until(end)}" if end else f"no X.509-SVID yet {one['reason']}".rstrip()
        yield f"{one['spiffe_id']} by entry {one['entry_id']}, {state}"


def _policies(policies: list[dict[str, Any]]) -> Iterator[str]:
    for one in policies:
        if one["revision"]:
            place = f"namespace {one['namespace']}" if one["namespace"] else "no namespace known"
            labels = f", {', '.join(one['labels'])}" if one["labels"] else ""
            yield f"for {one['spiffe_id']} ({place}{labels}), revision {one['revision']}"
            for name in one["policies"] or ["none: everything is refused, but in an open namespace"]:
                yield f"  {name}"
            for name in one["request_authentications"]:
                yield f"  {name} (tokens)"
        if one["detail"]:
            yield one["detail"]


def _closest(nearest: list[dict[str, Any]]) -> Iterator[str]:
    for near in nearest:
        count = len(near["matches"]) + len(near["misses"])
        why = f", {near['reason']}" + (f" since {near['since']}" if near["since"] else "") if near["reason"] else ""
        head = f"entry {near['entry_id']} {near['spiffe_id']}"
        yield f"{head}: {len(near['matches'])} of {count} selectors match{why}"
        width = max(len(text) for text in [*near["matches"], *(miss["selector"] for miss in near["misses"]), ""])
        for selector in near["matches"]:
            yield f"  {selector.ljust(width)}  matches"
        for miss in near["misses"]:
            reason = f" ({miss['reason']})" if miss["reason"] else ""
            yield f"  {miss['selector'].ljust(width)}  MISSING{reason}"


def _history(history: list[dict[str, Any]]) -> Iterator[str]:
    for past in history[:SHOWN_HISTORY]:
        again = f", {_count(past['again'], 'time', 'times')} again until {past['last_at']}" if past["again"] else ""
        if past["kind"] == "refused":
            yield f"{past['at']} refused: {past['reason']}, id {past['id']}"
        elif past["reason"] == "OK":
            yield f"{past['at']} attested: {past['selectors']} selectors{again}"
        else:
            yield f"{past['at']} not attested: {past['detail']} ({past['reason']}){again}"


def _verdict(verdict: dict[str, Any]) -> Iterator[str]:
    if verdict["identity"]:
        yield green("OK")
    elif verdict["told"] == verdict["reason"]:
        yield red(verdict["reason"])
    else:
        yield red(f"{verdict['told']} reason={verdict['reason']}")
    yield verdict["detail"]


def _next(verdict: dict[str, Any]) -> Iterator[str]:
    if verdict["hint"]:
        yield verdict["hint"]
    if verdict["command"]:
        yield f"$ {verdict['command']}"


def _attested(data: dict[str, Any]) -> Iterator[str]:
    if not data["spiffe_id"]:
        yield "none has attested under this name"
        return
    yield data["spiffe_id"]
    state = "banned" if data["banned"] else "follows this server" if data["connected"] else "not connected here"
    again = "can attest again by itself" if data["can_reattest"] else "proves its node once"
    yield f"attested by {data['attestation_type']}, {again}, {state}"
    if data["svid_expires_at"]:
        yield f"SVID {data['svid_serial']} ends {until(data['svid_expires_at'])}"
    if data["version"]:
        yield f"version {data['version']}"


def _entries(data: dict[str, Any]) -> Iterator[str]:
    for entry in data["entries"][:SHOWN_HISTORY]:
        yield f"{entry['id']} {entry['spiffe_id']} for {', '.join(entry['selectors'])}"
    if (more := data["entry_count"] - min(len(data["entries"]), SHOWN_HISTORY)) > 0:
        yield f"and {more} more: caadmin entry list"


def _attempts(attempts: list[dict[str, Any]]) -> Iterator[str]:
    for one in attempts[:SHOWN_HISTORY]:
        again = f", {_count(one['again'], 'time', 'times')} again until {one['last_at']}" if one["again"] else ""
        head = f"{one['at']} {one['attestor']} from {one['peer']}, id {one['id']}{again}"
        yield f"{head}: {one['reason']}" if one["reason"] == "OK" else f"{head}: {one['detail']} ({one['reason']})"
        if one["cause"]:
            yield f"  cause: {one['cause']}"
        for note in one["notes"]:
            yield f"  {note['what']}: {note['value']}"
