"""What policies hold in: trust domains, namespaces, providers, and who can be called. By it a caller decides alike."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response

from ca.api.policy.analyses import targets_of
from ca.api.policy.desk import Desk
from ca.api.policy.models import MeshDocument
from ca.api.policy.web import Route, large_answer
from ca.service.policy.grants import Rights
from policy.model import Target
from policy.state import State


class MeshRoutes:
    """One."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> tuple[Route, ...]:
        """All of them."""
        return (
            Route(
                verb="GET",
                path="/mesh",
                endpoint=self.show,
                summary="Show what policies hold in",
                answer=MeshDocument,
                cost=2,
            ),
        )

    async def show(self) -> Response:
        """What the configuration says of all policies, and the workloads that can be called: of namespaces that the
        caller may read."""
        rights = await self._desk.reader()
        state = self._desk.book.state
        return await large_answer(await asyncio.to_thread(_document, state, rights))


def _document(state: State, rights: Rights) -> dict[str, Any]:
    mesh = state.mesh
    return {
        "revision": state.revision,
        "trust_domains": list(mesh.trust_domains),
        "root_namespace": mesh.root_namespace,
        "open_namespaces": sorted(filter(rights.may_read, mesh.open_namespaces)),
        "providers": sorted(mesh.providers),
        "targets": [_target(target) for target in targets_of(state.snapshot, rights)],
    }


def _target(target: Target) -> dict[str, Any]:
    return {
        "spiffe_id": target.spiffe_id,
        "namespace": target.namespace,
        "labels": dict(target.labels),
        "references": [list(reference) for reference in target.references],
        "waypoint": target.waypoint,
        "normalized": target.normalized,
    }
