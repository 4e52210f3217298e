"""The lint: every rule on the bytes to be signed, or on what varies in them when the rest has passed before.

A rule's finding is a function of the parts it reads and of what is expected. For a template whose constant bytes
have passed, only the rules that read something varying are asked again: the others would say the same.
"""

from __future__ import annotations

from ca.errors import Internal, InvalidArgument
from ca.issuing import der
from ca.issuing.extensions import URI
from ca.issuing.parts import VARYING, Parts, parse_tbs
from ca.issuing.rules import RULES, Expected, Rule
from ca.issuing.template import Template

# Of what is expected, kind and issuer are a template's own and the rest is the certificate's.
_VARYING_EXPECTED = frozenset({"serial", "subject", "spiffe_id", "dns_names", "lifetime", "key", "key_identifier"})

VARYING_RULES = tuple(rule for rule in RULES if rule.reads & VARYING or rule.expects & _VARYING_EXPECTED)
CONSTANT_RULES = tuple(rule for rule in RULES if rule not in VARYING_RULES)

_SERIAL_BOUND = 1 << 159
"""Greater ones have more than 20 octets."""

_VARYING_CHECKS = tuple((rule, rule.check) for rule in VARYING_RULES)


def lint(tbs: bytes, want: Expected, template: Template) -> None:
    """Raises Internal (reason LINT) with the rule and its section unless `tbs` is what it ought to be.

    `template` must be the one for the issuer and kind in `want`; the first certificate of a template is linted in
    full, and the template remembers that it passed.
    """
    if _like_one_that_passed(tbs, want, template):
        return
    try:
        names = template.names_in(tbs, want)
        parts = None if names is None else template.parts(want, names)
        if names is None or parts is None:
            _lint_all(tbs, want, template)
            return
        for rule, check in _VARYING_CHECKS:
            problem = check(parts, want)
            if problem:
                raise _failed(rule, problem)
    except InvalidArgument as error:
        raise Internal(f"certificate is not well-formed: {error.detail}", reason="LINT") from error
    if _is_common(want):
        template.remember(tbs, want, names)


def _like_one_that_passed(tbs: bytes, want: Expected, template: Template) -> bool:
    """True for a leaf with one URI and no DNS name that differs from one that passed in nothing but serial number,
    key, key identifier and URI, each of which is the expected one and of the same length.

    All of its lengths and tags are those that were read then, and what the rules ask of the rest was answered. Left
    are the serial number's bounds and the identity's. Where one of them does not hold, the rules themselves are asked,
    and say why.
    """
    identity = want.spiffe_id
    return (
        _is_common(want)
        and 0 < want.serial < _SERIAL_BOUND
        and bool(identity.path)
        and identity.trust_domain.name == want.issuer.trust_domain.name
        and template.expects(tbs, want, der.tlv(der.SEQUENCE, der.tlv(URI, str(identity).encode())))
    )


def _is_common(want: Expected) -> bool:
    return want.kind == "leaf" and not want.dns_names


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
