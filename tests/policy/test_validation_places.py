"""Every row of the validation table points at what is wrong: a JSON pointer, and the line and column of just that."""

from __future__ import annotations

import json

import pytest
import yaml

from policy.parse import parse_object
from policy.problems import CODES, Refused
from tests.policy.test_validation import REFUSED, refusal

SOURCE, OPERATION = "/spec/rules/0/from/0/source", "/spec/rules/0/to/0/operation"
WHEN, JWT = "/spec/rules/0/when/0", "/spec/jwtRules/0"
PLACES: dict[str, set[str]] = {
    "P005": {"", "/spec", "/spec/rules", f"{OPERATION}/methods", f"{OPERATION}/methods/0", f"{OPERATION}/ports/0"},
    "P006": {"/spec/<<", "/spec/rule", f"{SOURCE}/principal"},
    "P007": {""},
    "P008": {"/metadata", "/metadata/name", "/metadata/namespace"},
    "P009": {""},
    "P101": {"/spec/action"},
    "P102": {"/spec", "/spec/rules"},
    "P103": {"/spec/action", "/spec/provider"},
    "P104": {"/spec/provider"},
    "P105": {"/spec/targetRef", "/spec/targetRefs"},
    "P106": {"/spec/selector/matchLabels"},
    "P107": {"/spec/targetRef"},
    "P108": {"/spec/rules", f"{SOURCE}/serviceAccounts", f"{WHEN}/notValues", "/spec/targetRefs"},
    "P109": {"/spec/rules/0", "/spec/rules/0/from/0", "/spec/rules/0/to/0"},
    "P110": {"/spec/rules/0/from", "/spec/rules/0/to"},
    "P111": {"/spec/rules/0/from/0", SOURCE},
    "P112": {"/spec/rules/0/to/0", OPERATION},
    "P113": {
        *(f"{SOURCE}/{name}/0" for name in ("principals", "requestPrincipals", "namespaces", "notPrincipals")),
        *(f"{SOURCE}/{name}/0" for name in ("ipBlocks", "notRemoteIpBlocks", "serviceAccounts", "trustDomains")),
        *(f"{OPERATION}/{name}/0" for name in ("methods", "paths", "hosts", "ports", "notHosts", "notMethods")),
        f"{WHEN}/values/0",
    },
    "P114": {f"{SOURCE}/ipBlocks/0", f"{WHEN}/notValues/0", f"{WHEN}/values/0"},
    "P115": {f"{OPERATION}/ports/0"},
    "P116": {f"{OPERATION}/notPaths/0", f"{OPERATION}/paths/0"},
    "P117": {f"{OPERATION}/notPaths/0"},
    "P118": {SOURCE},
    "P119": {f"{SOURCE}/serviceAccounts/0"},
    "P120": {
        *(f"{SOURCE}/{name}" for name in ("notNamespaces", "principals", "requestPrincipals", "serviceAccounts")),
        *(f"{SOURCE}/trustDomains", f"{WHEN}/key"),
    },
    "P121": {WHEN},
    **{code: {f"{WHEN}/key"} for code in ("P122", "P123", "P124", "P126", "P127")},
    "P125": {WHEN},
    "P131": {"/spec", "/spec/burgee", "/spec/burgee/spiffeIds/0"},
    "P132": {"/spec/rules/0/burgee/condition"},
    "P201": {JWT, f"{JWT}/issuer"},
    "P202": {f"{JWT}/audiences/0"},
    "P203": {f"{JWT}/jwksUri"},
    "P204": {f"{JWT}/jwksUri"},
    "P205": {f"{JWT}/jwks"},
    "P206": {f"{JWT}/fromCookies/0", f"{JWT}/fromHeaders/0", f"{JWT}/fromParams/0"},
    "P207": {f"{JWT}/outputClaimToHeaders/0"},
    "P208": {f"{JWT}/timeout"},
    "P301": {"/spec/mtls/mode"},
    "P302": {"/spec/portLevelMtls"},
    "P303": {f"/spec/portLevelMtls/{port}" for port in ("0", "65536", "http")},
    "P304": {"/spec/mtls/mode"},
}
"""Codes below are of texts that are no objects yet."""


def at(text: str, pointer: str) -> tuple[int, int]:
    """Where in a text a pointer leads, as another reader of YAML says: from 1."""
    *_, node = yaml.compose_all(text, Loader=yaml.SafeLoader)
    for step in pointer.split("/")[1:]:
        if isinstance(node, yaml.MappingNode):
            node = {key.value: value for key, value in node.value}[step]
        else:
            node = node.value[int(step)]
    return node.start_mark.line + 1, node.start_mark.column + 1


def test_every_row_has_its_places() -> None:
    assert PLACES.keys() == {code for code in CODES if code >= "P005"}


@pytest.mark.parametrize("code", PLACES)
def test_a_row_points_at_what_is_wrong(code: str) -> None:
    found = set()
    for text in REFUSED[code]:
        assert isinstance(text, str)
        for problem in refusal(text).problems:
            if problem.code == code:
                found.add(problem.pointer)
                if not text.startswith("?"):  # a key that is none has a place, and no pointer
                    assert (problem.origin.line, problem.origin.column) == at(text, problem.pointer), text
    assert found == PLACES[code]


@pytest.mark.parametrize("code", sorted(PLACES.keys() - {"P005", "P009"}))
def test_an_object_of_a_request_is_refused_at_the_same_pointer(code: str) -> None:
    for text in REFUSED[code]:
        if "<<" in str(text):
            continue  # other readers merge
        try:
            whole = json.loads(json.dumps(yaml.safe_load(text)))
        except (yaml.YAMLError, TypeError):
            continue  # what YAML makes of it no JSON has
        with pytest.raises(Refused) as caught:
            parse_object(whole, "request")
        wanted = {(p.code, p.pointer) for p in refusal(text).problems}
        assert {(p.code, p.pointer) for p in caught.value.problems} == wanted
