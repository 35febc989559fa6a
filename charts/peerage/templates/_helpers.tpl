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

{{- define "peerage.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end }}
