{{/* Names, labels, and what several objects say in the same way. */}}

{{- define "larder.name" -}}
{{- default .Chart.Name .Values.nameOverride -}}
{{- end -}}

{{/* Not cut to fit: two names that are cut may be one. Too long is an error, in validate.yaml. */}}
{{- define "larder.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains (include "larder.name" .) .Release.Name -}}
{{- .Release.Name -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "larder.name" .) -}}
{{- end -}}
{{- end -}}

{{- define "larder.headless" -}}
{{- printf "%s-headless" (include "larder.fullname" .) -}}
{{- end -}}

{{- define "larder.serviceAccountName" -}}
{{- default (ternary (include "larder.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{/* Both of whoever belongs to the release: the nodes, and the pod of `helm test`. */}}
{{- define "larder.releaseLabels" -}}
app.kubernetes.io/name: {{ include "larder.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The nodes. Never changes: a selector cannot. */}}
{{- define "larder.selector" -}}
{{ include "larder.releaseLabels" . }}
app.kubernetes.io/component: node
{{- end -}}

{{/* Of every object but pods and volumes: what changes with the chart's version must not roll the pods. */}}
{{- define "larder.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "larder.releaseLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "larder.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* A Service's name in DNS. Takes the context and the Service's name. */}}
{{- define "larder.dnsName" -}}
{{- $context := index . 0 -}}
{{- printf "%s.%s.svc.%s" (index . 1) $context.Release.Namespace $context.Values.clusterDomain -}}
{{- end -}}

{{/* Whether there is an API to ask: "true" or nothing. */}}
{{- define "larder.usesApi" -}}
{{- if and .Values.rbac.create (eq .Values.mode "statefulset") }}true{{ end -}}
{{- end -}}

{{/* How many nodes vote: the largest odd number up to the replicas and to maxVoters; 0 of none. */}}
{{- define "larder.voters" -}}
{{- $most := min (int .Values.replicas) (int .Values.maxVoters) | int -}}
{{- if eq (mod $most 2) 0 }}{{ max 0 (sub $most 1) }}{{ else }}{{ $most }}{{ end -}}
{{- end -}}

{{/* Who founds the cluster: three where three may vote, else the first alone. */}}
{{- define "larder.seeds" -}}
{{- if eq .Values.mode "daemonset" -}}
{{- join "," .Values.daemonset.seedNodes -}}
{{- else if ge (include "larder.voters" . | int) 3 -}}
0,1,2
{{- else -}}
0
{{- end -}}
{{- end -}}

{{/* Where a slot's peer port is. The last dot: a name that is complete, so that no search list is gone through. */}}
{{- define "larder.peerTemplate" -}}
{{- if eq .Values.mode "daemonset" -}}
{slot}:7401
{{- else -}}
{{- printf "%s-{slot}.%s.:7401" (include "larder.fullname" .) (include "larder.dnsName" (list . (include "larder.headless" .))) -}}
{{- end -}}
{{- end -}}

{{- define "larder.listenAddress" -}}
{{- if .Values.listenAddress -}}
{{- .Values.listenAddress -}}
{{- else if or (has "IPv6" .Values.ipFamilies) (hasSuffix "DualStack" .Values.ipFamilyPolicy) -}}
[::]
{{- else -}}
0.0.0.0
{{- end -}}
{{- end -}}

{{/* The nodes' configuration file. JSON's texts are TOML's. */}}
{{- define "larder.config" -}}
{{- $listen := include "larder.listenAddress" . -}}
client_addr = "{{ $listen }}:7400"
peer_addr = "{{ $listen }}:7401"
http_addr = "{{ $listen }}:7402"
{{- range $key := keys .Values.config | sortAlpha }}
{{- $value := get $.Values.config $key }}
{{ $key }} = {{ if kindIs "string" $value }}{{ toJson $value }}{{ else }}{{ int64 $value }}{{ end }}
{{- end }}
{{- end -}}

{{/* Pod security, level "restricted", of a container. */}}
{{- define "larder.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* The same of a pod. */}}
{{- define "larder.podSecurity" -}}
{{- $security := .Values.podSecurity -}}
runAsNonRoot: true
{{- if not (kindIs "invalid" $security.runAsUser) }}
runAsUser: {{ int64 $security.runAsUser }}
{{- end }}
{{- if not (kindIs "invalid" $security.runAsGroup) }}
runAsGroup: {{ int64 $security.runAsGroup }}
{{- end }}
{{- if not (kindIs "invalid" $security.fsGroup) }}
fsGroup: {{ int64 $security.fsGroup }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Nothing if the cluster's default is wanted. */}}
{{- define "larder.ipFamilies" -}}
{{- $families := dict -}}
{{- with .Values.ipFamilyPolicy }}{{ $_ := set $families "ipFamilyPolicy" . }}{{ end -}}
{{- with .Values.ipFamilies }}{{ $_ := set $families "ipFamilies" . }}{{ end -}}
{{- if $families }}{{ toYaml $families }}{{ end -}}
{{- end -}}
