{{- define "peerage.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{- else -}}{{ printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}{{- end -}}
{{- end -}}
{{- end }}

{{- define "peerage.operator" -}}
{{ include "peerage.fullname" . }}-operator
{{- end }}

{{/* Cluster-scoped objects of two releases must not meet. */}}
{{- define "peerage.clusterName" -}}
{{ .Release.Namespace }}-{{ include "peerage.operator" . }}
{{- end }}

{{- define "peerage.serviceAccount" -}}
{{ default (include "peerage.operator" .) .Values.serviceAccount.name }}
{{- end }}

{{- define "peerage.selector" -}}
app.kubernetes.io/name: peerage
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "peerage.labels" -}}
{{ include "peerage.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* What names an image: (list of the image's values, the chart's appVersion). */}}
{{- define "peerage.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default (index . 1) $image.tag }}
{{- end -}}
{{- end }}

{{- define "peerage.webhook" -}}
{{ include "peerage.fullname" . }}-webhook
{{- end }}

{{- define "peerage.relay" -}}
{{ include "peerage.fullname" . }}-relay
{{- end }}

{{- define "peerage.relaySelector" -}}
app.kubernetes.io/name: peerage
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: relay
{{- end }}

{{- define "peerage.testSelector" -}}
app.kubernetes.io/name: peerage
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: test
{{- end }}

{{- define "peerage.relayLabels" -}}
{{ include "peerage.relaySelector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* What the operator is told of relays that it runs. */}}
{{- define "peerage.managedRelays" -}}
{{- $relay := .Values.relay -}}
{{- dict "image" (include "peerage.image" (list $relay.image .Chart.AppVersion)) "imagePullPolicy" $relay.image.pullPolicy
  "imagePullSecrets" .Values.imagePullSecrets "resources" $relay.resources "nodeSelector" $relay.nodeSelector
  "tolerations" $relay.tolerations "args" (default list $relay.extraArgs)
  "podSecurityContext" (include "peerage.podSecurityContext" $relay.podSecurityContext | fromYaml) | toJson -}}
{{- end }}

{{/* What the operator is told of webhooks and sidecars. */}}
{{- define "peerage.admission" -}}
{{- $names := list (printf "%s.%s.svc" (include "peerage.webhook" .) .Release.Namespace) -}}
{{- with .Values.webhook.url }}{{ $names = append $names (urlParse .).hostname }}{{ end -}}
{{- $agent := .Values.agent -}}
{{- $operators := default (list (printf "%s.%s.svc:8443" (include "peerage.operator" .) .Release.Namespace)) $agent.operators -}}
{{- $sidecar := dict "image" (include "peerage.image" (list $agent.image .Chart.AppVersion)) "imagePullPolicy" $agent.image.pullPolicy
  "operators" $operators "resources" $agent.resources "log" $agent.log "container" $agent.container "dns" $agent.dns "clusterDns" $agent.clusterDNS -}}
{{- with $agent.runAsUser }}{{ $_ := set $sidecar "runAsUser" (int .) }}{{ end -}}
{{- with $agent.clusterDomain }}{{ $_ := set $sidecar "clusterDomain" . }}{{ end -}}
{{- with $agent.guaranteed }}{{ $_ := set $sidecar "guaranteed" . }}{{ end -}}
{{- dict "webhook" (dict "configuration" (include "peerage.clusterName" .) "names" $names) "agent" $sidecar | toPrettyJson -}}
{{- end }}

{{/* The securityContext of a pod that PodSecurity "restricted" admits, as these users, unless the cluster gives them out. Values
that a former chart wrote (helm upgrade --reuse-values) say nothing of users; without the group nobody reads the relay's key. */}}
{{- define "peerage.podSecurityContext" -}}
runAsNonRoot: true
{{- $users := ternary (dict "runAsUser" 65532 "runAsGroup" 65532 "fsGroup" 65532) . (kindIs "invalid" .) }}
{{- range $field, $id := $users }}
{{- if $id }}
{{ $field }}: {{ int $id }}
{{- end }}
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* The relay's Deployment, if it runs; who renders the chart without a cluster does not see it. */}}
{{- define "peerage.relayThere" -}}
{{- lookup "apps/v1" "Deployment" .Release.Namespace (include "peerage.relay" .) | toJson -}}
{{- end }}

{{/* By what agents know the relay: with the port at which the Service has it. Empty while that is not known. */}}
{{- define "peerage.relayAdvertise" -}}
{{- $service := .Values.relay.service -}}
{{- $port := $service.port -}}
{{- if eq $service.type "NodePort" }}{{ $port = $service.nodePort }}{{ end -}}
{{- $place := .Values.relay.advertise -}}
{{- if and (not $place) (eq $service.type "ClusterIP") -}}
{{- $place = printf "%s.%s.svc" (include "peerage.relay" .) .Release.Namespace -}}
{{- end -}}
{{- if regexMatch "^(\\[[^]]*\\]|[^:]+)$" $place -}}
{{- $place }}:{{ required "relay.advertise is HOST:PORT for a NodePort that the cluster chooses; or set relay.service.nodePort" $port | int -}}
{{- else -}}
{{- $place -}}
{{- end -}}
{{- end }}
