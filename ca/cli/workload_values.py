"""What a Workload API gave, as plain values: identities, lifetimes, bundles, and whether they fit together."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ca.cli.bundle_values import describe_authority
from ca.cli.output import columns, green, red, until
from ca.errors import BurgeeError
from ca.identity.spiffe_id import SpiffeId, TrustDomain

if TYPE_CHECKING:
    from ca.identity.bundle import TrustBundle
    from ca.proto.burgee import workload_pb2


def split_der(blob: bytes) -> list[bytes]:
    """Concatenated DER certificates, as the Workload API sends them. Raises InvalidArgument."""
    from ca.identity.certificate import split_certificates

    return split_certificates(blob)


def svid_value(svid: workload_pb2.X509SVID, bundles: dict[TrustDomain, TrustBundle]) -> dict[str, Any]:
    """One X.509-SVID without its key. `problem` says why it would be refused, or is null."""
    from ca.identity.svid import parse_x509_svid, verify_x509_svid

    value: dict[str, Any] = {"spiffe_id": svid.spiffe_id, "hint": svid.hint, "problem": None}
    try:
        chain = split_der(svid.x509_svid)
        parsed = parse_x509_svid(chain)
        value |= {
            "serial_number": f"{parsed.serial:x}",
            "not_before": _rfc3339(parsed.not_before),
            "not_after": _rfc3339(parsed.not_after),
            "remaining_seconds": int((parsed.not_after - datetime.now(UTC)).total_seconds()),
            "dns_names": list(parsed.dns_names),
            "certificates": len(chain),
            "authority_id": parsed.authority_key_id,
        }
        verify_x509_svid(chain, bundles, now=datetime.now(UTC))
    except BurgeeError as error:
        value["problem"] = f"{error.detail} ({error.reason})"
    return value


def bundles_of(response: workload_pb2.X509SVIDResponse) -> dict[TrustDomain, TrustBundle]:
    """The bundles that come along with SVIDs: each one's own, and the federated ones. Raises InvalidArgument."""
    own = {f"spiffe://{SpiffeId.parse(svid.spiffe_id).trust_domain}": svid.bundle for svid in response.svids}
    return x509_bundles({**dict(response.federated_bundles), **own})


def x509_bundles(by_domain: dict[str, bytes]) -> dict[TrustDomain, TrustBundle]:
    """Trust domain ID → concatenated DER, as values. Raises InvalidArgument."""
    from ca.identity.bundle import TrustBundle, X509Authority

    bundles = {}
    for name, blob in by_domain.items():
        trust_domain = TrustDomain.parse(name)
        authorities = tuple(X509Authority(certificate=der) for der in split_der(blob))
        bundles[trust_domain] = TrustBundle(trust_domain=trust_domain, x509_authorities=authorities)
    return bundles


def bundle_values(bundles: dict[TrustDomain, TrustBundle]) -> list[dict[str, Any]]:
    """Each trust domain with its X.509 authorities."""
    return [
        {
            "trust_domain": trust_domain.name,
            "x509_authorities": [describe_authority(a.certificate) for a in bundle.x509_authorities],
        }
        for trust_domain, bundle in sorted(bundles.items())
    ]


def jwt_bundle_values(by_domain: dict[str, bytes]) -> list[dict[str, Any]]:
    """Each trust domain with the key IDs of its JWT authorities. Raises InvalidArgument."""
    from ca.identity.bundle_json import parse_workload_jwks

    values = []
    for name, document in sorted(by_domain.items()):
        trust_domain = TrustDomain.parse(name)
        bundle = parse_workload_jwks(document, trust_domain)
        values.append({"trust_domain": trust_domain.name, "key_ids": [a.key_id for a in bundle.jwt_authorities]})
    return values


def svid_table(svids: Iterable[dict[str, Any]]) -> str:
    """A line per SVID."""
    rows = (
        [
            svid["spiffe_id"],
            svid["hint"],
            svid.get("serial_number", "")[:16],
            until(svid["not_after"]) if "not_after" in svid else "",
            red(svid["problem"]) if svid["problem"] else green("valid"),
        ]
        for svid in svids
    )
    return columns(["SPIFFE ID", "HINT", "SERIAL", "EXPIRES", "CHECK"], rows, empty="no X.509-SVID")


def _rfc3339(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
