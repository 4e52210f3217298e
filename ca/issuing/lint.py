"""The lint: every rule on the bytes to be signed, or on what varies in them when the rest has passed before.

A rule's finding is a function of the parts it reads and of what is expected. For a template whose constant bytes
have passed, only the rules that read something varying are asked again: the others would say the same.
"""

from __future__ import annotations

from ca.errors import Internal, InvalidArgument
from ca.issuing.parts import VARYING, Parts, parse_tbs
from ca.issuing.rules import RULES, Expected, Rule
from ca.issuing.template import Template

# Of what is expected, kind and issuer are a template's own and the rest is the certificate's.
_VARYING_EXPECTED = frozenset({"serial", "subject", "spiffe_id", "dns_names", "lifetime", "key", "key_identifier"})

VARYING_RULES = tuple(rule for rule in RULES if rule.reads & VARYING or rule.expects & _VARYING_EXPECTED)
CONSTANT_RULES = tuple(rule for rule in RULES if rule not in VARYING_RULES)

_VARYING_CHECKS = tuple((rule, rule.check) for rule in VARYING_RULES)


def lint(tbs: bytes, want: Expected, template: Template) -> None:
    """Raises Internal (reason LINT) with the rule and its section unless `tbs` is what it ought to be.

    `template` must be the one for the issuer and kind in `want`; the first certificate of a template is linted in
    full, and the template remembers that it passed.
    """
    try:
        parts = template.cut(tbs, want)
        if parts is None:
            _lint_all(tbs, want, template)
            return
        for rule, check in _VARYING_CHECKS:
            problem = check(parts, want)
            if problem:
                raise _failed(rule, problem)
    except InvalidArgument as error:
        raise Internal(f"certificate is not well-formed: {error.detail}", reason="LINT") from error


def findings(tbs: bytes, want: Expected) -> list[tuple[Rule, str]]:
    """All that the full lint has to say, by rule. Raises InvalidArgument (reason DER) where bytes cannot be read."""
    return _findings(parse_tbs(tbs), want)


def _findings(parts: Parts, want: Expected) -> list[tuple[Rule, str]]:
    return [(rule, problem) for rule in RULES if (problem := rule.check(parts, want))]


def _lint_all(tbs: bytes, want: Expected, template: Template) -> None:
    parts = parse_tbs(tbs)
    for rule, problem in _findings(parts, want):
        raise _failed(rule, problem)
    template.linted = parts


def _failed(rule: Rule, problem: str) -> Internal:
    return Internal(f"certificate fails the lint rule `{rule.name}` ({rule.citation}): {problem}", reason="LINT")
