"""Every fuzz target by name."""

from tests.fuzz.harness import Target
from tests.fuzz.targets import (
    certificates,
    clouds,
    cluster,
    decisions,
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
        decisions,
    )
    for target in module.TARGETS
}
