"""What a call was about, for the audit log: names out of its messages, never a secret."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from cryptography import x509
from google.protobuf.message import Message

from ca.api.convert.bundles import x509_authorities
from ca.errors import STATUS, BurgeeError
from ca.identity.certificate import authority_id
from ca.identity.exchange import MAX_REQUESTER_CHARACTERS
from ca.identity.text import printable
from ca.proto.burgee import admin_pb2, authority_pb2, issuing_pb2
from ca.proto.spire import server_agent_pb2, server_bundle_pb2, server_svid_pb2, types_pb2
from ca.store.audit import AuditItem

_MintX509 = admin_pb2.MintX509SVIDRequest | server_svid_pb2.MintX509SVIDRequest
_MintJwt = admin_pb2.MintJWTSVIDRequest | server_svid_pb2.MintJWTSVIDRequest
_CreateToken = server_agent_pb2.CreateJoinTokenRequest | admin_pb2.CreateJoinTokenRequest

MAX_CSRS = 500
"""Of one call; one with more is refused, whatever it names."""

MAX_AUTHORITIES = 500
"""Of one call that are named; there are never so many."""
MAX_KEY_ID_CHARACTERS = 128

_CODES = {0: "OK", **{number: code.value for code, (number, _) in STATUS.items()}}


TokenId = Callable[[str], str]
"""What a join token is called in the log."""


def asked(request: Any, token_id: TokenId) -> list[AuditItem]:
    """The items that a request names. Only fields that are known to hold names are looked at: what a message of
    another kind holds might be a secret."""
    if isinstance(request, _CreateToken):
        return [AuditItem(token_id(request.token) if request.token else "", _token(request))]
    special = _SPECIAL.get(type(request).__name__)
    return special(request) if special else _named(request)


def answered(request: Any, response: Any, token_id: TokenId) -> list[AuditItem]:
    """The same items with their results; where a batch answers item by item, each with its own."""
    if isinstance(response, types_pb2.JoinToken | admin_pb2.CreateJoinTokenResponse):
        value = response.value if isinstance(response, types_pb2.JoinToken) else response.token
        return [AuditItem(token_id(value), item.about, "OK") for item in asked(request, token_id)]
    if isinstance(response, admin_pb2.JoinTokenInfo):
        return [AuditItem(response.id, response.name, "OK")]
    items = asked(request, token_id)
    if isinstance(response, issuing_pb2.BatchIssueX509SVIDResponse):
        return [_vouched(item, result) for item, result in zip(items, response.results, strict=True)]
    if "results" in _fields(response) and len(response.results) == len(items):
        return [_with_result(item, result) for item, result in zip(items, response.results, strict=True)]
    if isinstance(response, server_svid_pb2.NewDownstreamX509CAResponse):
        return [AuditItem(_serial(response.ca_cert_chain[0]), "", "OK")]
    if "svid" in _fields(response):
        items = [_issued(item, response.svid) for item in items or [AuditItem("")]]
    if not items:
        items = _named(response)
    if isinstance(response, authority_pb2.RotateResponse):
        items = [_stepped(item, response) for item in items]
    if "dry_run" in _fields(request) and request.dry_run:
        return [AuditItem(item.name, "dry run", "OK") for item in items or [AuditItem("")]]
    return [AuditItem(item.name, item.about, "OK") for item in items]


def _with_result(item: AuditItem, result: Any) -> AuditItem:
    """A created entry is called by the ID that it got."""
    fields = _fields(result)
    name = result.entry.id if "entry" in fields and result.entry.id else item.name
    code = result.status.code if "status" in fields else 0
    return AuditItem(name, item.about, _CODES.get(code, f"Code{code}"))


def _issued(item: AuditItem, svid: Any) -> AuditItem:
    name = _id(svid.id) or item.name
    if isinstance(svid, types_pb2.X509SVID) and svid.cert_chain:
        return AuditItem(name, _serial(svid.cert_chain[0]))
    return AuditItem(name, item.about)


def _serial(certificate_der: bytes) -> str:
    return f"serial {x509.load_der_x509_certificate(certificate_der).serial_number}"


def _named(message: Any) -> list[AuditItem]:
    found: list[AuditItem] = []
    for field in _fields(message):
        read = _READERS.get(field)
        if read is not None:
            found += [item for value in _each(getattr(message, field)) if (item := read(value)).name or item.about]
    return found


def _each(value: Any) -> Iterable[Any]:
    return [value] if isinstance(value, str | int | Message) else value


def _fields(message: Any) -> tuple[str, ...]:
    """In the order of the declaration."""
    return tuple(field.name for field in message.DESCRIPTOR.fields) if isinstance(message, Message) else ()


def _id(value: Any) -> str:
    if isinstance(value, types_pb2.SPIFFEID):
        return f"spiffe://{value.trust_domain}{value.path}" if value.trust_domain else ""
    return str(value)


def _token(request: _CreateToken) -> str:
    """Its name and how often it serves, where they are told, and its alias."""
    words = [_id(request.agent_id)]
    if isinstance(request, admin_pb2.CreateJoinTokenRequest):
        words.append(f"name {printable(request.name[:64])}" if request.name else "")
        words.append(f"{request.uses} uses" if request.uses > 1 else "")
    return ", ".join(filter(None, words))


def _entry(value: Any) -> AuditItem:
    if isinstance(value, str):
        return AuditItem(value)
    return AuditItem(value.id, _id(value.spiffe_id))


def _trust_domain(value: Any) -> AuditItem:
    return AuditItem(value if isinstance(value, str) else value.trust_domain)


def _authority(value: Any) -> AuditItem:
    return AuditItem(value if isinstance(value, str) else value.authority_id)


def _x509_authority(certificate_der: bytes) -> AuditItem:
    try:
        return AuditItem(authority_id(certificate_der), "X.509 authority")
    except BurgeeError:
        return AuditItem(hashlib.sha256(certificate_der).hexdigest(), "X.509 authority, by SHA-256")


def _jwt_authority(key: types_pb2.JWTKey) -> AuditItem:
    return AuditItem(printable(key.key_id[:MAX_KEY_ID_CHARACTERS]), "JWT authority")


def _appended(request: server_bundle_pb2.AppendBundleRequest) -> list[AuditItem]:
    try:
        added = x509_authorities(request.x509_authorities[:MAX_AUTHORITIES])
    except BurgeeError:  # then the call is refused
        added = ()
    x509_items = [_x509_authority(authority.certificate) for authority in added]
    return x509_items + [_jwt_authority(key) for key in request.jwt_authorities[:MAX_AUTHORITIES]]


_READERS: dict[str, Callable[[Any], AuditItem]] = {
    "id": lambda value: AuditItem(_id(value)),
    "ids": lambda value: AuditItem(_id(value)),
    "agents": lambda value: AuditItem(_id(value)),
    "entries": _entry,
    "trust_domain": _trust_domain,
    "trust_domains": _trust_domain,
    "bundle": _trust_domain,
    "bundles": _trust_domain,
    "federation_relationship": _trust_domain,
    "federation_relationships": _trust_domain,
    "authority_id": _authority,
    "prepared_authority": _authority,
    "subject_key_id": lambda value: AuditItem(str(value)),
    "upstream_authority_subject_key_id": lambda value: AuditItem(str(value)),
    "new_level": lambda value: AuditItem(types_pb2.LogLevel.Name(value) if value in range(7) else str(value)),
}


def _mint_x509(request: _MintX509) -> list[AuditItem]:
    try:
        names = x509.load_der_x509_csr(request.csr).extensions.get_extension_for_class(x509.SubjectAlternativeName)
        uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, TypeError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return []
    return [AuditItem(uri) for uri in uris[:1]]


def _mint_jwt(request: _MintJwt) -> list[AuditItem]:
    return [AuditItem(_id(request.id), f"audience {' '.join(request.audience)}")]


def _issue_x509(request: issuing_pb2.BatchIssueX509SVIDRequest) -> list[AuditItem]:
    """For whom; which identity that is turns out later, unless one is asked for."""
    return [
        AuditItem(_id(params.spiffe_id), printable(params.requester[:MAX_REQUESTER_CHARACTERS]))
        for params in request.params[:MAX_CSRS]
    ]


def _vouched(item: AuditItem, result: issuing_pb2.IssueX509SVIDResult) -> AuditItem:
    if result.HasField("refusal"):
        return AuditItem(item.name, item.about, result.refusal.code)
    issued = _issued(item, result.svid)
    return AuditItem(issued.name, f"{item.about}, entry {result.entry_id}, {issued.about}", "OK")


def _authority_step(request: authority_pb2.StepRequest) -> list[AuditItem]:
    """A preparation is called by the ID that it gives."""
    if not request.authority_id:
        return []
    return [AuditItem(request.authority_id, f"{request.kind}, forced" if request.force else request.kind)]


def _rotation(request: authority_pb2.RotateRequest) -> list[AuditItem]:
    words = [request.kind, *["taint"] * request.taint, *["forced"] * request.force]
    return [AuditItem(request.replacing, ", ".join(words))]


def _stepped(item: AuditItem, response: authority_pb2.RotateResponse) -> AuditItem:
    """Which authority goes, also where the server chose it, and the step that was taken."""
    return AuditItem(response.replacing, f"{item.about}: {response.step}" if response.done else item.about)


_SPECIAL: dict[str, Callable[[Any], list[AuditItem]]] = {
    "AppendBundleRequest": _appended,
    "PublishJWTAuthorityRequest": lambda request: [_jwt_authority(request.jwt_authority)],
    "MintX509SVIDRequest": _mint_x509,
    "MintJWTSVIDRequest": _mint_jwt,
    "BatchIssueX509SVIDRequest": _issue_x509,
    "RevokeJoinTokenRequest": lambda request: [AuditItem(printable(request.name[:64]))],
    "StepRequest": _authority_step,
    "RotateRequest": _rotation,
}
