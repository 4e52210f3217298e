{{- define "burgee.isIstioCa" -}}
{{- if and .Values.server.enabled .Values.istio.enabled }}true{{ end -}}
{{- end -}}

{{- define "burgee.istio" -}}{{ include "burgee.fullname" . }}-istio{{- end -}}

{{/* The part of the server's configuration that is about Istio. */}}
{{- define "burgee.istioConfig" -}}
{{- $istio := .Values.istio -}}
{{- if empty $istio.namespaces }}{{ fail "istio.namespaces: say whose service accounts get certificates" }}{{ end -}}
{{- $service := printf "%s.%s.svc" (include "burgee.istio" .) .Release.Namespace -}}
{{- $cluster := dict
  "namespaces" $istio.namespaces
  "impersonators" $istio.impersonators
  "audiences" $istio.audiences
  "publish_root" $istio.publishRoot
-}}
{{- dict
  "bind_port" 15012
  "dns_names" (prepend $istio.dnsNames $service)
  "clusters" (dict $istio.clusterId $cluster)
  "max_ttl_seconds" $istio.maxTtlSeconds
  | toYaml -}}
{{- end -}}

{{/* What the server may do in a namespace, or in all of them (where the second argument says so). */}}
{{- define "burgee.istioRules" -}}
{{- $istio := (index . 0).Values.istio -}}
{{- $everywhere := index . 1 -}}
{{- if $istio.impersonators }}
- apiGroups: [""]
  resources: [pods]
  verbs: [list]
{{- end }}
{{- if $istio.publishRoot }}
{{- if $everywhere }}
- apiGroups: [""]
  resources: [namespaces]
  verbs: [list]
{{- end }}
- apiGroups: [""]
  resources: [configmaps]
  resourceNames: [istio-ca-root-cert]
  verbs: [{{ ternary "get, list, patch" "get, patch" $everywhere }}]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [create]
{{- end }}
{{- end -}}
