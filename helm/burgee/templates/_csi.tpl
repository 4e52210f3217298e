{{/* The SPIFFE CSI driver beside the agent: it binds the directory of sockets into pods that ask for a volume of it. */}}
{{- define "burgee.csiContainers" -}}
- name: csi-driver
  image: {{ include "burgee.image" (list .Values.csiDriver.image "") }}
  imagePullPolicy: {{ .Values.csiDriver.image.pullPolicy }}
  args:
    - -workload-api-socket-dir=/sockets
    - -plugin-name={{ .Values.csiDriver.name }}
    - -csi-socket-path=/csi/csi.sock
  env:
    - name: MY_NODE_NAME
      valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
  # Only privileged containers may make mounts that the node sees.
  securityContext:
    privileged: true
    readOnlyRootFilesystem: true
    capabilities: {drop: [ALL]}
  resources:
    requests: {cpu: 10m, memory: 32Mi}
    limits: {memory: 64Mi}
  volumeMounts:
    - {name: sockets, mountPath: /sockets, readOnly: true}
    - {name: csi, mountPath: /csi}
    - {name: pods, mountPath: "{{ .Values.csiDriver.kubeletDirectory }}/pods", mountPropagation: Bidirectional}
- name: csi-registrar
  image: {{ include "burgee.image" (list .Values.csiDriver.registrar "") }}
  imagePullPolicy: {{ .Values.csiDriver.registrar.pullPolicy }}
  args:
    - --csi-address=/csi/csi.sock
    - --kubelet-registration-path={{ .Values.csiDriver.kubeletDirectory }}/plugins/{{ .Values.csiDriver.name }}/csi.sock
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: {drop: [ALL]}
  resources:
    requests: {cpu: 10m, memory: 16Mi}
    limits: {memory: 64Mi}
  volumeMounts:
    - {name: csi, mountPath: /csi}
    - {name: registration, mountPath: /registration}
{{- end -}}

{{- define "burgee.csiVolumes" -}}
{{- $directory := .Values.csiDriver.kubeletDirectory -}}
- name: csi
  hostPath: {path: "{{ $directory }}/plugins/{{ .Values.csiDriver.name }}", type: DirectoryOrCreate}
- name: registration
  hostPath: {path: "{{ $directory }}/plugins_registry", type: Directory}
- name: pods
  hostPath: {path: "{{ $directory }}/pods", type: Directory}
{{- end -}}
