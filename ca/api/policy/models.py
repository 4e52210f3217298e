"""What goes over the wire, as models: requests are strict, and the OpenAPI document is made from both."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from policy.book_values import KINDS

NAME = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
NAMESPACE = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
LINE = r"^[^\x00-\x1f\x7f]*$"
SPIFFE_ID = r"^spiffe://[^\x00-\x20\x7f]+$"
PATTERN_WORDS = {
    NAME: "must be a name: lower-case letters, digits, `-` and `.`",
    NAMESPACE: "must be a namespace: lower-case letters, digits and `-`",
    LINE: "must be one line, without control characters",
    SPIFFE_ID: "must be a SPIFFE ID, such as `spiffe://example.org/ns/shop/sa/orders`",
}

KindName = Literal["AuthorizationPolicy", "RequestAuthentication", "PeerAuthentication", "Workload"]
Name = Annotated[str, StringConstraints(pattern=NAME, max_length=253)]
Namespace = Annotated[str, StringConstraints(pattern=NAMESPACE, max_length=63)]
Line = Annotated[str, StringConstraints(pattern=LINE, max_length=500)]
SpiffeIdText = Annotated[str, StringConstraints(pattern=SPIFFE_ID, max_length=2048)]
Number = Annotated[int, Field(ge=0, le=2**53)]
Text = Annotated[str, StringConstraints(max_length=65536)]

assert set(KINDS) == set(KindName.__args__)  # type: ignore[attr-defined]


class Asked(BaseModel):
    """Of a request: a field that is not known is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Told(BaseModel):
    """Of an answer."""

    model_config = ConfigDict(extra="forbid")


class KeyDocument(Asked):
    """What names an object."""

    kind: KindName
    namespace: Namespace
    name: Name


class ObjectMetadata(BaseModel):
    """As Kubernetes has it; fields that are not shown are accepted and kept."""

    name: Name
    namespace: Namespace
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class PolicyObject(BaseModel):
    """An object, as it is written in YAML: see the policy language."""

    apiVersion: Literal["security.istio.io/v1", "security.istio.io/v1beta1", "burgee.io/v1"]
    kind: KindName
    metadata: ObjectMetadata
    spec: dict[str, Any] | None = None


class ChangeDocument(Asked):
    """One change: `object` is created or replaced, or `delete` is taken away. `if_match` is the entity tag, without
    quotes, that it must still have. `force` takes it over from another owner."""

    object: dict[str, Any] | None = None
    delete: KeyDocument | None = None
    if_match: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")] | None = None
    must_be_new: bool = False
    force: bool = False


class ApplyDocument(Asked):
    """Many changes as one revision: all of them hold, or none. With `expected_revision`, none unless it is still the
    newest. `owner` marks what is applied."""

    changes: Annotated[list[ChangeDocument], Field(max_length=20_000)]
    owner: Annotated[str, StringConstraints(pattern=LINE, max_length=253)] = ""
    note: Line = ""
    expected_revision: Number | None = None


class NoteDocument(Asked):
    """Why a rollback is made, and on what it builds."""

    note: Line = ""
    expected_revision: Number | None = None


class RequestDocument(Asked):
    """What is known of one request; what is left out is absent. `principal` is the peer's SPIFFE ID, with `spiffe://`
    or without. `path` is as the proxy's filters see it, without query. Claims count as those of a verified JWT."""

    principal: Annotated[str, StringConstraints(max_length=2048)] | None = None
    source_ip: Annotated[str, StringConstraints(max_length=64)] | None = None
    remote_ip: Annotated[str, StringConstraints(max_length=64)] | None = None
    destination_ip: Annotated[str, StringConstraints(max_length=64)] | None = None
    destination_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    sni: Annotated[str, StringConstraints(max_length=1024)] | None = None
    http: bool = True
    method: Annotated[str, StringConstraints(max_length=256)] | None = None
    path: Text | None = None
    host: Annotated[str, StringConstraints(max_length=1024)] | None = None
    headers: Annotated[dict[str, Text], Field(max_length=1000)] = {}
    claims: dict[str, Any] | None = None
    metadata: dict[str, dict[str, Any]] = {}


class EvaluateDocument(Asked):
    """A question: may this request reach this workload? By the newest revision, unless another is named."""

    target: SpiffeIdText
    request: RequestDocument = RequestDocument()
    revision: Number | None = None


class ExplainDocument(Asked):
    """Which decision to explain: a request to a workload, or one that is in the decision log, by its ID."""

    target: SpiffeIdText | None = None
    request: RequestDocument = RequestDocument()
    decision: Annotated[str, StringConstraints(pattern=r"^[!-~]{1,256}$")] | None = None
    revision: Number | None = None


class ProblemDocument(BaseModel):
    """A refusal (RFC 9457). `reason` is stable; `errors` say what is wrong where, `violations` which invariants
    would not hold, each with a request that shows it."""

    type: str
    title: str
    status: int
    detail: str
    reason: str
    hint: str | None = None
    errors: list[FaultDocument] | None = None
    violations: list[dict[str, Any]] | None = None


