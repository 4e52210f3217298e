"""Who may call what: one row for every method, of gRPC and of HTTP; what has no row is refused to everyone."""

from __future__ import annotations

from enum import Flag, auto


class Tier(Flag):
    """Kinds of callers. A row may name several; any one of them is enough."""

    ANYONE = auto()
    LOCAL = auto()
    """The server's own Unix socket."""
    ADMIN = auto()
    """An X.509-SVID whose SPIFFE ID is in `admin_ids`, or has an entry with `admin`."""
    AGENT = auto()
    """The active X.509-SVID of an attested agent that is neither banned nor expired."""
    DOWNSTREAM = auto()
    """An X.509-SVID whose SPIFFE ID has an entry with `downstream`."""
    SVID = auto()
    """Any X.509-SVID that holds now, of whichever trust domain we have the bundle of; what it may do there, grants say.
    An agent's must be an acting agent's."""


MANAGERS = Tier.LOCAL | Tier.ADMIN
GRANTED = Tier.LOCAL | Tier.SVID

_AGENT = "/spire.api.server.agent.v1.Agent/"
_ENTRY = "/spire.api.server.entry.v1.Entry/"
_SVID = "/spire.api.server.svid.v1.SVID/"
_BUNDLE = "/spire.api.server.bundle.v1.Bundle/"
_TRUST_DOMAIN = "/spire.api.server.trustdomain.v1.TrustDomain/"
_AUTHORITY = "/spire.api.server.localauthority.v1.LocalAuthority/"
_DEBUG = "/spire.api.server.debug.v1.Debug/"
_LOGGER = "/spire.api.server.logger.v1.Logger/"
_HEALTH = "/grpc.health.v1.Health/"
_ADMIN = "/burgee.admin.v1.Admin/"
_AUTHORITIES = "/burgee.authority.v1.Authorities/"
_EXCHANGE = "/burgee.exchange.v1.Exchange/"
_FORESIGHT = "/burgee.foresight.v1.Foresight/"
_ISSUING = "/burgee.issuing.v1.Issuing/"
_DECISIONS = "/burgee.decisions.v1.Decisions/"
_POLICY = "/v1/policy"
_OBJECTS = _POLICY + "/{kind}"

