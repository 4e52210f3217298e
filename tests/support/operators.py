"""An operator at a server's admin socket, with SPIRE's own calls about its authorities; and a PKI mount above it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca.errors import BurgeeError
from ca.identity.bundle import authority_id
from ca.proto.burgee import authority_pb2, authority_pb2_grpc
from ca.proto.spire import server_localauthority_pb2 as pb
from ca.proto.spire import server_localauthority_pb2_grpc
from ca.runtime.rpc import error_of
from tests.contracts.upstreams import vault_mount, vault_policy
from tests.support.openbao import OpenBao

T = TypeVar("T")

ALLOWED_SECONDS = 60.0
CALL_SECONDS = 30.0


class Operator:
    """One call per connection, as from a command line."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def state(self) -> pb.GetX509AuthorityStateResponse:
        answer: pb.GetX509AuthorityStateResponse = self._call("GetX509AuthorityState")
        return answer

    def prepare(self) -> pb.AuthorityState:
        made: pb.AuthorityState = self._call("PrepareX509Authority").prepared_authority
        return made

    def activate(self, name: str) -> None:
        self._call("ActivateX509Authority", authority_id=name)

    def taint(self, name: str) -> None:
        self._call("TaintX509Authority", authority_id=name)

    def revoke(self, name: str) -> None:
        self._call("RevokeX509Authority", authority_id=name)

    def taint_root(self, name: str) -> None:
        self._call("TaintX509UpstreamAuthority", subject_key_id=name)

    def revoke_root(self, name: str) -> None:
        self._call("RevokeX509UpstreamAuthority", subject_key_id=name)

    def prune(self, name: str) -> None:
        """What SPIRE has no call for."""
        with grpc.insecure_channel(f"unix:{self._socket}") as channel:
            request = authority_pb2.StepRequest(kind="x509", authority_id=name)
            authority_pb2_grpc.AuthoritiesStub(channel).Prune(request, timeout=CALL_SECONDS)

    def _call(self, method: str, **fields: Any) -> Any:
        with grpc.insecure_channel(f"unix:{self._socket}") as channel:
            stub = server_localauthority_pb2_grpc.LocalAuthorityStub(channel)
            return getattr(stub, method)(getattr(pb, f"{method}Request")(**fields), timeout=CALL_SECONDS)


def refused(error: grpc.RpcError) -> BurgeeError:
    """What the server said, of a call that waited for its answer."""
    return error_of(error)  # type: ignore[arg-type]  # what it looks at, errors of either kind of call have


def when_allowed(step: Callable[[], T], *, seconds: float = ALLOWED_SECONDS) -> float:
    """Takes the step as soon as it would cut nobody off; the seconds that it was refused for."""
    began = time.monotonic()
    while True:
        try:
            step()
        except grpc.RpcError as error:
            refusal = refused(error)
            if refusal.reason != "ROTATION_BLOCKED" or time.monotonic() - began > seconds:
                raise AssertionError(f"refused: {refusal}") from error
            time.sleep(0.2)
        else:
            return time.monotonic() - began


class Mount:
    """A PKI mount with a root, and what burgee's documentation says that a server needs there."""

    def __init__(self, bao: OpenBao, *, life: timedelta) -> None:
        self.bao = bao
        self.name = f"pki-{secrets.token_hex(4)}"
        vault_mount(bao, self.name, life=life)
        self.allow()

    def allow(self) -> None:
        vault_policy(self.bao, self.name)

    def upstream(self, auth: dict[str, Any], **options: Any) -> dict[str, Any]:
        """A server's `upstream`."""
        config = {"address": self.bao.address, "mount": self.name, "auth": auth, **options}
        if self.bao.real:
            config["ca_file"] = str(self.bao.ca_file)
        return {"plugin": "vault_pki", "config": config}

    def new_root(self, *, life: timedelta) -> str:
        """Made beside the old one, and signs from now on. Its authority ID."""
        name = f"root-{secrets.token_hex(4)}"
        data = {"common_name": name, "issuer_name": name, "key_type": "ec", "ttl": f"{int(life.total_seconds())}s"}
        made = self.bao.call("POST", f"{self.name}/root/rotate/internal", data)["data"]
        self.bao.call("POST", f"{self.name}/root/replace", {"default": name})
        certificate = x509.load_pem_x509_certificate(made["certificate"].encode())
        return authority_id(certificate.public_bytes(Encoding.DER))
