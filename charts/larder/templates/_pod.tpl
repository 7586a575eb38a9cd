{{/* The nodes' pod, of the StatefulSet and of the DaemonSet. Nothing here may depend on the number of replicas: scaling rolls no pod. */}}

{{/* The chart's own variables: a list of names and what they are. */}}
{{- define "larder.env" -}}
- name: LARDER_CONFIG
  value: /etc/larder/config/larder.toml
- name: LARDER_SCALE_FILE
  value: /etc/larder/scale/scale.toml
- name: LARDER_DATA_DIR
  value: /var/lib/larder
- name: LARDER_PEER_TEMPLATE
  value: {{ include "larder.peerTemplate" . | quote }}
- name: LARDER_MAX_VOTERS
  value: {{ int .Values.maxVoters | quote }}
- name: LARDER_MEMORY_LIMIT
  valueFrom:
    resourceFieldRef:
      containerName: larder
      resource: limits.memory
      divisor: "1"
{{- if eq .Values.mode "daemonset" }}
- name: LARDER_SLOT
  valueFrom:
    fieldRef:
      apiVersion: v1
      fieldPath: spec.nodeName
{{- end }}
{{- if include "larder.usesApi" . }}
- name: LARDER_STATEFULSET
  value: {{ printf "%s/%s" .Release.Namespace (include "larder.fullname" .) | quote }}
{{- end }}
{{- if not .Values.persistence.enabled }}
- name: LARDER_EPHEMERAL
  value: "true"
- name: LARDER_ON_MAJORITY_LOST
  value: {{ .Values.ephemeral.onMajorityLost | quote }}
{{- end }}
{{- end -}}

{{- define "larder.podTemplate" -}}
{{- $daemonset := eq .Values.mode "daemonset" -}}
{{- $selector := include "larder.selector" . | fromYaml -}}
metadata:
  labels:
    {{- merge (deepCopy $selector) .Values.podLabels | toYaml | nindent 4 }}
  annotations:
    {{- $checksum := dict "checksum/config" (include "larder.config" . | sha256sum) }}
    {{- merge $checksum .Values.podAnnotations | toYaml | nindent 4 }}
spec:
  {{- if $daemonset }}
  serviceAccountName: {{ include "larder.serviceAccountName" . }}
  automountServiceAccountToken: false
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  {{- with .Values.daemonset.hostAliases }}
  hostAliases:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- else }}
  serviceAccountName: {{ include "larder.serviceAccountName" . }}
  automountServiceAccountToken: {{ ternary "true" "false" (eq (include "larder.usesApi" .) "true") }}
  {{- end }}
  # A Service named larder would otherwise put LARDER_PORT and its like into the pods.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ int .Values.terminationGracePeriodSeconds }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- include "larder.podSecurity" . | nindent 4 }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with include "larder.affinity" . }}
  affinity:
    {{- . | nindent 4 }}
  {{- end }}
  {{- if and .Values.topologySpread.enabled (not $daemonset) }}
  topologySpreadConstraints:
    - maxSkew: {{ int .Values.topologySpread.maxSkew }}
      topologyKey: {{ .Values.topologySpread.topologyKey }}
      whenUnsatisfiable: {{ .Values.topologySpread.whenUnsatisfiable }}
      labelSelector:
        matchLabels:
          {{- $selector | toYaml | nindent 10 }}
  {{- end }}
  {{- if and $daemonset .Values.daemonset.initDir.enabled }}
  initContainers:
    # The only container that is not "restricted": it gives the machine's directory to the node's user, and does nothing else.
    - name: init-dir
      image: {{ include "larder.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [/usr/local/bin/larder]
      args:
        - init-dir
        - /var/lib/larder
        - --owner
        - "{{ int64 .Values.podSecurity.runAsUser }}:{{ int64 .Values.podSecurity.runAsGroup }}"
      securityContext:
        allowPrivilegeEscalation: false
        capabilities:
          drop: [ALL]
          add: [CHOWN]
        readOnlyRootFilesystem: true
        runAsNonRoot: false
        runAsUser: 0
        runAsGroup: 0
        seccompProfile:
          type: RuntimeDefault
      resources:
        requests:
          cpu: 10m
          memory: 32Mi
        limits:
          memory: 32Mi
      volumeMounts:
        - name: data
          mountPath: /var/lib/larder
  {{- end }}
  containers:
    - name: larder
      image: {{ include "larder.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [/usr/local/bin/larder]
      args: [serve]
      env:
        {{- include "larder.env" . | nindent 8 }}
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - name: client
          containerPort: 7400
        - name: peer
          containerPort: 7401
        - name: http
          containerPort: 7402
      {{- range $name, $path := dict "startup" "/startupz" "liveness" "/livez" "readiness" "/readyz" }}
      {{- $probe := get $.Values.probes $name }}
      {{ $name }}Probe:
        httpGet:
          path: {{ $path }}
          port: http
        periodSeconds: {{ int $probe.periodSeconds }}
        timeoutSeconds: {{ int $probe.timeoutSeconds }}
        failureThreshold: {{ int $probe.failureThreshold }}
      {{- end }}
      lifecycle:
        preStop:
          exec:
            command: [/usr/local/bin/larder, prestop]
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      securityContext:
        {{- include "larder.containerSecurity" . | nindent 8 }}
      volumeMounts:
        - name: data
          mountPath: /var/lib/larder
        - name: config
          mountPath: /etc/larder/config
          readOnly: true
        - name: scale
          mountPath: /etc/larder/scale
          readOnly: true
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    {{- if not .Values.persistence.enabled }}
    - name: data
      {{- with .Values.ephemeral }}
      {{- if or .medium .sizeLimit }}
      emptyDir:
        {{- with .medium }}
        medium: {{ . }}
        {{- end }}
        {{- with .sizeLimit }}
        sizeLimit: {{ . }}
        {{- end }}
      {{- else }}
      emptyDir: {}
      {{- end }}
      {{- end }}
    {{- else if $daemonset }}
    - name: data
      hostPath:
        path: {{ .Values.daemonset.hostPath }}
        type: DirectoryOrCreate
    {{- end }}
    - name: config
      configMap:
        name: {{ include "larder.fullname" . }}-config
    - name: scale
      configMap:
        name: {{ include "larder.fullname" . }}-scale
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* The preset, and what was asked for on top; nothing if neither. */}}
{{- define "larder.affinity" -}}
{{- $affinity := deepCopy .Values.affinity -}}
{{- if and (ne .Values.antiAffinity "none") (ne .Values.mode "daemonset") -}}
{{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" (include "larder.selector" . | fromYaml)) -}}
{{- $anti := default dict $affinity.podAntiAffinity -}}
{{- if eq .Values.antiAffinity "hard" -}}
{{- $key := "requiredDuringSchedulingIgnoredDuringExecution" -}}
{{- $_ := set $anti $key (append (default list (get $anti $key)) $term) -}}
{{- else -}}
{{- $key := "preferredDuringSchedulingIgnoredDuringExecution" -}}
{{- $_ := set $anti $key (append (default list (get $anti $key)) (dict "weight" 100 "podAffinityTerm" $term)) -}}
{{- end -}}
{{- $_ := set $affinity "podAntiAffinity" $anti -}}
{{- end -}}
{{- if $affinity }}{{ toYaml $affinity }}{{ end -}}
{{- end -}}
