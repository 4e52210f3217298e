"""Registration entries from a JSON or YAML file: what `entry list` prints, and what SPIRE's `-data` files hold."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ca.cli.arguments import instant, trust_domain_names, wire_id, wire_selectors
from ca.errors import InvalidArgument
from ca.runtime.durations import seconds_hint

if TYPE_CHECKING:
    from ca.proto.spire import types_pb2

MAX_FILE_BYTES = 64 << 20
_PASSED_OVER = frozenset({"revision_number", "created_at"})
"""The server's own fields: printed by `entry list`, of no effect here."""


def read_entries(path: Path) -> list[types_pb2.Entry]:
    """Entries of a file, `-` for standard input: a list, or an object with `entries`. Raises InvalidArgument."""
    document = _load(path)
    listed = document.get("entries") if isinstance(document, dict) else document
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise _malformed(path, "expected a list of entries, or an object with `entries`")
    return [_entry(item, f"entry {number}") for number, item in enumerate(listed, start=1)]


def _load(path: Path) -> Any:
    import yaml

    try:
        data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1) if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"cannot read `{path}`: {error.strerror}", reason="FILE") from error
    if len(data) > MAX_FILE_BYTES:
        raise _malformed(path, f"it is larger than {MAX_FILE_BYTES} bytes")
    try:
        return yaml.safe_load(data)  # JSON is a part of YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _malformed(path, str(error).splitlines()[0]) from error


def _entry(item: dict[str, Any], where: str) -> types_pb2.Entry:
    from ca.proto.spire import types_pb2

    entry = types_pb2.Entry()
    for key, value in item.items():
        if key in _PASSED_OVER or value is None:
            continue
        setter = _SETTERS.get(key)
        if setter is None:
            raise InvalidArgument(f"{where} has an unknown key `{key}`", reason="FILE", hint=_nearest(key))
        try:
            setter(entry, value)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            hint = seconds_hint(key, value) if "ttl" in key else ""
            raise InvalidArgument(f"{where}: `{key}` is malformed", reason="FILE", hint=hint) from error
        except InvalidArgument as error:
            raise InvalidArgument(f"{where}: {error.detail}", reason=error.reason, hint=error.hint) from error
    return entry


def _nearest(key: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(key, _SETTERS, n=1)
    return f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(sorted(_SETTERS))}"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _id(value: Any) -> types_pb2.SPIFFEID:
    if isinstance(value, dict):  # as SPIRE's JSON output has it
        return wire_id(f"spiffe://{value['trust_domain']}{value['path']}")
    return wire_id(_text(value))


def _selectors(value: list[Any]) -> list[types_pb2.Selector]:
    return wire_selectors(s if isinstance(s, str) else f"{s['type']}:{s['value']}" for s in value)


def _plain(name: str, kind: type[Any]) -> Callable[[types_pb2.Entry, Any], None]:
    def put(entry: types_pb2.Entry, value: Any) -> None:
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise TypeError
        setattr(entry, name, value)

    return put


def _listed(name: str, read: Callable[[list[str]], list[Any]]) -> Callable[[types_pb2.Entry, Any], None]:
    def put(entry: types_pb2.Entry, value: Any) -> None:
        if not isinstance(value, list):
            raise TypeError
        getattr(entry, name).extend(read(value))

    return put


def _attribute(name: str) -> Callable[[types_pb2.Entry, Any], None]:
    def put(entry: types_pb2.Entry, value: Any) -> None:
        if not isinstance(value, bool):
            raise TypeError
        if value:
            setattr(entry.additional_attributes, name, True)

    return put


def _attributes(entry: types_pb2.Entry, value: Any) -> None:
    for name, setting in value.items():
        _ATTRIBUTES[name](entry, setting)


def _expiry(entry: types_pb2.Entry, value: Any) -> None:
    entry.expires_at = instant(str(value)) if not hasattr(value, "timestamp") else int(value.timestamp())


def _ttl(entry: types_pb2.Entry, value: Any) -> None:
    """SPIRE's old `ttl` is the X.509-SVID's where that has none of its own."""
    if not entry.x509_svid_ttl:
        _plain("x509_svid_ttl", int)(entry, value)


_ATTRIBUTES = {name: _attribute(name) for name in ("disable_x509_svid_prefetch", "jwt_svid_include_jti")}
_SETTERS: dict[str, Callable[[types_pb2.Entry, Any], None]] = {
    "id": _plain("id", str),
    "entry_id": _plain("id", str),
    "spiffe_id": lambda entry, value: entry.spiffe_id.CopyFrom(_id(value)),
    "parent_id": lambda entry, value: entry.parent_id.CopyFrom(_id(value)),
    "selectors": _listed("selectors", _selectors),
    "x509_svid_ttl_seconds": _plain("x509_svid_ttl", int),
    "x509_svid_ttl": _plain("x509_svid_ttl", int),
    "ttl": _ttl,
    "jwt_svid_ttl_seconds": _plain("jwt_svid_ttl", int),
    "jwt_svid_ttl": _plain("jwt_svid_ttl", int),
    "federates_with": _listed("federates_with", trust_domain_names),
    "dns_names": _listed("dns_names", lambda names: [_text(name) for name in names]),
    "hint": _plain("hint", str),
    "admin": _plain("admin", bool),
    "downstream": _plain("downstream", bool),
    "store_svid": _plain("store_svid", bool),
    "expires_at": _expiry,
    "entry_expiry": _expiry,
    "additional_attributes": _attributes,
    **_ATTRIBUTES,
}


def _malformed(path: Path, detail: str) -> InvalidArgument:
    return InvalidArgument(f"`{path}` is malformed: {detail}", reason="FILE")
