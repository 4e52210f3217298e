"""Envoy's ext_authz v3 on the server: whoever enforces its own policies elsewhere may ask about requests to itself.

The target is the caller's own SPIFFE ID, whatever a message says, and the caller needs a grant that lets it read the
policies of its namespaces: nobody learns here what others may do.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from operator import is_
from typing import TYPE_CHECKING

import grpc

from ca.api.access import current_caller, current_svid
from ca.errors import Denied, Exhausted, InvalidArgument
from ca.identity.bundle import TrustBundle
from ca.identity.bundle_format import format_jwks
from ca.identity.spiffe_id import SpiffeId
from ca.ports import Clock
from ca.runtime.decision_log import DecisionLog
from ca.runtime.rpc_handlers import Context
from ca.service.policy.book import PolicyBook
from ca.service.policy.refusals import forbidden
from ca.service.rates import TokenBuckets
from ca.service.trust import Trust
from ca.store.authorized import AuthorizedIndex
from policy.book_values import Role
from policy.state import State

if TYPE_CHECKING:
    from policy.ext_authz import Bound
    from policy.tokens import Vouchers

SERVICE = "envoy.service.auth.v3.Authorization"
MAX_CHECK_BYTES = 256 << 10
"""As on an agent's socket."""
MAX_BOUND = 1024


class CheckService:
    """The service. What it needs of Envoy's messages is loaded with the first question."""

    def __init__(
        self, *, book: PolicyBook, trust: Trust, index: AuthorizedIndex, log: DecisionLog, clock: Clock
    ) -> None:
        self._book, self._trust, self._index, self._log, self._clock = book, trust, index, log, clock
        limits = book.held.settings.limits
        self._rates = TokenBuckets(per_second=limits.checks_per_second_per_caller, burst_seconds=limits.burst_seconds)
        self._bound: dict[str, tuple[_Basis, Bound]] = {}

    def handler(self) -> grpc.GenericRpcHandler:
        """For `server.add_generic_rpc_handlers`."""
        return grpc.method_handlers_generic_handler(SERVICE, {"Check": grpc.unary_unary_rpc_method_handler(self.check)})

    async def check(self, raw: bytes, context: Context) -> bytes:
        """The answer, serialized. Raises Denied (POLICY_FORBIDDEN, TARGET_NOT_HELD), InvalidArgument, Exhausted."""
        from policy.ext_authz import decide, refused
        from policy.ext_authz_wire import answer, parsed

        target = current_svid().id
        state = self._book.state
        self._admit(target, state)
        if len(raw) > MAX_CHECK_BYTES:
            raise InvalidArgument(f"a check is larger than {MAX_CHECK_BYTES >> 10} KiB", reason="CHECK_TOO_LARGE")
        try:
            asked, said, wanted = parsed(raw, context.invocation_metadata() or ())
        except ValueError as error:
            raise InvalidArgument(f"no check: {error}", reason="CHECK_MALFORMED") from None
        if wanted not in ("", str(target)):
            raise Denied("a caller is answered about itself alone", reason="TARGET_NOT_HELD")
        bound = await self._policies(target, state)
        now = self._clock.now()
        verdict = decide(asked, bound, said, now=now)
        if verdict.decision is not None and verdict.decision.providers:
            verdict = refused(verdict, "a server asks no external providers: agents do")
        name = said.decision or f"server-{secrets.token_hex(16)}"
        self._log.add(verdict.record(id=name, at=now, target=str(target), revision=bound.revision))
        answered: bytes = answer(verdict, name, revision=bound.revision).SerializeToString()
        return answered

    def _admit(self, target: SpiffeId, state: State) -> None:
        """Rights are those of now. Raises Denied, Exhausted."""
        seconds = self._rates.take(target, 1, self._clock.monotonic())
        if seconds:
            raise Exhausted(
                f"more than {self._rates.per_second:g} checks a second of one caller",
                reason="RATE_LIMITED",
                hint="an agent beside the proxy has no such limit",
                retry_after_seconds=seconds,
            )
        rights = self._book.rights_of(current_caller())
        namespaces = {one.namespace for one in state.snapshot.targets.get(str(target), ())}
        if not (rights.reads_all or (namespaces and all(map(rights.may_read, namespaces)))):
            raise forbidden("ask about requests to yourself", f"a grant as `{Role.READER}` for your namespace")

    async def _policies(self, target: SpiffeId, state: State) -> Bound:
        """The policies in force for the caller."""
        from policy.ext_authz import Bound
        from policy.model import Target
        from policy.tokens import rules_for

        key = str(target)
        basis = _Basis(state, self._book.key_sets.sets, self._bundles(target))
        known = self._bound.get(key)
        if known is not None and known[0].same(basis):
            return known[1]
        described = state.snapshot.targets.get(key, ()) or (Target(spiffe_id=key),)
        root = state.mesh.root_namespace
        found = state.parsed.request_authentications
        rules = dict.fromkeys(rule for one in described for rule in rules_for(found, one, root_namespace=root))
        # Where several workloads share an ID, a path counts as normalized if all their proxies normalize it.
        chosen = next((one for one in described if not one.normalized), described[0])
        vouchers = await asyncio.to_thread(_vouchers, basis)
        bound = Bound(
            revision=state.revision, snapshot=state.snapshot, target=chosen, rules=tuple(rules), vouchers=vouchers
        )
        if len(self._bound) >= MAX_BOUND:
            self._bound.clear()
        self._bound[key] = (basis, bound)
        return bound

    def _bundles(self, target: SpiffeId) -> tuple[TrustBundle, ...]:
        """Those of the own trust domain and of those that the caller's entries federate with, now."""
        domains = {self._trust.trust_domain}
        for entry in self._index.by_spiffe_id(target):
            domains.update(entry.federates_with)
        found = (self._trust.get(domain) for domain in sorted(domains, key=str))
        return tuple(bundle for bundle in found if bundle is not None)


@dataclass(frozen=True, slots=True)
class _Basis:
    """What the policies for a caller were made of: a key that is taken back must not vouch until the next revision."""

    state: State
    issuers: Mapping[str, str]
    bundles: tuple[TrustBundle, ...]

    def same(self, other: _Basis) -> bool:
        """Made of the same objects."""
        return (
            self.state is other.state
            and self.issuers is other.issuers
            and len(self.bundles) == len(other.bundles)
            and all(map(is_, self.bundles, other.bundles))
        )


def _vouchers(basis: _Basis) -> Vouchers:
    """Keys of issuers, and of trust domains."""
    from policy.tokens import Vouchers

    domains = {bundle.trust_domain.name: format_jwks(bundle) for bundle in basis.bundles}
    return Vouchers(issuers=basis.issuers, domains=domains)
