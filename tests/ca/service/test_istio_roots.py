"""The roots in every namespace: looked at closely where something changed, and nowhere else."""

from __future__ import annotations

from typing import Any, cast
from urllib.parse import urlsplit

from ca.errors import AlreadyExists, NotFound
from ca.identity.bundle import TrustBundle
from ca.identity.spiffe_id import TrustDomain
from ca.publish.kube_copy import MARK
from ca.runtime.kube import KubeClient
from ca.runtime.kube_watch import Listing, Object
from ca.service.istio_roots import FOREIGN, KEY, NAME, RootConfigMaps
from ca.service.trust import Trust

TD = TrustDomain("example.org")


class Api:
    """ConfigMaps of some namespaces; `looked` are those that were read whole."""

    def __init__(self, *namespaces: str) -> None:
        self.namespaces = list(namespaces)
        self.maps: dict[str, Object] = {}
        self.looked: list[str] = []
        self.version = 0

    def touch(self, namespace: str, **data: str) -> None:
        """As a tenant would."""
        found = self.maps[namespace]
        found["data"] |= data
        self._stamp(found)

    async def list(self, path: str, *, metadata_only: bool = False) -> Listing:
        if urlsplit(path).path.endswith("/namespaces"):
            return Listing([{"metadata": {"name": name}} for name in self.namespaces], "1")
        assert metadata_only, "tenants may have put a megabyte into each"
        return Listing([{"metadata": one["metadata"]} for one in self.maps.values()], "1")

    async def get(self, path: str) -> Object:
        name = path.split("/")[4]
        self.looked.append(name)
        if name not in self.maps:
            raise NotFound("none", reason="KUBE_NOT_FOUND")
        return self.maps[name]

    async def create(self, path: str, body: Any) -> Object:
        name = path.split("/")[4]
        if name in self.maps:
            raise AlreadyExists("there", reason="KUBE_EXISTS")
        self.maps[name] = {"metadata": {**body["metadata"], "namespace": name}, "data": dict(body["data"])}
        return self._stamp(self.maps[name])

    async def patch(self, path: str, body: Any) -> Object:
        found = self.maps[path.split("/")[4]]
        found["data"] |= body["data"]
        return self._stamp(found)

    def _stamp(self, found: Object) -> Object:
        self.version += 1
        found["metadata"]["resourceVersion"] = str(self.version)
        return found


async def test_what_nobody_touched_is_not_read_again() -> None:
    api, trust = Api("a", "b"), Trust(TD)
    trust.put(TrustBundle(trust_domain=TD))
    roots = RootConfigMaps(cluster="c", api=cast(KubeClient, api), namespaces=("*",), trust=trust)
    await roots.publish()
    assert sorted(api.maps) == ["a", "b"]
    assert {one["metadata"]["name"] for one in api.maps.values()} == {NAME}
    api.looked.clear()
    await roots.publish()
    assert not api.looked
    api.touch("a", other="x" * 1000)
    await roots.publish()
    assert api.looked == ["a"]
    api.touch("b", **{KEY: "another root"})
    await roots.publish()
    assert api.maps["b"]["data"][KEY] == api.maps["a"]["data"][KEY]
    api.looked.clear()
    del api.maps["a"]
    api.namespaces.append("c")
    await roots.publish()
    assert sorted(api.maps) == ["a", "b", "c"]
    assert "b" not in api.looked


async def test_one_of_somebody_else_is_not_read_again_until_somebody_touches_it() -> None:
    api, trust = Api("a"), Trust(TD)
    trust.put(TrustBundle(trust_domain=TD))
    api.maps["a"] = {"metadata": {"name": NAME, "namespace": "a", "resourceVersion": "x"}, "data": {KEY: "y" * 1000}}
    roots = RootConfigMaps(cluster="c", api=cast(KubeClient, api), namespaces=("*",), trust=trust)
    for _ in range(3):
        await roots.publish()
        problem = roots.check()
        assert problem is not None
        assert problem.reason == FOREIGN
    assert api.looked == ["a"]
    api.maps["a"]["metadata"]["annotations"] = {MARK: TD.name}
    api.touch("a")
    await roots.publish()
    assert roots.check() is None
    assert api.maps["a"]["data"][KEY] != "y" * 1000
