"""As much of the CustomResourceDefinitions of Prometheus' operator as the chart's objects use, and no more."""

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
_RULE = _of(alert=_TEXT, expr=_TEXT, **{"for": _TEXT})
_GROUP = _of(name=_TEXT, rules={"type": "array", "items": _RULE})
_RULES = _of(groups={"type": "array", "items": _GROUP})


def _crd(kind: str, spec: Object) -> Object:
    one = kind.lower()
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": _of(spec=spec)}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{one}s.monitoring.coreos.com"},
        "spec": {
            "group": "monitoring.coreos.com",
            "scope": "Namespaced",
            "names": {"plural": f"{one}s", "singular": one, "kind": kind},
            "versions": [version],
        },
    }


CRDS = (_crd("ServiceMonitor", _SPEC), _crd("PrometheusRule", _RULES))
