{{/* The agents' configuration: what the chart decides, over what `agent.config` says. */}}
{{- define "burgee.agentConfig" -}}
{{- $agent := .Values.agent -}}
{{- $own := printf "%s.%s.svc:%v" (include "burgee.server" .) .Release.Namespace .Values.server.service.port -}}
{{- $servers := ternary (list $own) $agent.servers (empty $agent.servers) -}}
{{- if and (not .Values.server.enabled) (empty $agent.servers) -}}
{{- fail "agent.servers: name the server, for none runs here (server.enabled is false)" -}}
{{- end -}}
{{- $psat := dict "cluster" .Values.clusterName "token_path" "/var/run/secrets/burgee/node/token" -}}
{{- $owned := dict
  "trust_domain" .Values.trustDomain
  "data_dir" "/var/lib/burgee/agent"
  "servers" $servers
  "workload_socket" (printf "/run/burgee/sockets/%s" $agent.socket.name)
  "metrics_address" "0.0.0.0:9989"
  "trust" (include "burgee.trust" . | fromYaml)
  "node_attestor" (dict "k8s_psat" $psat)
  "workload_attestors" (dict "unix" (dict "path" false) "k8s" (include "burgee.kubelet" . | fromYaml))
  "cache" (dict "directory" "/var/cache/burgee/sealed")
  "admin_socket" (dict "path" "/run/burgee/admin/agent/admin.sock")
-}}
{{- toYaml (mergeOverwrite (deepCopy $agent.config) $owned) -}}
{{- end -}}

{{/* The ConfigMap from which agents learn which server to believe; this chart's own unless another source is named. */}}
{{- define "burgee.bundleConfigMap" -}}
{{- with .Values.agent.trust -}}
{{- if not (or .bundleUrl .insecureBootstrap) -}}
{{- default (printf "%s-bundle" (include "burgee.fullname" $)) .configMap.name -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Whether this chart makes that ConfigMap. */}}
{{- define "burgee.ownsBundle" -}}
{{- if and (include "burgee.bundleConfigMap" .) (not .Values.agent.trust.configMap.name) .Values.server.enabled }}true{{ end -}}
{{- end -}}

{{- define "burgee.trust" -}}
{{- $trust := .Values.agent.trust -}}
{{- $named := list -}}
{{- if $trust.configMap.name }}{{ $named = append $named "configMap" }}{{ end -}}
{{- if $trust.bundleUrl }}{{ $named = append $named "bundleUrl" }}{{ end -}}
{{- if $trust.insecureBootstrap }}{{ $named = append $named "insecureBootstrap" }}{{ end -}}
{{- if gt (len $named) 1 }}{{ fail (printf "agent.trust: name one source, not %s" (join " and " $named)) }}{{ end -}}
{{- if and (not .Values.server.enabled) (empty $named) -}}
{{- fail "agent.trust: name a source, for no server runs here that would fill this chart's own" -}}
{{- end -}}
{{- if $trust.bundleUrl -}}
bundle_url: {{ $trust.bundleUrl | quote }}
{{- else if $trust.insecureBootstrap -}}
insecure_bootstrap: true
{{- else -}}
bundle_file: /etc/burgee/trust/bundle.crt
{{- end -}}
{{- end -}}

{{- define "burgee.kubelet" -}}
{{- $kubelet := .Values.agent.kubelet -}}
kubelet_port: {{ $kubelet.port }}
{{- if $kubelet.skipVerification }}
skip_kubelet_verification: true
{{- else if $kubelet.caConfigMap.name }}
kubelet_ca_file: /etc/burgee/kubelet/ca.crt
{{- end }}
{{- end -}}
