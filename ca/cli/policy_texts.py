"""What the server answers, for people: differences, findings, tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ca.cli.output import columns, fields, green, red

Document = Mapping[str, Any]
SHOWN_TARGETS = 3


def difference_text(found: Document | None) -> str:
    """What would be decided otherwise."""
    if found is None:
        return ""
    if found["equivalent"]:
        return "every request is decided as before"
    parts = [_change(one) for one in found["changes"]]
    parts += [f"? not decided: {_rule(one)}: {one['message']}" for one in found["undecided"]]
    if not found["complete"] and not found["undecided"]:
        parts.append("? and more")
    return "\n".join(parts)


def finding_lines(findings: Iterable[Document], places: Mapping[str, str]) -> list[str]:
    """With the places of objects in files, where they come from one, and below each what to do."""
    lines = []
    for one in findings:
        place = places.get(one["key"]) or one["key"]
        rule = "" if one["rule"] is None else f", rule {one['rule']}"
        name = f"{one['key']}{rule}: " if place != one["key"] else f"{rule.removeprefix(', ')}: " if rule else ""
        lines.append(f"{place}: {one['severity']}: {name}{one['message']} ({one['code']})")
        lines += [f"    {one['hint']}"] if one["hint"] else []
    return lines


def _change(one: Document) -> str:
    words, sign = _KINDS.get(one["change"], (one["change"], "?"))
    may = "" if one["certain"] else "may be "
    provider = f" ({one['provider']})" if one["provider"] else ""
    shadow = ", in shadow only" if one["shadow"] else ""
    targets = one["targets"]
    more = len(targets) - SHOWN_TARGETS
    said = ", ".join(targets[:SHOWN_TARGETS]) + (f" and {more} more" if more > 0 else "")
    return "\n".join(
        [
            f"{sign} {may}{words}{provider}: {', '.join(one['region']) or 'everything'}{shadow}",
            f"    to {said}",
            f"    by {'removed ' if one['removed'] else ''}{_rule(one)}",
            f"    for example {request_words(one['request'])}",
            f"    before: {_said(one['before'])}; after: {_said(one['after'])}",
        ]
    )


_KINDS = {
    "allowed": ("newly allowed", "+"),
    "denied": ("newly denied", "-"),
    "asked": ("asks a provider besides", "?"),
    "unasked": ("asks a provider no more", "!"),
}


def _rule(one: Document) -> str:
    if not one["policy"]:
        return "the namespace's default"
    action = f"{one['action']} " if one.get("action") else ""
    return f"{action}{one['policy']}#{one['rule']}"


def _said(verdict: Document) -> str:
    by = f" by {verdict['policy']}#{verdict['rule']}" if verdict["policy"] else ""
    besides = f", {', '.join(verdict['providers'])} agreeing" if verdict["providers"] else ""
    return f"{'allowed' if verdict['allowed'] else 'denied'}{by} ({verdict['reason']}{besides})"


def request_words(request: Document) -> str:
    """A request's document in one line."""
    said = [request.get("principal") or "a caller without certificate"]
    if request.get("http", True):
        said += [request[name] for name in ("method", "path") if request.get(name) is not None]
    else:
        said.append("by a connection that is not HTTP")
    rest = ("host", "port", "destination_port", "source_ip", "remote_ip", "destination_ip", "sni", "claims", "metadata")
    said += [f"{name} {request[name]}" for name in rest if request.get(name) not in (None, {}, "")]
    said += [f"header {name} {value}" for name, value in (request.get("headers") or {}).items()]
    return ", ".join(map(str, said))


def seconds(at: str) -> str:
    """A time in UTC, without what nobody reads."""
    return f"{at[:19]}Z"


NOT_PUSHED = "this server pushes no policies, its agents poll it: a proxy that has none refuses everything"


def rollout_text(found: Document) -> str:
    """Agents and proxies."""
    if not found["pushed"]:
        return f"revision {found['revision']}; {NOT_PUSHED}"
    if not found["agents"] and not found["proxies"]:
        return f"revision {found['revision']}; no agent is connected"
    parts = [f"revision {found['revision']}"]
    if found["agents"]:
        rows = [
            (one["agent"], _coloured(one["state"]), _number(one["sent"]), _number(one["revision"]), one["error"])
            for one in found["agents"]
        ]
        parts.append(columns(("AGENT", "STATE", "SENT", "HAS", "DETAIL"), rows, empty=""))
    parts.append(columns(PROXY_HEADS, map(_proxy, found["proxies"]), empty="no proxy asks for policies"))
    return "\n\n".join(parts)


PROXY_HEADS = ("PROXY", "PID", "WORKLOAD", "RESOURCE", "REVISION", "STATE", "LOGGED", "DETAIL")


def _proxy(one: Document) -> Sequence[object]:
    return (
        one["proxy"],
        one["pid"],
        one["spiffe_id"] or "-",
        one["resource"],
        _number(one["revision"]),
        _coloured(one["state"]),
        "unlogged" if one["unlogged"] else "yes",
        proxy_detail(one),
    )


def proxy_detail(one: Document) -> str:
    """What the proxy said, and by what it goes where it refuses."""
    if one["state"] != "nacked":
        return str(one["detail"])
    known = one.get("in_force")
    goes = f"revision {known} is in force still" if known else "what it had before is in force still, if anything"
    return f"{goes}: {one['detail']}"


def _number(value: int | None) -> str:
    return "-" if not value else str(value)


def _coloured(state: str) -> str:
    if state in ("current", "acked"):
        return green(state)
    return red(state) if state in ("failed", "nacked") else state


def decision_lines(records: Iterable[Document]) -> str:
    """A table, the newest first."""
    heads = ("AT", "VERDICT", "CALLER", "TARGET", "REQUEST", "BY", "ID")
    return columns(heads, map(decision_row, records), empty="no decisions")


def decision_row(record: Document) -> Sequence[object]:
    """Of one record."""
    by = f"{record['policy']}#{record.get('rule')}" if record.get("policy") else record["reason"]
    asked = f"{record.get('method', '')} {record.get('path', '')}".strip() or "-"
    return (
        seconds(record["at"]),
        green("allowed") if record["allowed"] else red("denied"),
        record.get("principal") or "-",
        record["target"].removeprefix("spiffe://"),
        asked,
        by,
        record["id"],
    )


def record_text(record: Document) -> str:
    """One record, in fields."""
    names = {"id": "Decision", "at": "At", "source": "Decided by", "agent": "Agent", "proxy": "Proxy"}
    shown = {**record, "at": seconds(record["at"])}
    return fields(
        [(label, shown.get(name)) for name, label in names.items()]
        + [("Target", record["target"]), ("Request", request_words(record))]
    )


def revision_text(found: Document) -> str:
    """One revision and what it changed."""
    head = fields(
        [
            ("Revision", found["number"]),
            ("At", seconds(found["at"])),
            ("By", found["actor"]),
            ("Note", found["note"]),
        ]
    )
    rows = [(_what(one), one["kind"], one["namespace"], one["name"]) for one in found["changes"]]
    return f"{head}\n\n{columns(('', 'KIND', 'NAMESPACE', 'NAME'), rows, empty='nothing that you may read')}"


def _what(one: Document) -> str:
    if one["before"] is None:
        return "created"
    return "deleted" if one["after"] is None else "changed"
