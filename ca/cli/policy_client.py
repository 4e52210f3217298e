"""The REST face of policy, as `caadmin` calls it: JSON out, JSON back, refusals as the error family."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from ca.cli.connection import Remote, server_socket
from ca.errors import STATUS, BurgeeError, Code, Unavailable
from policy.book_values import AUTHORIZATION, KINDS, PEER, REQUEST, WORKLOAD

if TYPE_CHECKING:
    from http.client import HTTPConnection

PREFIX = "/v1/policy"
PAGE = 500
ANSWER_SECONDS = 120.0
"""For one answer: of ten thousand policies the difference takes a while."""
TRIES = 10
LONGEST_PAUSE_SECONDS = 10.0
MAX_ANSWER_BYTES = 512 << 20
PATHS = {
    AUTHORIZATION: "authorization-policies",
    REQUEST: "request-authentications",
    PEER: "peer-authentications",
    WORKLOAD: "workloads",
}
SERVER_ANSWER = "SERVER_ANSWER"
assert set(PATHS) == set(KINDS)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    data: bytes

    @property
    def json(self) -> dict[str, Any]:
        """Raises Unavailable where it is no JSON object."""
        try:
            found = json.loads(self.data)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Unavailable(
                "what answers is no server of policies", reason=SERVER_ANSWER, hint="is it of this program's version?"
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that the server found wrong; `pointer` leads to it in what was sent."""

    code: str
    detail: str
    pointer: str = ""
    parameter: str = ""
    hint: str = ""

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Fault:
        return cls(**{name: str(found.get(name) or "") for name in cls.__slots__})

    def at(self, place: str) -> str:
        """In one line."""
        where = place or self.parameter or self.pointer
        return f"{where + ': ' if where else ''}{self.code} {self.detail}{f' ({self.hint})' if self.hint else ''}"


class ServerRefusal(BurgeeError):
    """What a server refused, with what it found wrong. `lines` are shown beside."""

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after: str | None = None) -> None:
        detail = str(problem.get("detail") or f"the server answered {status}")
        super().__init__(
            detail,
            reason=str(problem.get("reason") or SERVER_ANSWER),
            hint=str(problem.get("hint") or ("" if problem else "is it a server that knows of policies?")),
            retry_after_seconds=float(retry_after) if retry_after and retry_after.isdecimal() else None,
        )
        self.code = _code(status, str(problem.get("title")))
        self.status = status
        self.faults = tuple(Fault.of(one) for one in problem.get("errors") or ())
        self.violations: list[dict[str, Any]] = list(problem.get("violations") or ())
        if self.violations:
            self.detail = "an invariant would not hold"
        elif self.faults and self.reason == "POLICY_INVALID":
            self.detail = f"{len(self.faults)} {'problem' if len(self.faults) == 1 else 'problems'} in what was sent"
        self.lines = tuple(self._lines({}))

    def located(self, places: Mapping[str, str]) -> ServerRefusal:
        """With places in files: those of the longest pointers that lead to what is wrong."""
        self.lines = tuple(self._lines(places))
        return self

    def _lines(self, places: Mapping[str, str]) -> Iterator[str]:
        for fault in self.faults:
            yield fault.at(_place(fault.pointer, places))
        for one in self.violations:
            yield f"{one.get('invariant')}: {one.get('message')}"


def _place(pointer: str, places: Mapping[str, str]) -> str:
    while pointer and pointer not in places:
        pointer = pointer.rpartition("/")[0]
    return places.get(pointer, "")


def _code(status: int, title: str) -> Code:
    try:
        return Code(title)
    except ValueError:
        if status == 428:
            return Code.FAILED_PRECONDITION
        by_status = {http: code for code, (_, http) in reversed(STATUS.items())}
        return by_status.get(status, Code.INVALID_ARGUMENT if 400 <= status < 500 else Code.INTERNAL)


@dataclass(slots=True)
class Api:
    """One server. Connections are kept from call to call."""

    where: Path | Remote
    seconds: float = ANSWER_SECONDS
    _connection: HTTPConnection | None = field(default=None)

    def call(
        self,
        verb: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One call below the prefix; who asks too fast waits as long as the server says. Raises ServerRefusal,
        Unavailable, Unauthenticated."""
        sent = {"Accept": "application/json", **(headers or {})}
        data = None
        if body is not None:
            sent["Content-Type"] = "application/json"
            data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        if verb not in ("GET", "HEAD"):
            sent.setdefault("Idempotency-Key", secrets.token_hex(16))  # so that it may be sent a second time
        asked = {name: _text(value) for name, value in (query or {}).items() if value is not None}
        target = PREFIX + path + (f"?{urlencode(asked)}" if asked else "")
        for last in range(TRIES - 1, -1, -1):
            answer = self._twice(verb, target, data, sent)
            if answer.status < 400:
                return answer
            refusal = ServerRefusal(answer.status, _problem(answer), answer.headers.get("retry-after"))
            pause = refusal.retry_after_seconds
            if answer.status != 429 or not last or pause is None or pause > LONGEST_PAUSE_SECONDS:
                raise refusal
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """The document there."""
        return self.call("GET", path, query=query).json

    def pages(self, path: str, *, most: int | None = None, **query: Any) -> Iterator[dict[str, Any]]:
        """The items of all pages, or `most` of them."""
        cursor, left = None, most
        while left is None or left > 0:
            limit = PAGE if left is None else min(PAGE, left)
            page = self.get(path, limit=limit, cursor=cursor, **query)
            yield from page["items"]
            cursor = page.get("next")
            if not cursor:
                return
            left = None if left is None else left - len(page["items"])

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _twice(self, verb: str, target: str, data: bytes | None, headers: Mapping[str, str]) -> Answer:
        """A kept connection may have been closed meanwhile: then once more on a new one."""
        import http.client  # which, with TLS, takes longer than most of the rest of a start
        import ssl

        from ca.cli.policy_transport import broken, connect

        try:
            if self._connection is not None:
                try:
                    return self._once(verb, target, data, headers)
                except (ConnectionError, http.client.BadStatusLine, ssl.SSLError):
                    self.close()
            self._connection = connect(self.where, self.seconds)
            return self._once(verb, target, data, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise broken(self.where, error) from error

    def _once(self, verb: str, target: str, data: bytes | None, headers: Mapping[str, str]) -> Answer:
        assert self._connection is not None
        self._connection.request(verb, target, body=data, headers=dict(headers))
        response = self._connection.getresponse()
        content = response.read(MAX_ANSWER_BYTES)
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, content)


@contextmanager
def policy_api(socket: Path | None, seconds: float = ANSWER_SECONDS) -> Iterator[Api]:
    """The local server, or the remote one that was chosen; `seconds` are for one answer."""
    api = Api(server_socket(socket), seconds)
    try:
        yield api
    finally:
        api.close()


def object_path(kind: str, namespace: str, name: str) -> str:
    """Where an object is."""
    return f"/{PATHS[kind]}/{quote(namespace, safe='')}/{quote(name, safe='')}"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _problem(answer: Answer) -> Mapping[str, Any]:
    try:
        return answer.json
    except Unavailable:
        return {}
