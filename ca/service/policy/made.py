"""The book of policies of a server, made of its configuration and its store."""

from __future__ import annotations

from ca.identity.spiffe_id import SpiffeId
from ca.ports import Clock
from ca.runtime.policy_config import PolicyConfig
from ca.runtime.server_config import ServerConfig
from ca.service.policy.book import PolicyBook
from ca.service.policy.compile import Settings
from ca.service.policy.held import Held
from ca.service.policy.key_sets import KeySets
from ca.store.authorized import AuthorizedIndex
from ca.store.store import Store
from policy.model import Mesh


async def policy_book(
    config: ServerConfig, *, store: Store, index: AuthorizedIndex, clock: Clock, server: str
) -> PolicyBook:
    """With what the store has in force."""
    held = Held(store=store, index=index, settings=settings_of(config), clock=clock)
    key_sets = KeySets(store=store, config=config.policy, clock=clock, wanted=lambda: held.addresses)
    await key_sets.load()
    await held.load()
    held.on_changed(key_sets.wake)
    key_sets.on_changed(held.tell)
    return PolicyBook(
        store=store, held=held, key_sets=key_sets, clock=clock, server=server, admins=policy_admins(config.policy)
    )


def settings_of(config: ServerConfig) -> Settings:
    """What holds for all policies."""
    policy = config.policy
    own = (config.trust_domain, *(alias for alias in policy.trust_domain_aliases if alias != config.trust_domain))
    return Settings(
        mesh=Mesh(
            trust_domains=tuple(dict.fromkeys(own)),
            root_namespace=policy.root_namespace,
            open_namespaces=frozenset(policy.open_namespaces),
            providers=frozenset(policy.ext_authz_providers),
        ),
        jwks_hosts=frozenset(policy.jwks_hosts),
        limits=policy.limits,
    )


def policy_admins(config: PolicyConfig) -> frozenset[SpiffeId]:
    """Who may do everything with policies, without a grant."""
    return frozenset(SpiffeId.parse(admin) for admin in config.admins)
