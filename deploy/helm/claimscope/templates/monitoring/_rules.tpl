{{/*
One rule of files/rules.yaml as the values want it, or nothing: dict "rule" {...} "of" .Values.monitoring.prometheusRule
Texts with {{ $labels }} are Prometheus' own templates: they come from a file and never pass through Helm's.
*/}}
{{- define "claimscope.rule" -}}
{{- $rule := .rule -}}
{{- if $rule.record -}}
{{- toYaml $rule -}}
{{- else -}}
{{- $given := get (.of.alerts | default dict) $rule.alert | default dict -}}
{{- if ne (get $given "enabled" | toString) "false" -}}
{{- $expr := $rule.expr -}}
{{- range $name, $value := mergeOverwrite (deepCopy ($rule.thresholds | default dict)) ($given.thresholds | default dict) -}}
{{- $expr = replace (printf "[[%s]]" $name) (toJson $value) $expr -}}
{{- end -}}
{{- $labels := deepCopy $rule.labels -}}
{{- range $added := list .of.alertLabels $given.labels -}}
{{- range $name, $value := $added }}{{- $_ := set $labels $name (include "claimscope.text" $value) -}}{{- end -}}
{{- end -}}
{{- with $given.severity }}{{- $_ := set $labels "severity" . -}}{{- end -}}
{{- $annotations := deepCopy $rule.annotations -}}
{{- with .of.runbookBaseUrl }}{{- $_ := set $annotations "runbook_url" (printf "%s/%s.md" (. | trimSuffix "/") $rule.alert) -}}{{- end -}}
{{- $made := merge (dict "expr" $expr "labels" $labels "annotations" $annotations) (omit $rule "thresholds") -}}
{{- with get $given "for" }}{{- $_ := set $made "for" . -}}{{- end -}}
{{- toYaml $made -}}
{{- end -}}
{{- end -}}
{{- end -}}
