"""What a controller would do now, told and not done."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ca.controller.config import ControllerConfig
from ca.controller.controller import Controller
from ca.controller.reconciler import Survey
from ca.errors import Unavailable
from ca.proto.spire import types_pb2
from ca.runtime.kube_mirror import Mirror

WAIT_SECONDS = 60.0


async def dry_run(config: ControllerConfig) -> int:
    """Prints a line for each entry. Raises what keeps it from seeing cluster or server whole."""
    controller = Controller(config.model_copy(update={"lease": None, "metrics_address": None}))
    try:
        await _seen(controller, [*controller.mirrors.values()])
        more = [
            *([controller.services] if controller.world.wants_services else ()),
            *([controller.node_specs] if controller.world.wants_node_specs else ()),
        ]
        await _seen(controller, more)
        controller.world.touch_all()
        survey = await controller.reconciler.survey()
    finally:
        await controller.tasks.close()
        await controller.channel.close()
        controller.kube.close()
    for line in told(survey):
        print(line)
    permitted = controller.guard.permits(len(survey.guarded), controller.reconciler.entries or 0)
    if not permitted:
        print(f"the deletion of {len(survey.guarded)} of them would be refused: too many at once", file=sys.stderr)
    return 0


async def _seen(controller: Controller, mirrors: Sequence[Mirror[Any]]) -> None:
    """Until each of them was seen whole. Raises what is in the way."""
    for mirror in mirrors:
        controller.tasks.spawn(mirror.what, mirror.run)
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while not all(mirror.synced for mirror in mirrors):
                for mirror in mirrors:
                    if mirror.problem is not None:
                        raise mirror.problem
                await asyncio.sleep(0.02)
    except TimeoutError as error:
        raise Unavailable("the Kubernetes API does not answer in time", reason="NOT_SYNCED") from error


def told(survey: Survey) -> Iterator[str]:
    """Lines for people and `grep`."""
    changes = survey.changes
    for operation, items in (("create", changes.create), ("update", changes.update)):
        for message, _ in items:
            yield f"{operation} {_words(message)}"
    for entry_id in (*survey.free, *survey.guarded):
        yield f"delete {entry_id}"
    counts = f"{len(changes.create)} to create, {len(changes.update)} to update, {survey.deletions} to delete"
    yield f"{counts}; nothing was changed"


def _words(message: types_pb2.Entry) -> str:
    selectors = " ".join(f"{one.type}:{one.value}" for one in message.selectors)
    parent, own = message.parent_id, message.spiffe_id
    return (
        f"{message.id} spiffe://{own.trust_domain}{own.path} "
        f"below spiffe://{parent.trust_domain}{parent.path} for {selectors}"
    )
