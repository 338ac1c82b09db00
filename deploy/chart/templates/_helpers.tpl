{{/* Labels of every object: those that the fence and the selectors know. */}}
{{- define "operator.labels" -}}
app.kubernetes.io/name: databasecluster-operator
{{- end }}

{{/* How long a Pod may take to end: the preStop hook, the drain, 4 s for the hand-over itself, and some room. */}}
{{- define "operator.graceSeconds" -}}
{{- add 20 (int (trimSuffix "s" (.Values.flags.drainTimeout | default "10s"))) -}}
{{- end }}

{{- define "operator.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}
