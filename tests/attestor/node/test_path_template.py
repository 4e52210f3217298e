"""Agent path templates: what they can say, what is refused when the configuration is read, and that none can fail."""

from __future__ import annotations

import hashlib
import re
import time
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from attestor.node.path_template import PathTemplate
from ca.errors import Denied
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.identity.template_functions import FUNCTIONS
from ca.runtime.notes import collecting
from tests.docs.reason_codes import ROOT

FIELDS = frozenset({"PluginName", "TrustDomain", "Fingerprint", "Subject.CommonName", "SAN.*", "SVIDPathTrimmed"})
PATHS = frozenset({"SVIDPathTrimmed"})
VALUES = {
    "PluginName": "x509pop",
    "TrustDomain": "example.org",
    "Fingerprint": "0a1b",
    "Subject.CommonName": " Host-1.Example.ORG",
    "SAN.zone": "eu",
    "SVIDPathTrimmed": "rack/7",
}
PAGE = ROOT / "docs/reference/agent-path-templates.md"


def parse(text: str, plugin: str | None = "x509pop") -> PathTemplate:
    return PathTemplate.parse(text, FIELDS, paths=PATHS, plugin=plugin)


def action(pipeline: str) -> str:
    """What one action makes of VALUES."""
    path = parse(f"/{{{{ .PluginName }}}}/{{{{ .Fingerprint }}}}/x{{{{ {pipeline} }}}}").render(VALUES)
    return path.removeprefix("/spire/agent/x509pop/0a1b/x")


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("/{{ .PluginName }}/{{ .Fingerprint }}", "x509pop/0a1b"),
        ("/{{.PluginName}}/{{.Fingerprint}}", "x509pop/0a1b"),
        ("/x509pop/{{ .Fingerprint }}", "x509pop/0a1b"),
        ("/{{ .PluginName }}/{{ .TrustDomain }}/{{ .SAN.zone }}-{{ .Fingerprint }}", "x509pop/example.org/eu-0a1b"),
        ("/{{ .PluginName }}/{{ .SVIDPathTrimmed }}", "x509pop/rack/7"),
        ("/{{ .PluginName }}/{{ .SVIDPathTrimmed | trimPrefix `rack/` }}", "x509pop/7"),
        ("/{{ .PluginName }}/{{ .Subject.CommonName | trim | lower }}", "x509pop/host-1.example.org"),
        ("/{{ .PluginName }}/{{ lower (trim .Subject.CommonName) }}", "x509pop/host-1.example.org"),
    ],
)
def test_what_spires_templates_say(template: str, path: str) -> None:
    assert parse(template).render(VALUES) == f"/spire/agent/{path}"


