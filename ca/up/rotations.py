"""Watches the demo's Envoys take over new certificates."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

from ca.errors import Unavailable
from ca.up.demo import Demo, Service
from ca.up.report import Report, Rotation

_POLL_SECONDS = 1.0


async def show_rotations(demo: Demo, report: Report) -> None:
    """Until cancelled: report each change of certificate, with the fate of a request made right after it."""
    serials = {name: await _serial(service) for name, service in demo.services.items()}
    while True:
        await asyncio.sleep(_POLL_SECONDS)
        for service in _in_order(demo):
            rotation = await _rotation(demo, service, serials)
            if rotation is not None:
                report.rotation(rotation)


def _in_order(demo: Demo) -> Sequence[Service]:
    return [demo.services[name] for name in sorted(demo.services, reverse=True)]


async def _serial(service: Service) -> str:
    certificate = await service.envoy.certificate()
    return certificate.serial if certificate else ""


async def _rotation(demo: Demo, service: Service, serials: dict[str, str]) -> Rotation | None:
    try:
        certificate = await service.envoy.certificate()
    except Unavailable:  # Envoy is busy or gone; its supervisor tells which
        return None
    if certificate is None or certificate.serial == serials[service.name]:
        return None
    serials[service.name] = certificate.serial
    return Rotation(
        service=service.name,
        spiffe_id=certificate.spiffe_id,
        serial=certificate.serial,
        not_after=certificate.not_after.isoformat(),
        remaining_seconds=int((certificate.not_after - datetime.now(UTC)).total_seconds()),
        request_status=await demo.request_status(),
    )
