"""Every fuzz target by name."""

from tests.fuzz.harness import Target
from tests.fuzz.targets import (
    certificates,
    clouds,
    cluster,
    documents,
    engines,
    gate,
    istio,
    messages,
    names,
    possession,
    requests,
    streams,
    tokens,
    tpm,
    workloads,
)

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (
        names,
        requests,
        certificates,
        documents,
        engines,
        tokens,
        streams,
        messages,
        gate,
        istio,
        tpm,
        workloads,
        clouds,
        cluster,
        possession,
    )
    for target in module.TARGETS
}
