"""The OpenAPI 3.1 document of the REST face: what FastAPI knows of the routes, and what they say of themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from ca.api.policy.models import ProblemDocument
from ca.api.policy.web import PREFIX, Route, answer

REFERENCE = "#/components/schemas/{model}"


class OpenApiRoute:
    """The document, made when it is first asked for."""

    def __init__(self, app: FastAPI, routes: Sequence[Route], version: str) -> None:
        self._app, self._routes, self._version = app, routes, version
        self._made: dict[str, Any] | None = None

    def route(self) -> Route:
        """That of the document itself."""
        return Route(
            verb="GET",
            path="/openapi.json",
            endpoint=self.show,
            summary="This document",
            answer=AnyDocument,
        )

    async def show(self) -> Response:
        """OpenAPI 3.1, for whoever may call at all."""
        if self._made is None:
            self._made = document(self._app, self._routes, self._version)
        return answer(self._made)


class AnyDocument(BaseModel):
    """Any JSON object."""

    model_config = {"extra": "allow"}


def document(app: FastAPI, routes: Sequence[Route], version: str) -> dict[str, Any]:
    """Of the routes of policy alone."""
    mine = [route for route in app.routes if getattr(route, "path", "").startswith(PREFIX)]
    found = get_openapi(
        title="Burgee policy",
        version=version,
        openapi_version="3.1.0",
        summary="Who may call whom: written, asked and explained.",
        routes=mine,
    )
    models: set[type[BaseModel]] = {ProblemDocument}
    for route in routes:
        models |= {model for model in route.bodies.values() if not isinstance(model, Mapping)}
    _, extra = models_json_schema(
        [(model, "validation") for model in sorted(models, key=lambda model: model.__name__)], ref_template=REFERENCE
    )
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    for name, schema in extra["$defs"].items():
        schemas.setdefault(name, schema)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path in found["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    found["components"]["schemas"] = dict(sorted(schemas.items()))
    found["components"]["securitySchemes"] = {
        "svid": {"type": "mutualTLS", "description": "An X.509-SVID. Not on the admin socket."}
    }
    found["security"] = [{"svid": []}, {}]
    return found