@pytest.mark.parametrize(
    ("pipeline", "found"),
    [
        ('default "none" ""', "none"),
        ('default "none" .SAN.zone', "eu"),
        ("lower `A-\u00dc-\u212a`|sha256sum", hashlib.sha256("a-\u00dc-\u212a".encode()).hexdigest()),
        ('nospace "a b\tc"', "abc"),
        ('replace "." "-" "a.b.c"', "a-b-c"),
        ('replace "" "-" "abc"', "abc"),
        ("sha1sum .SAN.zone", hashlib.sha1(b"eu").hexdigest()),
        ("sha256sum .SAN.zone", hashlib.sha256(b"eu").hexdigest()),
        ('substr 1 3 "abcde"', "bc"),
        ('substr -1 2 "abcde"', "ab"),
        ('substr 2 -1 "abcde"', "cde"),
        ('trim "  a "', "a"),
        ('trimAll "-." "-.a.-"', "a"),
        ('"a.example.org" | trimSuffix ".example.org"', "a"),
        ('trimPrefix "a" "ab"', "b"),
        ('trunc 3 "abcde"', "abc"),
        ('trunc -3 "abcde"', "cde"),
        ('trunc -9 "abcde"', "abcde"),
        ('trunc 9 "abcde"', "abcde"),
        ('upper "ab"', "AB"),
    ],
)
def test_functions_do_as_sprigs(pipeline: str, found: str) -> None:
    assert action(pipeline) == found


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("", "must begin with a slash"),
        ("{{ .PluginName }}/{{ .Fingerprint }}", "must begin with a slash"),
        ("/{{ .PluginName }}/{{ .Fingerprint }}/", "trailing slash"),
        ("/{{ .PluginName }}//{{ .Fingerprint }}", "empty segments"),
        ("/{{ .PluginName }}/../{{ .Fingerprint }}", "dot segments"),
        ("/{{ .PluginName }}/a b/{{ .Fingerprint }}", "character 21 of the template: ` ` cannot be"),
        ("/{{ .PluginName }}/{{ .Fingerprint }}}}", "character 38 of the template: `}` cannot be"),
        ("/{{ .PluginName }}/all", "no field that tells one node from another"),
        ("/{{ .PluginName }}/{{ .TrustDomain }}", "no field that tells one node from another"),
        ("/cn/{{ .Fingerprint }}", "must begin with `/{{ .PluginName }}/`"),
        ("/{{ .Fingerprint }}/{{ .PluginName }}", "must begin with `/{{ .PluginName }}/`"),
        ("/{{ .PluginName }}{{ .Fingerprint }}", "must begin with `/{{ .PluginName }}/`"),
        (
            "/{{ .PluginName }}/{{ .Fingerprnt }}",
            "character 23 of the template: there is no field `.Fingerprnt` (did you",
        ),
        ("/{{ .PluginName }}/{{ .SAN }}", "there is no field `.SAN`"),
        ("/{{ .PluginName }}/{{ .SAN.a.b }}", "there is no field `.SAN.a.b`"),
        ("/{{ .PluginName }}/{{ .Fingerprint | lowr }}", "there is no function `lowr` (did you mean `lower`?)"),
        ("/{{ .PluginName }}/{{ if .Fingerprint }}x{{ end }}", "no function `if` (nothing is decided"),
        ("/{{ .PluginName }}/{{ range .Fingerprint }}", "no function `range` (nothing is repeated"),
        ("/{{ .PluginName }}/{{ index .Fingerprint 0 }}", "no function `index` (name the field"),
        ("/{{ .PluginName }}/{{ $x := .Fingerprint }}", "there are no variables"),
        ("/{{ .PluginName }}/{{ . }}", "a field has a name"),
        ("/{{ .PluginName }}/{{- .Fingerprint }}", "trim markers and comments"),
        ("/{{ .PluginName }}/{{ .Fingerprint ", "`}}` is missing"),
        ("/{{ .PluginName }}/{{ .Fingerprint | }}", "a function must follow `|`"),
        ("/{{ .PluginName }}/{{ .Fingerprint | .SAN.a }}", "a function must follow `|`"),
        ("/{{ .PluginName }}/{{ .Fingerprint .SAN.a }}", "`.SAN.a` is not expected here"),
        ("/{{ .PluginName }}/{{ (.Fingerprint }}", "`)` is missing"),
        ("/{{ .PluginName }}/{{ .Fingerprint) }}", "`)` is not expected here"),
        ("/{{ .PluginName }}/{{ }}", "a field or a text is missing"),
        ("/{{ .PluginName }}/{{ 5 }}", "`5` is not expected here"),
        ('/{{ .PluginName }}/{{ trunc "5" .Fingerprint }}', "`trunc` takes a number, a text"),
        ("/{{ .PluginName }}/{{ trunc 5 }}", "`trunc` takes a number, a text"),
        ("/{{ .PluginName }}/{{ lower .Fingerprint 5 }}", "`lower` takes a text"),
        ("/{{ .PluginName }}/{{ trunc 99999 .Fingerprint }}", "is not expected here"),
        ('/{{ .PluginName }}/{{ trim "\\n" }}', "has an escape other than"),
        ("/{{ .PluginName }}/{{ .Fingerprint" + " | trim" * 17 + " }}", "at most 16 function calls"),
        ("/{{ .PluginName }}/{{ " + "(" * 5 + ".Fingerprint" + ")" * 5 + " }}", "nested deeper than 4"),
        ("/{{ .PluginName }}/{{ .Fingerprint }}" + "x" * 1024, "longer than 1024"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_read(template: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        parse(template)


@pytest.mark.parametrize(
    "values",
    [
        {"Fingerprint": ""},
        {"Fingerprint": "a/b"},
        {"Fingerprint": "/"},
        {"Fingerprint": ".."},
        {"Fingerprint": "."},
        {"Fingerprint": "a b"},
        {"Fingerprint": "ä"},
        {"Fingerprint": "a\n"},
        {"Fingerprint": "%2e%2e"},
        {"Fingerprint": "\ud800"},
        {"Fingerprint": "{{ .PluginName }}"},
        {"Fingerprint": "x" * 2100},
        {"PluginName": "other/.."},
    ],
)
def test_evidence_that_makes_no_path_is_denied_and_administrators_learn_why(values: dict[str, str]) -> None:
    with collecting() as notes, pytest.raises(Denied) as caught:
        parse("/{{ .PluginName }}/{{ .Fingerprint }}").render(VALUES | values)
    assert caught.value.reason == "AGENT_PATH"
    assert [one.what for one in notes] == ["agent path template"]
    assert not any(value in caught.value.detail for value in values.values() if len(value) > 3)


def test_a_value_that_the_evidence_lacks_is_denied() -> None:
    for pipeline in (".SAN.rack", 'default "x" .SAN.rack'):
        with pytest.raises(Denied):
            action(pipeline)


def test_a_slash_comes_in_only_where_paths_are_expected() -> None:
    """Who chose a value must not choose how many segments it fills: `a/b` could be another node's name."""
    for pipeline in ('.Fingerprint | replace "0" "/"', '"a/b"'):
        with pytest.raises(Denied):
            action(pipeline)
    for value in ("/a", "a/", "a//b", "a/../b", "..", "/"):
        with pytest.raises(Denied):
            parse("/{{ .PluginName }}/{{ .SVIDPathTrimmed }}").render(VALUES | {"SVIDPathTrimmed": value})


def test_what_functions_make_larger_is_bounded() -> None:
    """Sixteen replacements that each double the value would be 65536 times as long."""
    grow = " | replace `a` `aaaaaaaaaaaaaaaaaaaa`" * 15
    started = time.process_time()
    with pytest.raises(Denied):
        parse("/{{ .PluginName }}/{{ .Fingerprint" + grow + " }}").render(VALUES | {"Fingerprint": "a" * 2000})
    assert time.process_time() - started < 5


MARKS = [
    "/",
    "{{",
    "}}",
    " ",
    "|",
    "(",
    ")",
    ".PluginName",
    ".Fingerprint",
    ".SAN.x",
    ".",
    "5",
    "-1",
    '"a"',
    "`b`",
    '"',
]
PIECES = st.sampled_from([*MARKS, *FUNCTIONS])


@given(text=st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=25).map("".join)))
@example(text="{{" * 500)
@example(text="{{(((((((")
@example(text="/{{ .PluginName }}/{{ .Fingerprint | replace `")
def test_any_text_is_a_template_or_a_value_error(text: str) -> None:
    for template in (text, "/{{ .PluginName }}/{{ .Fingerprint }}" + text):
        with suppress(ValueError):
            assert parse(template, None).text == template


