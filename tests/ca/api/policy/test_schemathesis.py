"""Requests made from the OpenAPI document, right ones and wrong ones: no answer is ours to blame, or undocumented."""

from __future__ import annotations

import asyncio
import os
import warnings
from typing import Any

import httpx
import hypothesis
import pytest
from hypothesis import HealthCheck, Phase

from tests.ca.api.policy.conftest import policy, workload
from tests.ca.api.policy.http import Client
from tests.support.server import RunningServer

LONG = bool(os.environ.get("BURGEE_TEST_LONG"))
EXAMPLES = 150 if LONG else 8


def run(socket: str, document: dict[str, Any]) -> tuple[int, list[str]]:
    """Tries every operation; returns how many requests were sent, and what Schemathesis found of each operation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import schemathesis
        from schemathesis.checks import not_a_server_error
        from schemathesis.generation import GenerationMode
        from schemathesis.specs.openapi.checks import (
            content_type_conformance,
            response_schema_conformance,
            status_code_conformance,
        )

        checks: Any = [
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
        ]
        schema = schemathesis.openapi.from_dict(document)
        sent, failures = 0, []
        with httpx.Client(transport=httpx.HTTPTransport(uds=socket), base_url="http://x", timeout=30) as client:
            for found in schema.get_all_operations():
                operation: Any = found.ok()
                for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

                    def attempt(case: Any) -> None:
                        nonlocal sent
                        sent += 1
                        answer = client.request(**request_of(case))
                        case.validate_response(answer, checks=checks)

                    try:
                        strategy = operation.as_strategy(generation_mode=mode)
                        bounded(hypothesis.given(case=strategy)(attempt))()
                    except hypothesis.errors.Unsatisfiable:
                        pass  # no request could be wrong here
                    except (Exception, BaseExceptionGroup) as error:
                        failures.append(f"{operation.label} ({mode.value}): {told(error)}")
        return sent, failures


def told(error: BaseException) -> str:
    """With what is inside."""
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return "\n".join([str(error), *map(told, inner)])


def request_of(case: Any) -> dict[str, Any]:
    """As httpx takes it; waiting is cut short, as nobody writes meanwhile."""
    asked = case.as_transport_kwargs(base_url="http://x")
    if case.operation.path.endswith("/watch"):
        asked["params"] = {**(asked.get("params") or {}), "wait_seconds": "0"}
    data = asked.pop("data", None)
    if data is not None:
        asked["content"] = data
    return {name: asked[name] for name in ("method", "url", "params", "headers", "content", "json") if name in asked}


def bounded(test: Any) -> Any:
    return hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=not LONG,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )(test)


@pytest.mark.timeout(1200 if LONG else 120)
async def test_no_request_of_the_document_gets_an_answer_that_is_ours_to_blame(
    server: RunningServer, local: Client
) -> None:
    for path, body in (("/workloads/a/a", workload("a", "a")), ("/authorization-policies/a/a", policy("a", "a"))):
        assert (await local("PUT", path, body)).status == 201
    document = (await local("GET", "/openapi.json")).body
    sent, failures = await asyncio.to_thread(run, str(server.config.admin_socket_path), document)
    assert not failures, "\n\n".join(failures)
    assert sent >= EXAMPLES * 25
