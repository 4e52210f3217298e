"""Templates that decide: what Go makes of them, and a clear word where it would do more."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.identity.template_blocks import If, Node, fields_in, parse_blocks
from ca.identity.template_conditions import CONDITIONS, Value
from ca.identity.template_grammar import MAX_TEMPLATE_CHARACTERS, Constant, Dialect, Expression, Field, Text

DIALECT = Dialect(frozenset({"A", "B", "None", "L.*", "Yes", "No"}), frozenset({"Yes", "No"}), CONDITIONS, decides=True)
VALUES: dict[str, Value] = {"A": "a", "B": "b", "L.x": "lx", "Yes": True, "No": False}


def evaluated(expression: Expression) -> Value:
    if isinstance(expression, Constant):
        return expression.value
    if isinstance(expression, Field):
        return VALUES.get(expression.name, "")
    return expression.function.apply(*(one if isinstance(one, int) else evaluated(one) for one in expression.arguments))


def rendered(nodes: Sequence[Node]) -> str:
    made = []
    for node in nodes:
        if isinstance(node, Text):
            made.append(node.value)
        elif isinstance(node, If):
            made.append(rendered(node.then if evaluated(node.condition) else node.other))
        else:
            made.append(str(found).lower() if isinstance(found := evaluated(node), bool) else found)
    return "".join(made)


# What Go 1.26's text/template gives for the same, with a struct that has these values.
AS_GO: list[tuple[str, str]] = [
    ("{{if .A}}x{{end}}", "x"),
    ("{{if .None}}x{{end}}", ""),
    ("{{ if .None }}x{{ else }}y{{ end }}", "y"),
    ('{{if eq .A "b"}}1{{else if eq .A "a"}}2{{else}}3{{end}}', "2"),
    ('{{if eq .A "b"}}1{{else if eq .A "c"}}2{{else}}3{{end}}', "3"),
    ('{{if eq .A "c" "b" "a"}}x{{end}}', "x"),
    ('{{if and .A (eq .B "b") .Yes}}x{{end}}', "x"),
    ("{{if and .A .No}}x{{else}}y{{end}}", "y"),
    ("{{if or .None .No .A}}x{{end}}", "x"),
    ("{{if not .None}}x{{end}}{{if not .A}}y{{end}}", "x"),
    ("{{or .None .B}}{{and .A .B}}", "bb"),
    ("{{if .Yes}}x{{end}}{{if .No}}y{{end}}{{.Yes}}{{.No}}", "xtruefalse"),
    ("{{if eq .Yes true}}x{{end}}{{if ne .A .B}}y{{end}}", "xy"),
    ('{{printf "%s-%s%%" .A .B}}{{.B | printf "%v%v" "x"}}', "a-b%xb"),
    ("{{print .A .B}}", "ab"),
    ("{{if .A}}{{if .None}}1{{else}}2{{end}}{{end}}3", "23"),
    ('{{if index .L "x"}}{{index .L "x"}}{{end}}{{if index .L "y"}}z{{end}}', "lx"),
    ("x  {{- if .A -}}  y  {{- end -}}  z", "xyz"),
    ("x {{- /* a comment -}} */ -}} y{{/* another */}}z", "xyz"),
    ("a {{ .A }} b {{- .B }} c", "a a bb c"),
    ("{{if .A}} {{else}}{{end}}", " "),
]


@pytest.mark.parametrize(("template", "expected"), AS_GO)
def test_it_means_what_it_means_in_go(template: str, expected: str) -> None:
    assert rendered(parse_blocks(template, DIALECT)) == expected


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("{{range .L}}x{{end}}", "nothing is repeated"),
        ("{{with .A}}x{{end}}", "use `if`"),
        ('{{define "x"}}{{end}}', "no parts with names"),
        ("{{$x := .A}}", "no variables"),
        ("{{if .A}}x", "`{{ end }}` is missing"),
        ("{{if .A}}x{{else}}y", "`{{ end }}` must follow"),
        ("{{if .A}}x{{else}}y{{else}}z{{end}}", "`{{ end }}` must follow"),
        ("x{{end}}", "no `if`"),
        ("{{else}}", "no `if`"),
        ("{{if}}x{{end}}", "missing"),
        ("{{if .A}}x{{end .A}}", "not expected"),
        ("{{if .C}}x{{end}}", "no field `.C`"),
        ("{{eq .A}}", "takes a value, a value"),
        ("{{eq .A .Yes}}", "of one type"),
        ("{{lower .Yes}}", "takes a text"),
        ('{{printf "%d" .A}}', "no `%d`"),
        ('{{printf "%s%s" .A}}', "takes 2"),
        ("{{printf .A .B}}", "stands in the template"),
        ("{{and 1 2}}", "takes a value"),
        ("{{.A-}}", "not known here"),
        ("{{if .A}}" * 17 + "x" + "{{end}}" * 17, "deeper than 16"),
        ("x" * (MAX_TEMPLATE_CHARACTERS + 1), "longer than"),
    ],
)
def test_what_it_does_not_know_it_says(template: str, word: str) -> None:
    with pytest.raises(ValueError, match=r"character|longer") as refused:
        parse_blocks(template, DIALECT)
    assert word in str(refused.value)


def test_fields_that_only_decide_are_fields() -> None:
    found = fields_in(parse_blocks('{{if .A}}{{.B}}{{else if .Yes}}{{index .L "x"}}{{end}}', DIALECT))
    assert found == {"A", "B", "Yes", "L.x"}


@given(
    st.lists(
        st.sampled_from(["{{", "}}", "{{-", " -}}", "if ", "else", "end", ".A", ".Yes", " ", "x", '"y"', "(", ")"])
    )
)
def test_whatever_is_written_is_read_or_refused(parts: list[str]) -> None:
    text = "".join(parts)
    try:
        nodes = parse_blocks(text, DIALECT)
    except ValueError:
        return
    rendered(nodes)
