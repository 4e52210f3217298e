"""What the server must be allowed in a cluster whose proxies it serves; `caadmin doctor server` looks at it."""

from __future__ import annotations

from collections.abc import Iterator

from ca.runtime.istio_config import ALL_NAMESPACES, IstioClusterConfig
from ca.runtime.kube_permissions import Permission
from ca.service.istio_roots import NAME

MAX_NAMESPACES = 20
"""Of a longer list the first are looked at: a question for each."""


def needed(config: IstioClusterConfig) -> list[Permission]:
    """As the configuration has it, feature by feature."""
    everywhere = ALL_NAMESPACES in config.namespaces
    namespaces = [""] if everywhere else list(config.namespaces[:MAX_NAMESPACES])
    found = [_one("create", "tokenreviews", "proxies' tokens are reviewed", group="authentication.k8s.io")]
    if config.impersonators:
        homes = dict.fromkeys(account.partition("/")[0] for account in config.impersonators)
        found += [_one("get", "pods", "the pod of a node's proxy is looked up", namespace=home) for home in homes]
        why = "whose pods run beside a node's proxy is looked up"
        found += [_one("list", "pods", why, namespace=namespace) for namespace in namespaces]
    if config.publish_root:
        found += [one for namespace in namespaces for one in _roots(namespace)]
    if config.publish_root and everywhere:
        found.append(_one("list", "namespaces", "each namespace has the trust bundle"))
        found.append(_one("list", "configmaps", "the trust bundle's copies are found by their name", named=NAME))
    return found


def _roots(namespace: str) -> Iterator[Permission]:
    for verb in ("get", "patch"):
        yield _one(verb, "configmaps", "the trust bundle is kept there", namespace=namespace, named=NAME)
    yield _one("create", "configmaps", "the trust bundle is put there", namespace=namespace)


def _one(verb: str, resource: str, why: str, *, group: str = "", namespace: str = "", named: str = "") -> Permission:
    return Permission(
        verb=verb, resource=resource, group=group, namespace=namespace, named=named, who="server", why=why
    )
