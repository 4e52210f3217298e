{{- define "burgee.controls" -}}
{{- if and .Values.server.enabled .Values.controller.enabled }}true{{ end -}}
{{- end -}}

{{- define "burgee.controller" -}}{{ include "burgee.fullname" . }}-controller{{- end -}}

{{/* The controller's configuration: what the chart decides, over what `controller.config` says. */}}
{{- define "burgee.controllerConfig" -}}
{{- $owned := dict
  "trust_domain" .Values.trustDomain
  "cluster" .Values.clusterName
  "server" (dict "admin_socket" "/run/burgee/admin/admin.sock")
  "lease" (dict "namespace" .Release.Namespace "name" (include "burgee.controller" .))
  "metrics_address" "0.0.0.0:9990"
-}}
{{- toYaml (mergeOverwrite (deepCopy .Values.controller.config) $owned) -}}
{{- end -}}

{{/* The signer of pods' certificates, where there is one. */}}
{{- define "burgee.podSigner" -}}
{{- if hasKey .Values.controller.config "pod_certificates" -}}
{{- with .Values.controller.config.pod_certificates }}{{ default "burgee.dev/svid" .signer_name }}{{ else }}burgee.dev/svid{{ end -}}
{{- end -}}
{{- end -}}
