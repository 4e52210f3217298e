"""A program that uses py-spiffe as its users do; prints one JSON object per event.

A process of its own: `import spiffe` registers a package-less workload.proto for the whole process.
`python -m tests.e2e.spiffe_client SOCKET x509|jwt|watch`
"""

from __future__ import annotations

import json
import sys
import threading

from spiffe import JwtSource, WorkloadApiClient, X509Source


def tell(**event: object) -> None:
    print(json.dumps(event), flush=True)


def x509(address: str) -> None:
    """X509Source keeps itself fresh: print the serial at each update."""
    with X509Source(socket_path=address, timeout_in_seconds=20) as source:
        changed = threading.Event()
        source.subscribe_for_updates(changed.set)
        while True:
            svid = source.svid
            bundle = source.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
            assert bundle is not None
            tell(
                id=str(svid.spiffe_id),
                serial=svid.leaf.serial_number,
                roots=len(bundle.x509_authorities),
                chain=len(svid.cert_chain),
            )
            changed.wait()
            changed.clear()


def jwt(address: str) -> None:
    """Fetch a JWT-SVID, validate it locally with the bundle and remotely with the agent."""
    with JwtSource(socket_path=address, timeout_in_seconds=20) as source:
        svid = source.fetch_svid(audience={"pair"})
        bundle = source.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
        assert bundle is not None
        with WorkloadApiClient(socket_path=address) as client:
            again = client.validate_jwt_svid(svid.token, "pair")
        tell(id=str(svid.spiffe_id), keys=len(bundle.jwt_authorities), validated=str(again.spiffe_id))


def watch(address: str) -> None:
    """Watchers: one event per update or error."""
    with WorkloadApiClient(socket_path=address) as client:
        client.stream_x509_contexts(
            on_success=lambda context: tell(ids=[str(s.spiffe_id) for s in context.x509_svids]),
            on_error=lambda error: tell(error=str(error)),
        )
        threading.Event().wait()


if __name__ == "__main__":
    {"x509": x509, "jwt": jwt, "watch": watch}[sys.argv[2]](f"unix:{sys.argv[1]}")
