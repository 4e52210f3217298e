"""The REST face of policy, put onto the application."""

from __future__ import annotations

from fastapi import FastAPI

from ca.api.policy import authzen
from ca.api.policy.administration import AdministrationRoutes
from ca.api.policy.analyses import AnalysisRoutes
from ca.api.policy.decisions import DecisionRoutes
from ca.api.policy.desk import Desk
from ca.api.policy.following import FollowingRoutes
from ca.api.policy.mesh import MeshRoutes
from ca.api.policy.objects import ObjectRoutes
from ca.api.policy.openapi import OpenApiRoute
from ca.api.policy.parts import PolicyParts
from ca.api.policy.questions import QuestionRoutes
from ca.api.policy.revisions import RevisionRoutes
from ca.api.policy.web import Route, add


def mount(app: FastAPI, parts: PolicyParts) -> None:
    """Adds every route; each has a row in the tier table."""
    desk = Desk(parts)
    routes = all_routes(desk)
    described = OpenApiRoute(app, routes, app.version)
    for route in (*routes, described.route()):
        add(app, route, desk.enter)
    authzen.mount(app, desk)


def all_routes(desk: Desk) -> tuple[Route, ...]:
    """In the order of the reference."""
    kinds = (
        ObjectRoutes,
        RevisionRoutes,
        QuestionRoutes,
        AnalysisRoutes,
        MeshRoutes,
        DecisionRoutes,
        FollowingRoutes,
        AdministrationRoutes,
    )
    return tuple(route for kind in kinds for route in kind(desk).routes())
