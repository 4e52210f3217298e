"""Envoy's secret discovery service, v3."""

from __future__ import annotations

from collections.abc import Callable

from ca.ports import Clock
from sds.cache import Cache, Subscription
from sds.envoy_answers import Answers
from sds.envoy_service import EnvoyService, S
from sds.envoy_status import SdsClients
from sds.envoy_subscriber import Subscriber
from sds.request_pace import RequestPace
from sds.secrets import Form, SecretNames, Secrets
from sds.workloads import Caller, Context, Workloads


class EnvoySds(EnvoyService):
    """The service."""

    name = "envoy.service.secret.v3.SecretDiscoveryService"
    methods = ("StreamSecrets", "DeltaSecrets", "FetchSecrets")
    needs_svid = True

    def __init__(
        self,
        *,
        peer_of: Callable[[Context], Caller],
        workloads: Workloads,
        cache: Cache,
        clients: SdsClients,
        clock: Clock,
        pace: RequestPace | None = None,
        names: SecretNames | None = None,
        validator: Form = Form.SPIFFE,
    ) -> None:
        super().__init__(peer_of=peer_of, workloads=workloads, clients=clients, clock=clock, pace=pace)
        self._cache = cache
        self._names = names or SecretNames()
        self._validator = validator

    def stream(self, kind: type[S]) -> S:
        return kind(names=self._names, validator=self._validator)

    async def answers(self, subscription: Subscription, stream: Subscriber) -> Answers:
        view = subscription.view
        content = self._cache.content(view)
        return Secrets(content=content, settled=view.settled, names=stream.names, form=stream.form)

    def settled(self, subscription: Subscription) -> bool:
        return subscription.view.settled
