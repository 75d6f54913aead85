{{/*
What makes series outlive the pod that serves them. The operator has set pod, container, namespace, endpoint and service
from the target before these: they would rename every series with each new pod, and say where claimscope runs, not whose
the claim is. `job` is the same whatever the release is called, as alerts and dashboards know it.
dict "job" "claimscope-agent" "instance" "__meta_..."
*/}}
{{- define "claimscope.relabelings" -}}
- action: labeldrop
  regex: pod|container|namespace|endpoint|service
- targetLabel: job
  replacement: {{ .job }}
- sourceLabels: [{{ .instance }}]
  targetLabel: instance
{{- end -}}

{{/* A duration of one unit in seconds; nothing for others. */}}
{{- define "claimscope.seconds" -}}
{{- if regexMatch "^[0-9]+[smh]$" . -}}
{{- mul (regexFind "^[0-9]+" . | int) (get (dict "s" 1 "m" 60 "h" 3600) (regexFind "[smh]$" .)) -}}
{{- end -}}
{{- end -}}

{{/* A monitor that could only fail. A scrape class of the Prometheus object may bring all of it: dict "given" the endpoint
"scheme" "https" "part" the part's values "where" "monitoring.podMonitor" "partName" "agent" "class" the scrape class */}}
{{- define "claimscope.checkEndpoint" -}}
{{- if not .class -}}
{{- $tls := .given.tlsConfig | default dict -}}
{{- if and (eq .scheme "https") (not $tls) -}}
{{- fail (printf "%s.endpoint.tlsConfig: %s.webConfig serves TLS, and Prometheus asks pods by their addresses, which no certificate names: set {ca: {secret: {name: NAME, key: ca.crt}}, serverName: NAME}, a scrapeClass in %s.spec, or %s.webConfig.tls=false where it is plain HTTP" .where .partName .where .partName) -}}
{{- end -}}
{{- if and .part.webConfig.clientCertificates (not (and $tls.cert $tls.keySecret)) -}}
{{- fail (printf "%s.endpoint.tlsConfig: %s.webConfig requires client certificates: set cert: {secret: {name: NAME, key: tls.crt}} and keySecret: {name: NAME, key: tls.key}, or a scrapeClass in %s.spec" .where .partName .where) -}}
{{- end -}}
{{- if and (eq .part.authorization.mode "kubernetes") (not (or .given.authorization .given.bearerTokenSecret .given.bearerTokenFile .given.oauth2 .given.basicAuth)) -}}
{{- fail (printf "%s.endpoint: %s.authorization.mode is kubernetes, so Prometheus needs a token: set authorization: {credentials: {name: SECRET, key: token}}, or a scrapeClass in %s.spec" .where .partName .where) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* One endpoint: dict "of" the monitor's values "part" the part's values "where" "monitoring.podMonitor"
"partName" "agent" "relabelings" text "metricRelabelings" text */}}
{{- define "claimscope.monitorEndpoint" -}}
{{- $scheme := include "claimscope.scheme" .part -}}
{{- $given := .of.endpoint | default dict -}}
{{- include "claimscope.checkEndpoint" (dict "given" $given "scheme" $scheme "part" .part "where" .where "partName" .partName "class" (.of.spec | default dict).scrapeClass) -}}
{{- $interval := include "claimscope.seconds" .of.interval -}}
{{- $timeout := include "claimscope.seconds" .of.scrapeTimeout -}}
{{- if and $interval $timeout (gt ($timeout | int) ($interval | int)) -}}
{{- fail (printf "%s.scrapeTimeout: %s is longer than the interval, %s, and the operator ignores such a monitor: set a shorter one, or \"\" for Prometheus' own" .where .of.scrapeTimeout .of.interval) -}}
{{- end -}}
port: http
path: /metrics
scheme: {{ $scheme }}
# Labels such as namespace and pod are the claim's.
honorLabels: true
{{- with .of.interval }}
interval: {{ . }}
{{- end }}
{{- with .of.scrapeTimeout }}
scrapeTimeout: {{ . }}
{{- end }}
{{- with $given }}
{{ toYaml . }}
{{- end }}
relabelings:
{{ .relabelings }}
{{- with .of.relabelings }}
{{ toYaml . }}
{{- end }}
{{- if or .metricRelabelings .of.metricRelabelings }}
metricRelabelings:
{{- with .metricRelabelings }}
{{ . }}
{{- end }}
{{- with .of.metricRelabelings }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Which pods or Services: dict "root" . "component" "agent" "of" the monitor's values */}}
{{- define "claimscope.monitorSelects" -}}
namespaceSelector:
  matchNames: [{{ .root.Release.Namespace }}]
selector:
  matchLabels:
    {{- include "claimscope.selectorLabels" . | nindent 4 }}
{{- with .of.spec }}
{{ toYaml . }}
{{- end }}
{{- end -}}
