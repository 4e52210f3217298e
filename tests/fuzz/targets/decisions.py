"""What is sent for a decision: checks, access logs, AuthZEN's documents, tokens; and the lines of the decision log."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache

from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage
from google.protobuf.message import DecodeError

from policy import authzen
from policy.access_log import Proxy, http_record, tcp_record
from policy.authentication import JwtRule
from policy.authzen_pages import read_page
from policy.decision_record import DecisionRecord
from policy.ext_authz import Bound, Said, decide
from policy.ext_authz_wire import answer, is_decision_id, parsed
from policy.jwks import NotVerified
from policy.model import Action, Attribute, Clause, Match, MatchKind, Mesh, Policy, Rule, Target
from policy.snapshot import compile_set
from policy.tokens import Vouchers, claims_of
from tests.fuzz import harness
from tests.fuzz.harness import text_of

NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
ID = "spiffe://td/t"
KEYS = '{"keys":[{"kty":"EC","crv":"P-256","kid":"k","x":"AA","y":"AA"}]}'
RULE = JwtRule(issuer="https://i", from_headers=(("x-token", "t "),), from_params=("tok",), from_cookies=("sid",))


def _clause(attribute: Attribute, text: str) -> Clause:
    return Clause(attribute=attribute, matches=(Match(MatchKind.EXACT, text),))


@cache
def bound() -> Bound:
    """The web may; nobody reaches /admin."""
    web = Rule(sources=((_clause(Attribute.SOURCE_PRINCIPAL, "td/web"),),))
    admin = Rule(operations=((_clause(Attribute.PATH, "/admin"),),))
    policies = (
        Policy(namespace="a", name="web", rules=(web,)),
        Policy(namespace="a", name="admin", action=Action.DENY, rules=(admin,)),
    )
    target = Target(spiffe_id=ID, namespace="a")
    snapshot = compile_set(policies, Mesh(trust_domains=("td",)), [target])
    vouchers = Vouchers(issuers={"https://i": KEYS}, domains={"td": KEYS})
    return Bound(revision=1, snapshot=snapshot, target=target, rules=(RULE,), vouchers=vouchers)


def _check_words(error: ValueError) -> None:
    if not 0 < len(str(error)) < 300:
        raise AssertionError("a refusal without words, or with too many") from error


def _same(record: DecisionRecord) -> None:
    assert DecisionRecord.from_json(record.json_line()) == record


def run_check(data: bytes) -> None:
    try:
        request, said, _ = parsed(data, ())
    except ValueError:
        return
    for told in (said, Said(jwt=True, remote_ip="10.0.0.1")):
        verdict = decide(request, bound(), told, now=NOW)
        if verdict.allowed:
            assert verdict.request.principal == "td/web"
            assert verdict.request.path != "/admin"
        answer(verdict, "x", revision=1).SerializeToString()
        _same(verdict.record(id="x", at=NOW, target=ID, revision=1))


def run_access_log(data: bytes) -> None:
    try:
        message = StreamAccessLogsMessage.FromString(data)
    except DecodeError:
        return
    proxy = Proxy(target=ID, prefix="p1", node="n", revision=1)
    for entries, read in ((message.http_logs.log_entry, http_record), (message.tcp_logs.log_entry, tcp_record)):
        for entry in entries:
            record = read(entry, proxy, now=NOW)
            if record is not None:
                assert record.target == ID
                assert is_decision_id(record.id)
                _same(record)


def run_authzen(data: bytes) -> None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return
    for read in (
        authzen.read_question,
        authzen.read_questions,
        *(lambda found, wanted=wanted: authzen.read_search(found, wanted) for wanted in authzen.Wanted),
    ):
        try:
            found = read(document)
            page = read_page(document, "subject")
            questions = found.items if isinstance(found, authzen.Questions) else (found,)
            for question in questions:
                if isinstance(question, authzen.Question):
                    request = authzen.request_of(question)
                    answered = authzen.decide(question, request, bound().snapshot)
                    assert not answered.allowed or (request is not None and request.principal == "td/web")
            page.of(["a", "b"])
        except authzen.Malformed as error:
            _check_words(error)


def run_claims(data: bytes) -> None:
    """Headers and a query of a request, in which no token is signed by any key that is known."""
    text = text_of(data)
    headers = {"authorization": f"Bearer {text}", "x-token": text, "cookie": text}
    for rules in ((RULE,), (JwtRule(issuer="https://i"),), ()):
        try:
            found = claims_of(headers=headers, query=text, rules=rules, vouchers=bound().vouchers, audience=ID, now=NOW)
        except NotVerified as error:
            _check_words(error)
            continue
        assert found is None


def run_record(data: bytes) -> None:
    try:
        record = DecisionRecord.from_json(data)
    except ValueError:
        return
    record.json_line()


TARGETS = (
    harness.Target(name="check", run=run_check, words=(b"spiffe://td/web", b"/admin", b"td/web")),
    harness.Target(
        name="access_log", run=run_access_log, words=(b"burgee_", b"a/b#0", b"rbac_access_denied_matched_policy[")
    ),
    harness.Target(
        name="authzen", run=run_authzen, words=(b'"subject"', b'"workload"', b'"properties"', b'"evaluations"')
    ),
    harness.Target(name="claims", run=run_claims, words=(b"eyJ", b"tok=", b"sid=", b"t ", b".")),
    harness.Target(name="decision_record", run=run_record, words=(b'"id"', b'"at"', b'"source"')),
)