TIERS: dict[str, Tier] = {
    _AGENT + "CountAgents": MANAGERS,
    _AGENT + "ListAgents": MANAGERS,
    _AGENT + "GetAgent": MANAGERS,
    _AGENT + "DeleteAgent": MANAGERS,
    _AGENT + "BanAgent": MANAGERS,
    _AGENT + "CreateJoinToken": MANAGERS,
    _AGENT + "AttestAgent": Tier.ANYONE,
    _AGENT + "RenewAgent": Tier.AGENT,
    _AGENT + "PostStatus": Tier.AGENT,
    _ENTRY + "CountEntries": MANAGERS,
    _ENTRY + "ListEntries": MANAGERS,
    _ENTRY + "GetEntry": MANAGERS,
    _ENTRY + "BatchCreateEntry": MANAGERS,
    _ENTRY + "BatchUpdateEntry": MANAGERS,
    _ENTRY + "BatchDeleteEntry": MANAGERS,
    _ENTRY + "GetAuthorizedEntries": Tier.AGENT,
    _ENTRY + "SyncAuthorizedEntries": Tier.AGENT,
    _SVID + "MintX509SVID": MANAGERS,
    _SVID + "MintJWTSVID": MANAGERS,
    _SVID + "MintWITSVID": MANAGERS,
    _SVID + "BatchNewX509SVID": Tier.AGENT,
    _SVID + "NewJWTSVID": Tier.AGENT,
    _SVID + "BatchNewWITSVID": Tier.AGENT,
    _SVID + "NewDownstreamX509CA": Tier.DOWNSTREAM,
    _BUNDLE + "GetBundle": Tier.ANYONE,
    _BUNDLE + "CountBundles": MANAGERS,
    _BUNDLE + "AppendBundle": MANAGERS,
    _BUNDLE + "PublishJWTAuthority": Tier.DOWNSTREAM,
    _BUNDLE + "PublishWITAuthority": Tier.DOWNSTREAM,
    _BUNDLE + "ListFederatedBundles": MANAGERS,
    _BUNDLE + "GetFederatedBundle": MANAGERS | Tier.AGENT,
    _BUNDLE + "BatchCreateFederatedBundle": MANAGERS,
    _BUNDLE + "BatchUpdateFederatedBundle": MANAGERS,
    _BUNDLE + "BatchSetFederatedBundle": MANAGERS,
    _BUNDLE + "BatchDeleteFederatedBundle": MANAGERS,
    _TRUST_DOMAIN + "ListFederationRelationships": MANAGERS,
    _TRUST_DOMAIN + "GetFederationRelationship": MANAGERS,
    _TRUST_DOMAIN + "BatchCreateFederationRelationship": MANAGERS,
    _TRUST_DOMAIN + "BatchUpdateFederationRelationship": MANAGERS,
    _TRUST_DOMAIN + "BatchDeleteFederationRelationship": MANAGERS,
    _TRUST_DOMAIN + "RefreshBundle": MANAGERS,
    _AUTHORITY + "GetX509AuthorityState": MANAGERS,
    _AUTHORITY + "PrepareX509Authority": MANAGERS,
    _AUTHORITY + "ActivateX509Authority": MANAGERS,
    _AUTHORITY + "TaintX509Authority": MANAGERS,
    _AUTHORITY + "RevokeX509Authority": MANAGERS,
    _AUTHORITY + "TaintX509UpstreamAuthority": MANAGERS,
    _AUTHORITY + "RevokeX509UpstreamAuthority": MANAGERS,
    _AUTHORITY + "GetJWTAuthorityState": MANAGERS,
    _AUTHORITY + "PrepareJWTAuthority": MANAGERS,
    _AUTHORITY + "ActivateJWTAuthority": MANAGERS,
    _AUTHORITY + "TaintJWTAuthority": MANAGERS,
    _AUTHORITY + "RevokeJWTAuthority": MANAGERS,
    _AUTHORITY + "GetWITAuthorityState": MANAGERS,
    _AUTHORITY + "PrepareWITAuthority": MANAGERS,
    _AUTHORITY + "ActivateWITAuthority": MANAGERS,
    _AUTHORITY + "TaintWITAuthority": MANAGERS,
    _AUTHORITY + "RevokeWITAuthority": MANAGERS,
    _DEBUG + "GetInfo": Tier.LOCAL,
    _LOGGER + "GetLogger": Tier.LOCAL,
    _LOGGER + "SetLogLevel": Tier.LOCAL,
    _LOGGER + "ResetLogLevel": Tier.LOCAL,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": Tier.LOCAL,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Tier.LOCAL,
    _HEALTH + "Check": Tier.LOCAL,
    _HEALTH + "List": Tier.LOCAL,
    _HEALTH + "Watch": Tier.LOCAL,
    "/burgee.node.v1.Node/Sync": Tier.AGENT,
    "/burgee.node.v1.Node/GetTime": Tier.ANYONE,
    _EXCHANGE + "ExchangeX509SVID": Tier.ANYONE,
    _EXCHANGE + "ExchangeJWTSVID": Tier.ANYONE,
    "/istio.v1.auth.IstioCertificateService/CreateCertificate": Tier.ANYONE,
    _ADMIN + "GetStatus": MANAGERS,
    _ADMIN + "MintX509SVID": MANAGERS,
    _ADMIN + "MintJWTSVID": MANAGERS,
    _ADMIN + "ListIssued": MANAGERS,
    _ADMIN + "ListAudit": MANAGERS,
    _ADMIN + "ListJoinTokens": MANAGERS,
    _ADMIN + "CreateJoinToken": MANAGERS,
    _ADMIN + "RevokeJoinToken": MANAGERS,
    _ADMIN + "Prune": MANAGERS,
    _ADMIN + "ExplainAgent": MANAGERS,
    _ADMIN + "GetDoctorReport": MANAGERS,
    _AUTHORITIES + "GetStatus": MANAGERS,
    _AUTHORITIES + "Prepare": MANAGERS,
    _AUTHORITIES + "Activate": MANAGERS,
    _AUTHORITIES + "Taint": MANAGERS,
    _AUTHORITIES + "Revoke": MANAGERS,
    _AUTHORITIES + "Prune": MANAGERS,
    _AUTHORITIES + "Rotate": MANAGERS,
    _ISSUING + "BatchIssueX509SVID": MANAGERS,
    _FORESIGHT + "ExplainTtl": MANAGERS,
    _FORESIGHT + "GetOutageBudget": MANAGERS,
    _FORESIGHT + "CheckUpstream": MANAGERS,
    "/burgee.debug.v1.Debug/GetReport": MANAGERS,
    _DECISIONS + "Get": Tier.LOCAL,
    _DECISIONS + "List": Tier.LOCAL,
    _DECISIONS + "Watch": Tier.LOCAL,
    "/envoy.service.auth.v3.Authorization/Check": Tier.SVID,
    "GET /version": Tier.ANYONE,
    "GET /v1/status": MANAGERS,
    f"GET {_OBJECTS}": GRANTED,
    f"GET {_OBJECTS}/{{namespace}}": GRANTED,
    f"GET {_OBJECTS}/{{namespace}}/{{name}}": GRANTED,
    f"PUT {_OBJECTS}/{{namespace}}/{{name}}": GRANTED,
    f"PATCH {_OBJECTS}/{{namespace}}/{{name}}": GRANTED,
    f"DELETE {_OBJECTS}/{{namespace}}/{{name}}": GRANTED,
    f"POST {_POLICY}/apply": GRANTED,
    f"GET {_POLICY}/revisions": GRANTED,
    f"GET {_POLICY}/revisions/{{number}}": GRANTED,
    f"GET {_POLICY}/revisions/{{number}}/diff": GRANTED,
    f"POST {_POLICY}/revisions/{{number}}/rollback": GRANTED,
    f"POST {_POLICY}/evaluate": GRANTED,
    f"POST {_POLICY}/explain": GRANTED,
    f"GET {_POLICY}/analyses/lint": GRANTED,
    f"GET {_POLICY}/analyses/graph": GRANTED,
    f"GET {_POLICY}/analyses/diff": GRANTED,
    f"GET {_POLICY}/mesh": GRANTED,
    f"GET {_POLICY}/decisions": GRANTED,
    f"GET {_POLICY}/rollout": GRANTED,
    f"GET {_POLICY}/watch": GRANTED,
    f"GET {_POLICY}/grants": GRANTED,
    f"GET {_POLICY}/grants/{{name}}": GRANTED,
    f"PUT {_POLICY}/grants/{{name}}": GRANTED,
    f"DELETE {_POLICY}/grants/{{name}}": GRANTED,
    f"GET {_POLICY}/invariants": GRANTED,
    f"PUT {_POLICY}/invariants": GRANTED,
    f"GET {_POLICY}/openapi.json": GRANTED,
    "POST /access/v1/evaluation": GRANTED,
    "POST /access/v1/evaluations": GRANTED,
    "POST /access/v1/search/subject": GRANTED,
    "POST /access/v1/search/resource": GRANTED,
    "POST /access/v1/search/action": GRANTED,
    "GET /.well-known/authzen-configuration": Tier.ANYONE,
}
"""gRPC methods by their full names, HTTP ones by verb and route."""

AGENTS_METHODS = frozenset(method for method, tier in TIERS.items() if tier & (Tier.AGENT | Tier.ANYONE))
"""What an agent may call."""

LOCAL_SERVICES = frozenset(
    {
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "spire.api.server.debug.v1.Debug",
        "spire.api.server.logger.v1.Logger",
    }
)
"""Services that do not exist for callers from the network: these get Unimplemented, as for an unknown service."""


def service_of(method: str) -> str:
    """`/package.Service/Method` → `package.Service`."""
    return method[1:].partition("/")[0]