class FaultDocument(BaseModel):
    """One thing that is wrong; `pointer` is a JSON pointer into the body; `parameter` names where else it is."""

    code: str
    pointer: str
    detail: str
    parameter: str | None = None
    line: int | None = None
    column: int | None = None
    hint: str | None = None


class StoredDocument(Told):
    """An object with its entity tag and the revision in which it came to be so."""

    object: dict[str, Any]
    etag: str
    revision: int
    owner: str


class ObjectList(Told):
    """A page; `next` is there if another follows."""

    items: list[StoredDocument]
    next: str | None = None


class ChangedDocument(Told):
    """What a revision did to one object; null where there was, or is, none."""

    kind: str
    namespace: str
    name: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class RevisionDocument(Told):
    """One write. Changes are those of namespaces that the caller may read."""

    number: int
    at: str
    actor: str
    note: str
    changes: list[ChangedDocument]


class RevisionSummary(Told):
    """One write, without what it changed; `count` is of objects."""

    number: int
    at: str
    actor: str
    note: str
    count: int


class RevisionList(Told):
    """A page of revisions, the newest first."""

    items: list[RevisionSummary]
    next: str | None = None


class FindingDocument(Told):
    """What lint found."""

    code: str
    severity: str
    key: str
    rule: int | None
    message: str
    hint: str
    origin: str


class OutcomeDocument(Told):
    """What a write did, or with `dry_run` would do. `revision` is null for a dry run, and where nothing changes, which
    `changed` tells: how many objects are created, changed and deleted."""

    dry_run: bool
    revision: int | None
    changed: int
    objects: list[StoredDocument]
    warnings: list[FaultDocument]
    findings: list[FindingDocument]
    difference: dict[str, Any] | None


class VerdictDocument(Told):
    """One verdict; `shadow` is the one that would hold if shadow policies were enforced."""

    allowed: bool
    reason: str
    policy: str | None
    rule: int | None
    providers: list[str]
    shadow: VerdictDocument | None = None


class DecisionDocument(Told):
    """The answer to a question. By `id` the decision log has it, if it was asked by the newest revision."""

    id: str
    target: str
    revision: int
    decision: VerdictDocument


class ExplanationDocument(Told):
    """Why: the verdict, the decisive rule, and for a default denial the nearest misses."""

    target: str
    revision: int
    explanation: dict[str, Any]
    text: str
    record: dict[str, Any] | None = None


class LintDocument(Told):
    """What lint found in a revision."""

    revision: int
    findings: list[FindingDocument]


class DifferenceDocument(Told):
    """What one revision allows and the other does not, with a request for each change."""

    before: int
    after: int
    difference: dict[str, Any]


class GraphDocument(Told):
    """Who can reach whom."""

    revision: int
    graph: dict[str, Any]


class TargetDocument(Told):
    """A workload that can be called; `references` are pairs of kind and name."""

    spiffe_id: str
    namespace: str
    labels: dict[str, str]
    references: list[list[str]]
    waypoint: bool
    normalized: bool


class MeshDocument(Told):
    """What holds for all policies, and who can be called."""

    revision: int
    trust_domains: list[str]
    root_namespace: str
    open_namespaces: list[str]
    providers: list[str]
    targets: list[TargetDocument]


class ProxyDocument(Told):
    """What one proxy made of one resource. `current`: its agent has what it needs of the newest revision, and the proxy
    has taken that over. `in_force`: where `state` is `nacked`, the revision that it goes by instead; null where that
    is not known: what it had before it connected, or its default, which refuses everything."""

    agent: str
    agent_state: Literal["current", "behind", "failed", "away"]
    current: bool
    proxy: str
    pid: int
    spiffe_id: str
    resource: str
    revision: int
    state: str
    detail: str
    unlogged: bool
    in_force: int | None


class AgentDocument(Told):
    """What an agent has of the policies. `state`: `current`, `behind` (it was not sent, or did not take over, what it
    needs of the newest), `failed` (`error` says why) or `away` (it has no stream to this server). `sent` is the
    revision of what it was sent last: an agent whose policies a revision does not change is sent nothing."""

    agent: str
    connected: bool
    state: Literal["current", "behind", "failed", "away"]
    sent: int
    revision: int | None
    error: str
    at: str | None


class RolloutDocument(Told):
    """How far the newest revision has come. `pushed`: this server pushes policies; where it does not, its agents poll
    it and get none."""

    revision: int
    pushed: bool
    agents: list[AgentDocument]
    proxies: list[ProxyDocument]


class DecisionList(Told):
    """A page of the decision log, the newest first."""

    items: list[dict[str, Any]]
    next: str | None = None


class WatchDocument(Told):
    """The newest revision, and whether it is newer than the one that was asked about."""

    revision: int
    changed: bool