@st.composite
def pipelines(draw: st.DrawFn) -> str:
    made = draw(st.sampled_from([".Fingerprint", ".Subject.CommonName", ".SVIDPathTrimmed", '"x.y"', "(.SAN.zone)"]))
    for name in draw(st.lists(st.sampled_from(sorted(FUNCTIONS)), max_size=6)):
        first = FUNCTIONS[name].parameters[:-1]
        given_ = [str(draw(st.integers(-99, 99))) if kind is int else draw(st.sampled_from(WORDS)) for kind in first]
        made += f" | {' '.join([name, *given_])}"
    return made


WORDS = ['"a"', '"-"', "`.`", '"/"', '""', "`ab`", ".Fingerprint"]


@given(pipeline=pipelines(), value=st.text(max_size=40), path=st.text(alphabet="ab./-", max_size=20))
def test_every_template_makes_of_any_evidence_a_path_or_denies(pipeline: str, value: str, path: str) -> None:
    values = dict.fromkeys(FIELDS, value) | {"SAN.zone": value, "PluginName": "p", "SVIDPathTrimmed": path}
    template = parse("/{{ .PluginName }}/{{ .Fingerprint }}-{{ " + pipeline + " }}", None)
    try:
        made = template.render(values)
    except Denied:
        return
    assert made.startswith("/spire/agent/p/")
    assert SpiffeId.of(TrustDomain("example.org"), made).path == made
    assert template.render(values) == made


def test_the_page_names_every_function_and_its_examples_hold() -> None:
    rows = re.findall(r"^\| `(\w+) ([^|`]*)` \| `([^`]+)` → `([^`]*)` \|", PAGE.read_text().replace("\\|", "¦"), re.M)
    assert {name for name, *_ in rows} == set(FUNCTIONS)
    for _, _, pipeline, found in rows:
        assert action(pipeline.replace("¦", "|")) == found
