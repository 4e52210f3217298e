"""What answers a proxy's question about a request to its own workload. It needs the engine, which an agent that nobody
asks never loads."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from ca.errors import InvalidArgument, Unavailable
from ca.ports import Clock
from ca.runtime.decision_log import DecisionLog
from policy.envoy_verified import name_of, verified_by
from policy.ext_authz import Bound, Refusal, Said, Verdict, decide, refused
from policy.ext_authz_wire import answer, parsed
from policy.tokens import Vouchers
from sds.askers import Asker, target_of
from sds.policy_filters import tokens_of
from sds.policy_held import HeldPolicies
from sds.policy_read import Matched, Policies
from sds.views import Content

MAX_BOUND = 64
"""Identities of one process whose policies are kept at hand."""


class Provider(Protocol):
    """Somebody else who must agree, for CUSTOM policies."""

    async def agrees(self, check: bytes) -> bool:
        """Raises Unavailable where it cannot be asked in time."""
        ...


class Checks:
    """`providers` by name; a policy that names another is a refusal."""

    def __init__(
        self,
        *,
        held: HeldPolicies,
        clock: Clock,
        log: DecisionLog,
        providers: Callable[[], Mapping[str, Provider]] = dict,
    ) -> None:
        self._held, self._clock, self._log, self._providers = held, clock, log, providers

    async def check(self, raw: bytes, metadata: Iterable[tuple[str, str | bytes]], asker: Asker) -> bytes:
        """The answer, serialized. Raises InvalidArgument, Denied (TARGET_…, NO_IDENTITY), Unavailable: refusals all."""
        try:
            request, said, wanted = parsed(raw, metadata)
        except ValueError as error:
            raise InvalidArgument(f"no check: {error}", reason="CHECK_MALFORMED") from None
        bound = await self._bound(asker, target_of(asker.ids, wanted), said)
        if said.jwt and (by := verified_by(request.attributes)) != bound.tokens:
            bound = await self._bound_before(asker, bound.target.spiffe_id, by) or bound
        now = self._clock.now()
        verdict = decide(request, bound, said, now=now)
        if verdict.decision is not None and verdict.decision.providers:
            verdict = await self._agreed(verdict, verdict.decision.providers, raw)
        name = said.decision or f"agent-{secrets.token_hex(16)}"
        target, agent = bound.target.spiffe_id, self._log.agent()
        known: dict[str, Any] = {"target": target, "revision": bound.revision, "agent": agent}
        self._log.add(verdict.record(id=name, at=now, **known))
        answered: bytes = answer(verdict, name, revision=bound.revision).SerializeToString()
        return answered

    async def _agreed(self, verdict: Verdict, names: Iterable[str], raw: bytes) -> Verdict:
        known = self._providers()
        for name in names:
            provider = known.get(name)
            if provider is None:
                detail = f"the provider `{name}` is not configured on this agent"
                return refused(verdict, detail)
            try:
                agrees = await provider.agrees(raw)
            except Unavailable as error:
                return refused(verdict, error.detail)
            if not agrees:
                return refused(verdict, f"the provider `{name}` refused", Refusal.PROVIDER_REFUSED)
        return verdict

    async def _bound(self, asker: Asker, target: str, said: Said) -> Bound:
        """The policies in force for one of the caller's identities."""
        policies = await self._held.asked()
        content = asker.content
        if policies is None:
            raise Unavailable(f"nothing is decided: {self._held.detail}", reason="POLICY_NOT_DELIVERED")
        memo = asker.memo
        if not isinstance(memo, _Memo) or memo.content is not content or memo.policies is not policies:
            memo = asker.memo = _Memo(content, policies)
        bound = memo.bound.get((target, said.jwt))
        if bound is None:
            matched = policies.matched(target, asker.subscription.view.selectors)
            vouchers = Vouchers(issuers=matched.keys, domains=_keys(content))
            tokens = name_of(tokens_of(matched, content.bundles)) if said.jwt else ""
            bound = await _bound_to(policies, matched, vouchers, tokens)
            if len(memo.bound) >= MAX_BOUND:
                memo.bound.clear()
            memo.bound[target, said.jwt] = bound
        return bound

    async def _bound_before(self, asker: Asker, target: str, by: str) -> Bound | None:
        """The policies by whose rules the proxy verified tokens, if they were in force a moment ago."""
        now = self._clock.monotonic()
        given = self._held.given.find(by, now)
        if given is None:
            return None
        matched = given.policies.matched(target, asker.subscription.view.selectors)
        if name_of(tokens_of(matched, given.bundles)) != by:
            return None
        self._held.given.withdraw(now, [by])  # the proxy may have had no stream on which it was given another
        return await _bound_to(given.policies, matched, Vouchers(), by)


async def _bound_to(policies: Policies, matched: Matched, vouchers: Vouchers, tokens: str) -> Bound:
    return Bound(
        revision=policies.revision,
        snapshot=await asyncio.to_thread(policies.snapshot, matched),
        target=matched.target,
        rules=matched.rules,
        unknown=matched.unknown,
        vouchers=vouchers,
        tokens=tokens,
    )


class _Memo:
    """What was made for a content and a set of policies."""

    def __init__(self, content: Content, policies: object) -> None:
        self.content, self.policies = content, policies
        self.bound: dict[tuple[str, bool], Bound] = {}


def _keys(content: Content) -> dict[str, str]:
    """Of the trust domains whose JWT-SVIDs the workload may verify."""
    return {forms.trust_domain.name: forms.jwks.decode("utf-8") for forms in content.bundles}
