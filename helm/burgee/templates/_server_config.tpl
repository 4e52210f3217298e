{{/* The server's configuration: what the chart decides, over what `server.config` says. */}}
{{- define "burgee.serverConfig" -}}
{{- $server := .Values.server -}}
{{- $owned := dict
  "trust_domain" .Values.trustDomain
  "data_dir" "/var/lib/burgee/server"
  "bind_address" "0.0.0.0"
  "bind_port" 8081
  "metrics_address" "0.0.0.0:9988"
  "admin_socket" (dict "path" "/run/burgee/admin/admin.sock")
  "node_attestors" (include "burgee.nodeAttestors" . | fromYaml)
-}}
{{- if eq $server.keys.plugin "disk" -}}
{{- $_ := set $owned "keys" (dict "plugin" "disk") -}}
{{- else -}}
{{- $vault := include "burgee.vault" . | fromYaml -}}
{{- $_ := set $owned "keys" (dict "plugin" "vault_transit" "config" (set $vault "mount" $server.keys.mount)) -}}
{{- end -}}
{{- if eq $server.upstream.plugin "vault_pki" -}}
{{- $vault := include "burgee.vault" . | fromYaml -}}
{{- $_ := set $vault "mount" $server.upstream.mount -}}
{{- with $server.upstream.issuer }}{{ $_ := set $vault "issuer" . }}{{ end -}}
{{- with $server.upstream.trustedIssuers }}{{ $_ := set $vault "trusted_issuers" . }}{{ end -}}
{{- $_ := set $owned "upstream" (dict "plugin" "vault_pki" "config" $vault) -}}
{{- end -}}
{{- if include "burgee.isIstioCa" . }}{{ $_ := set $owned "istio" (include "burgee.istioConfig" . | fromYaml) }}{{ end -}}
{{- with include "burgee.publishers" . | fromYaml }}{{ $_ := set $owned "bundle_publishers" . }}{{ end -}}
{{- toYaml (mergeOverwrite (deepCopy $server.config) $owned) -}}
{{- end -}}

{{/* Where the server keeps copies of its trust bundle. */}}
{{- define "burgee.publishers" -}}
{{- $publishers := dict -}}
{{- if and .Values.agent.enabled (include "burgee.ownsBundle" .) -}}
{{- $place := dict "namespace" (include "burgee.agentNamespace" .) "config_map" (include "burgee.bundleConfigMap" .) -}}
{{- $_ := set $place "config_map_key" .Values.agent.trust.configMap.key -}}
{{- $_ := set $publishers "agents" (dict "plugin" "k8s_configmap" "config" $place) -}}
{{- end -}}
{{- with .Values.server.clusterTrustBundle -}}
{{- if .enabled -}}
{{- $_ := set $publishers "pods" (dict "plugin" "cluster_trust_bundle" "config" (dict "signer_name" .signerName)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $publishers -}}
{{- end -}}

{{- define "burgee.nodeAttestors" -}}
{{- $attestors := dict -}}
{{- with .Values.server.nodeAttestors.k8sPsat -}}
{{- if .enabled -}}
{{- $account := printf "%s:%s" (include "burgee.agentNamespace" $) (include "burgee.agentAccount" $) -}}
{{- $cluster := dict "service_account_allow_list" (list $account) "audience" (list $.Values.agent.tokenAudience) -}}
{{- with .allowedNodeLabelKeys }}{{ $_ := set $cluster "allowed_node_label_keys" . }}{{ end -}}
{{- with .allowedPodLabelKeys }}{{ $_ := set $cluster "allowed_pod_label_keys" . }}{{ end -}}
{{- $_ := set $attestors "k8s_psat" (dict "clusters" (dict $.Values.clusterName $cluster)) -}}
{{- end -}}
{{- end -}}
{{- if .Values.server.nodeAttestors.joinToken.enabled }}{{ $_ := set $attestors "join_token" dict }}{{ end -}}
{{- toYaml $attestors -}}
{{- end -}}

{{- define "burgee.usesVault" -}}
{{- if or (eq .Values.server.keys.plugin "vault_transit") (eq .Values.server.upstream.plugin "vault_pki") }}true{{ end -}}
{{- end -}}

{{/* How to reach Vault; the log-in is by a token that the kubelet makes for Vault and for this pod. */}}
{{- define "burgee.vault" -}}
{{- $vault := .Values.server.vault -}}
{{- $address := required "server.vault.address: name the Vault that keys or upstream are in" $vault.address -}}
{{- $role := required "server.vault.auth.role: name the role to log in as" $vault.auth.role -}}
{{- $method := $vault.auth.method -}}
{{- $file := ternary "jwt_file" "token_file" (eq $method "jwt") -}}
{{- $login := dict "mount" (default $method $vault.auth.mount) "role" $role $file "/var/run/secrets/burgee/vault/token" -}}
{{- $config := dict "address" $address "auth" (dict $method $login) -}}
{{- with $vault.namespace }}{{ $_ := set $config "namespace" . }}{{ end -}}
{{- if $vault.caConfigMap.name }}{{ $_ := set $config "ca_file" "/etc/burgee/vault/ca.crt" }}{{ end -}}
{{- toYaml $config -}}
{{- end -}}
