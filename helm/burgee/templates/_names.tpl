{{/* What everything is called, and by which labels it is found. */}}

{{- define "burgee.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "burgee.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "burgee.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "burgee.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "burgee.server" -}}{{ include "burgee.fullname" . }}-server{{- end -}}
{{- define "burgee.agent" -}}{{ include "burgee.fullname" . }}-agent{{- end -}}

{{/* Cluster-wide names: two releases of one name in two namespaces are two. */}}
{{- define "burgee.clusterwide" -}}
{{- printf "%s-%s" (include "burgee.fullname" .) .Release.Namespace | trunc 90 | trimSuffix "-" -}}
{{- end -}}

{{- define "burgee.agentNamespace" -}}{{ default .Release.Namespace .Values.agent.namespace }}{{- end -}}

{{- define "burgee.serverAccount" -}}{{ default (include "burgee.server" .) .Values.server.serviceAccount.name }}{{- end -}}
{{- define "burgee.agentAccount" -}}{{ default (include "burgee.agent" .) .Values.agent.serviceAccount.name }}{{- end -}}

{{/* Labels by which pods are selected; they never change. Arguments: the root, the component. */}}
{{- define "burgee.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "burgee.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "burgee.labels" -}}
{{- $root := index . 0 -}}
{{ include "burgee.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* An image by its digest, else by its tag. Arguments: its values, the tag where none is given. */}}
{{- define "burgee.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default (index . 1) $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* Where pods run and what they may use, as server and agent have it alike. Argument: the values of either. */}}
{{- define "burgee.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
terminationGracePeriodSeconds: {{ .terminationGracePeriodSeconds }}
{{- end -}}

{{- define "burgee.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Alive and ready as the program itself says. A server whose keys are out of reach lives on, and is not ready. */}}
{{- define "burgee.probes" -}}
startupProbe:
  httpGet: {path: /live, port: metrics}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /live, port: metrics}
  periodSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /ready, port: metrics}
  periodSeconds: 5
  failureThreshold: 2
{{- end -}}
