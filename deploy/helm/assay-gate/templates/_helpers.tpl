{{- define "labels" -}}
app.kubernetes.io/name: assay-gate
app.kubernetes.io/part-of: assay
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}
{{- define "selector" -}}
app.kubernetes.io/name: assay-gate
{{- end -}}
{{- define "image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag }}{{ end }}
{{- end -}}
