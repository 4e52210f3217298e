"""The bundles of federated trust domains: kept by administrators, read by agents too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from ca.api.convert.bundles import bundle_message, bundle_value, merged
from ca.api.convert.entries import optional_mask
from ca.api.convert.filters import page_token
from ca.api.convert.ids import trust_domain
from ca.api.convert.status import failed, ok
from ca.api.convert.text import named
from ca.errors import BurgeeError, Exhausted, InvalidArgument, NotFound
from ca.identity.bundle import TrustBundle
from ca.identity.spiffe_id import TrustDomain
from ca.proto.spire import server_bundle_pb2 as pb
from ca.proto.spire import server_bundle_pb2_grpc, types_pb2
from ca.service.follower import Follower
from ca.service.trust import Trust
from ca.store.store import Store
from ca.store.values import DeleteMode

MAX_BATCH = 1000
"""Bundles of one batch call."""

_MODES = {0: DeleteMode.RESTRICT, 1: DeleteMode.DELETE, 2: DeleteMode.DISSOCIATE}
_LIST = "`caadmin bundle list` shows those that there are"

Context = grpc.aio.ServicerContext[Any, Any]
Write = Callable[[TrustBundle], Awaitable[TrustBundle]]


class FederatedBundleMethods(server_bundle_pb2_grpc.BundleServicer):
    """Writers return when memory, and with it every handshake, has followed the commit."""

    def __init__(self, *, trust: Trust, store: Store, follower: Follower) -> None:
        self._trust = trust
        self._store = store
        self._follower = follower

    async def ListFederatedBundles(
        self, request: pb.ListFederatedBundlesRequest, context: Context
    ) -> pb.ListFederatedBundlesResponse:
        mask = optional_mask(request, "output_mask")
        page = await self._store.bundles.find(
            self._trust.trust_domain, request.page_size, page_token(request.page_size, request.page_token)
        )
        return pb.ListFederatedBundlesResponse(
            bundles=[bundle_message(bundle, mask) for bundle in page.items], next_page_token=page.next_token
        )

    async def GetFederatedBundle(self, request: pb.GetFederatedBundleRequest, context: Context) -> types_pb2.Bundle:
        domain = self._foreign(
            request.trust_domain,
            "getting a federated bundle for the server's own trust domain is not allowed",
            hint="GetBundle returns it",
        )
        bundle = self._trust.get(domain)
        if bundle is None:
            raise NotFound(f"there is no bundle of `{domain.name}`", reason="BUNDLE_NOT_FOUND", hint=_LIST)
        return bundle_message(bundle, optional_mask(request, "output_mask"))

    async def BatchCreateFederatedBundle(
        self, request: pb.BatchCreateFederatedBundleRequest, context: Context
    ) -> pb.BatchCreateFederatedBundleResponse:
        result = pb.BatchCreateFederatedBundleResponse.Result
        outcomes = await self._each(request, "creating", self._store.bundles.create)
        return pb.BatchCreateFederatedBundleResponse(results=_results(result, request, outcomes))

    async def BatchUpdateFederatedBundle(
        self, request: pb.BatchUpdateFederatedBundleRequest, context: Context
    ) -> pb.BatchUpdateFederatedBundleResponse:
        mask = optional_mask(request, "input_mask")

        async def alter(wanted: TrustBundle) -> TrustBundle:
            return await self._store.bundles.alter(wanted.trust_domain, lambda before: merged(before, wanted, mask))

        result = pb.BatchUpdateFederatedBundleResponse.Result
        outcomes = await self._each(request, "updating", alter)
        return pb.BatchUpdateFederatedBundleResponse(results=_results(result, request, outcomes))

    async def BatchSetFederatedBundle(
        self, request: pb.BatchSetFederatedBundleRequest, context: Context
    ) -> pb.BatchSetFederatedBundleResponse:
        result = pb.BatchSetFederatedBundleResponse.Result
        outcomes = await self._each(request, "setting", self._store.bundles.put)
        return pb.BatchSetFederatedBundleResponse(results=_results(result, request, outcomes))

    async def BatchDeleteFederatedBundle(
        self, request: pb.BatchDeleteFederatedBundleRequest, context: Context
    ) -> pb.BatchDeleteFederatedBundleResponse:
        _bounded(len(request.trust_domains))
        mode = _MODES.get(request.mode)
        if mode is None:
            raise InvalidArgument(f"unhandled delete mode `{request.mode}`", reason="DELETE_MODE")
        results = [await self._delete(name, mode) for name in request.trust_domains]
        await self._follower.catch_up()
        return pb.BatchDeleteFederatedBundleResponse(results=results)

    def _foreign(self, name: str, refusal: str, *, hint: str = "") -> TrustDomain:
        """A trust domain that is not our own."""
        domain = named("trust domain argument is not valid", lambda: trust_domain(name))
        if domain == self._trust.trust_domain:
            raise InvalidArgument(refusal, reason="OWN_TRUST_DOMAIN", hint=hint)
        return domain

    async def _each(self, request: Any, doing: str, write: Write) -> list[TrustBundle | BurgeeError]:
        """Every bundle of the request in a transaction of its own; one outcome for each, in order."""
        _bounded(len(request.bundle))
        outcomes: list[TrustBundle | BurgeeError] = []
        for message in request.bundle:
            try:
                outcomes.append(await write(self._wanted(message, doing)))
            except BurgeeError as error:
                outcomes.append(error)
        await self._follower.catch_up()
        return outcomes

    def _wanted(self, message: types_pb2.Bundle, doing: str) -> TrustBundle:
        refusal = f"{doing} a federated bundle for the server's own trust domain is not allowed"
        domain = self._foreign(message.trust_domain, refusal)
        return named("failed to convert bundle", lambda: bundle_value(message, domain))

    async def _delete(self, name: str, mode: DeleteMode) -> pb.BatchDeleteFederatedBundleResponse.Result:
        """The trust domain comes back by its name, or as it was given where it is none."""
        result = pb.BatchDeleteFederatedBundleResponse.Result
        try:
            domain = self._foreign(name, "removing the bundle for the server trust domain is not allowed")
            name = domain.name
            if not await self._store.bundles.delete(domain, mode):
                raise NotFound(f"there is no bundle of `{domain.name}`", reason="BUNDLE_NOT_FOUND", hint=_LIST)
        except BurgeeError as error:
            return result(status=failed(error), trust_domain=name)
        return result(status=ok(), trust_domain=name)


def _results(result: Any, request: Any, outcomes: list[TrustBundle | BurgeeError]) -> list[Any]:
    mask = optional_mask(request, "output_mask")
    return [
        result(status=failed(outcome))
        if isinstance(outcome, BurgeeError)
        else result(status=ok(), bundle=bundle_message(outcome, mask))
        for outcome in outcomes
    ]


def _bounded(count: int) -> None:
    if count > MAX_BATCH:
        raise Exhausted(f"{count} items in one call; at most {MAX_BATCH} are accepted", reason="BATCH_TOO_LARGE")
