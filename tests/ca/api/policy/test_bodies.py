"""Bodies and media types from strangers."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from ca.api.policy.bodies import Body, _yaml, located, with_places
from ca.api.policy.media import HTML, JSON, YAML, media_type, preferred
from ca.api.policy.refusals import Fault, Faulty, HttpRefusal, problem_document
from ca.api.policy.strict_json import read_json


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "P001"),
        (b"{", "P001"),
        (b"\xff", "P001"),
        (b'{"a": NaN}', "P001"),
        (b'{"a": -Infinity}', "P001"),
        (b'{"a": 1e999}', "P001"),
        (b"9" * 5000, "P001"),
        (b"9" * 30, "P001"),
        (b'{"a": 1, "a": 2}', "P004"),
        (b'["\\ud800"]', "P001"),
        (b'{"\\udfff": 1}', "P001"),
        (b'["\\u0000"]', "P001"),
        (b"[" * 100_000, "P002"),
        (b"[" * 30 + b"]" * 30, "P002"),
    ],
)
def test_what_is_no_json_is_refused(data: bytes, code: str) -> None:
    with pytest.raises(Faulty) as caught:
        read_json(data)
    assert caught.value.reason == "BODY_MALFORMED"
    assert [fault.code for fault in caught.value.faults] == [code]
    status, body, _ = problem_document(caught.value)
    assert (status, body["reason"], body["errors"][0]["code"]) == (400, "BODY_MALFORMED", code)


def test_json_and_yaml_are_the_same_values() -> None:
    assert read_json(b'{"a": ["\\ud83d\\ude00", 1, 1.5, true, null]}') == {"a": ["😀", 1, 1.5, True, None]}
    assert _yaml(b"a: [x, 1, 1.5, true, null, '1']") == {"a": ["x", 1, 1.5, True, None, "1"]}


@pytest.mark.parametrize(
    ("data", "code", "line"),
    [
        (b"a: &x 1\nb: *x", "P003", 1),
        (b"a: 1\na: 2", "P004", 2),
        (b"a: !!python/object:os.system x", "P003", 1),
        (b"a: 1\n---\nb: 2", "P001", None),
        (b"", "P001", None),
        (b"a: .1e999", "P001", None),
        (b"a: [", "P001", 2),
        (b"a: \xff", "P001", 1),
    ],
)
def test_what_is_no_yaml_is_refused(data: bytes, code: str, line: int | None) -> None:
    with pytest.raises(Faulty) as caught:
        _yaml(data)
    (fault,) = caught.value.faults
    assert (fault.code, fault.line or None) == (code, line)


async def test_faults_find_their_lines_in_yaml_and_json() -> None:
    yaml = Body(YAML, b"spec:\n  rules:\n    - to: []\n      x/y: 1\n", None)
    pointers = ["/spec/rules/0/to", "/spec/rules/0/x~1y", "/spec/rules/7", "/nothing/here"]
    faults = [Fault(code="X", detail="", pointer=pointer) for pointer in pointers]
    placed = with_places(yaml, faults)
    assert [(fault.line, fault.column) for fault in placed] == [(3, 11), (4, 12), (3, 5), (1, 1)]
    json = Body(JSON, b'{"changes": [\n {"object": {"spec": 1}}]}', None)
    (placed_one,) = with_places(json, [Fault(code="X", detail="", pointer="/changes/0/object/spec")])
    assert (placed_one.pointer, placed_one.line, placed_one.column) == ("/changes/0/object/spec", 2, 22)
    broken = Faulty("x", [Fault(code="X", detail="", pointer="/a")], reason="BODY_INVALID")
    assert (await located(Body(JSON, b"{", None), broken)).faults == broken.faults


def test_a_media_type_is_read_exactly() -> None:
    assert media_type("Application/JSON; Charset=UTF-8", (JSON, YAML)) == JSON
    assert media_type("application/yaml", (JSON, YAML), encoding="identity") == YAML
    for header, encoding in (("", ""), ("text/plain", ""), ("application/json;charset=latin1", ""), (JSON, "gzip")):
        with pytest.raises(HttpRefusal) as caught:
            media_type(header, (JSON,), encoding=encoding)
        status, body, headers = problem_document(caught.value)
        assert (status, body["title"], headers["Accept"]) == (415, "UnsupportedMediaType", JSON)


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("text/html", HTML),
        ("text/html;q=0.5, application/json;q=0.4", HTML),
        ("text/*;q=0.3, application/*;q=0.9", JSON),
        ("application/json;q=0, */*", HTML),
        ("image/png", None),
        ("application/json;q=0", None),
        ("application/json;q=x", None),
        ("application/json;q=nan", None),
        (",,;;", None),
    ],
)
def test_callers_get_what_they_accept(header: str | None, chosen: str | None) -> None:
    if chosen is not None:
        assert preferred(header, (JSON, HTML)) == chosen
        return
    with pytest.raises(HttpRefusal) as caught:
        preferred(header, (JSON, HTML))
    assert caught.value.status == 406


def test_a_model_says_where_it_is_wrong() -> None:
    from pydantic import ValidationError

    from ca.api.policy.bodies import invalid

    class Inner(BaseModel):
        number: int

    class Outer(BaseModel):
        items: list[Inner]

    value: Any = {"items": [{"number": 1}, {"number": "x"}]}
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(value)
    (fault,) = invalid(caught.value).faults
    assert (fault.code, fault.pointer) == ("INT_PARSING", "/items/1/number")
