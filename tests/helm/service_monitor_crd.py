"""As much of the CustomResourceDefinition of Prometheus' operator as the chart's ServiceMonitors use, and no more."""

from __future__ import annotations

from tests.helm.charts import Object

_TEXT = {"type": "string"}
_TEXTS = {"type": "object", "additionalProperties": _TEXT}


def _of(**properties: Object) -> Object:
    return {"type": "object", "properties": properties}


_ENDPOINT = _of(port=_TEXT, path=_TEXT, interval=_TEXT)
_SPEC = _of(
    selector=_of(matchLabels=_TEXTS),
    namespaceSelector=_of(matchNames={"type": "array", "items": _TEXT}),
    endpoints={"type": "array", "items": _ENDPOINT},
)
CRD: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "servicemonitors.monitoring.coreos.com"},
    "spec": {
        "group": "monitoring.coreos.com",
        "scope": "Namespaced",
        "names": {"plural": "servicemonitors", "singular": "servicemonitor", "kind": "ServiceMonitor"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": _of(spec=_SPEC)},
            }
        ],
    },
}
