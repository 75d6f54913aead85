{{/*
What a values file leaves out has the chart's default, also where `helm upgrade --reuse-values` brings the values of an
older chart, in which whole blocks are missing. files/defaults.yaml is values.yaml without its comments, which templates
cannot read; scripts/manifests.py writes it. Every template begins with this; the first does it for all.

Helm takes away what is null, so that a null and a key of a newer chart look the same. Of the blocks named first a null
means "nothing", as people expect. The security contexts are filled in as a whole, never key by key: a null takes away
one key, and who leaves the block out is not left without it. Any other key that is null has its default.
*/}}
{{- define "claimscope.fill" -}}
{{- if not (hasKey .Values "filledIn") -}}
{{- include "claimscope.fillFrom" (dict "given" .Values "defaults" (.Files.Get "files/defaults.yaml" | fromYaml)) -}}
{{- include "claimscope.check" . -}}
{{- $_ := set .Values "filledIn" true -}}
{{- end -}}
{{- end -}}

{{- define "claimscope.fillFrom" -}}
{{- $given := .given -}}
{{- range $key, $default := .defaults -}}
{{- $there := and (hasKey $given $key) (not (kindIs "invalid" (get $given $key))) -}}
{{- if has $key (list "resources" "nodeSelector" "livenessProbe" "readinessProbe" "updateStrategy") -}}
{{- if not $there }}{{- $_ := set $given $key dict }}{{- end -}}
{{- else if has $key (list "securityContext" "podSecurityContext") -}}
{{- if not $there }}{{- $_ := set $given $key $default }}{{- end -}}
{{- else if and $there (kindIs "map" $default) -}}
{{- include "claimscope.fillFrom" (dict "given" (get $given $key) "defaults" $default) -}}
{{- else if not $there -}}
{{- $_ := set $given $key $default -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What the schema cannot say: values that contradict each other. */}}
{{- define "claimscope.check" -}}
{{- $agent := .Values.agent -}}
{{- $controller := .Values.controller -}}
{{- if and $agent.enabled $controller.enabled (eq $agent.taintWriter "local") -}}
{{- fail "agent.taintWriter: local is for clusters without the controller: set controller.enabled=false, or agent.taintWriter=controller" -}}
{{- end -}}
{{- if and (ne $agent.taintWriter "local") (or $agent.taintPolicy (ne $agent.taintMode "announce")) -}}
{{- fail "agent.taintMode, agent.taintPolicy: the agent fences nothing here: set controller.taintMode and controller.taintPolicy, or agent.taintWriter=local" -}}
{{- end -}}
{{- if and (ne $agent.authorization.mode "off") (not $agent.serviceAccount.automountToken) -}}
{{- fail "agent.serviceAccount.automountToken: false leaves the agent without the API server, and agent.authorization.mode=kubernetes asks it: set one of them otherwise" -}}
{{- end -}}
{{- if and (eq $agent.taintWriter "local") (not $agent.serviceAccount.automountToken) -}}
{{- fail "agent.serviceAccount.automountToken: false leaves the agent without the API server, and agent.taintWriter=local writes to it: set one of them otherwise" -}}
{{- end -}}
{{- if and $controller.enabled (not .Values.rbac.fencing) (or (ne $controller.taintMode "observe") $controller.taintPolicy) -}}
{{- fail "rbac.fencing: false leaves the controller without the right to write taints: set controller.taintMode=observe and no controller.taintPolicy, or rbac.fencing=true" -}}
{{- end -}}
{{- range $port := list (dict "part" "agent" "of" $agent) (dict "part" "controller" "of" $controller) -}}
{{- if and $port.of.authorization.audiences (eq $port.of.authorization.mode "off") -}}
{{- fail (printf "%s.authorization.audiences: nobody's token is looked at: set %s.authorization.mode=kubernetes" $port.part $port.part) -}}
{{- end -}}
{{- if and $port.of.webConfig.clientCertificates (not (and $port.of.webConfig.tls $port.of.webConfig.secretName)) -}}
{{- fail (printf "%s.webConfig.clientCertificates: there are none without TLS: set %s.webConfig.secretName and tls=true" $port.part $port.part) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "claimscope.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* 40 characters: with the longest suffix, -controller-taint-rules, a name has 63. */}}
{{- define "claimscope.fullname" -}}
{{- $name := include "claimscope.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "claimscope.agent.fullname" -}}{{ include "claimscope.fullname" . }}-agent{{- end -}}
{{- define "claimscope.controller.fullname" -}}{{ include "claimscope.fullname" . }}-controller{{- end -}}

{{- define "claimscope.agent.serviceAccount" -}}
{{- .Values.agent.serviceAccount.name | default (include "claimscope.agent.fullname" .) -}}
{{- end -}}
{{- define "claimscope.controller.serviceAccount" -}}
{{- .Values.controller.serviceAccount.name | default (include "claimscope.controller.fullname" .) -}}
{{- end -}}
{{- define "claimscope.uninstall.serviceAccount" -}}{{ include "claimscope.fullname" . }}-uninstall{{- end -}}

{{/* As the API server calls them. */}}
{{- define "claimscope.agent.user" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "claimscope.agent.serviceAccount" . }}
{{- end -}}
{{- define "claimscope.controller.user" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "claimscope.controller.serviceAccount" . }}
{{- end -}}
{{- define "claimscope.uninstall.user" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "claimscope.uninstall.serviceAccount" . }}
{{- end -}}

{{- define "claimscope.image" -}}
{{- $image := .Values.image -}}
{{- $name := $image.repository -}}
{{- with .Values.global.imageRegistry | default $image.registry -}}{{- $name = printf "%s/%s" . $image.repository -}}{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name ($image.tag | default .Chart.AppVersion | toString) -}}
{{- end -}}
{{- end -}}

{{/* As lines of a pod's spec; charts write the global ones as names or as maps. */}}
{{- define "claimscope.imagePullSecrets" -}}
{{- $found := list -}}
{{- range concat .Values.global.imagePullSecrets .Values.imagePullSecrets -}}
{{- if kindIs "string" . }}{{- $found = append $found (dict "name" .) -}}{{- else }}{{- $found = append $found . -}}{{- end -}}
{{- end -}}
{{- with uniq $found -}}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{- define "claimscope.image.tag" -}}
{{- .Values.image.tag | default .Chart.AppVersion | toString | trunc 63 -}}
{{- end -}}

{{/* dict "root" . "component" "agent" ("" for objects of the whole) */}}
{{- define "claimscope.selectorLabels" -}}
app.kubernetes.io/name: {{ include "claimscope.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- if .component }}
app.kubernetes.io/component: {{ .component }}
{{- end }}
{{- end -}}

{{/* A label's value, or the like: numbers of a values file are floats, which would print as 1e+06. */}}
{{- define "claimscope.text" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end -}}
{{- end -}}

{{/* A map of texts: `pool: 5` is a number, and Kubernetes wants "5". */}}
{{- define "claimscope.texts" -}}
{{- $made := dict -}}
{{- range $key, $value := . }}{{- $_ := set $made $key (include "claimscope.text" $value) -}}{{- end -}}
{{- toYaml $made -}}
{{- end -}}

{{/*
Labels and annotations of a pod's template: dict "root" . "component" "agent" "labels" {...} "annotations" {...}
Nothing that changes with each version of the chart or the image, which would replace every pod of the cluster.
*/}}
{{- define "claimscope.podMetadata" -}}
{{- $labels := mergeOverwrite (deepCopy .root.Values.commonLabels) (deepCopy (.labels | default dict)) (include "claimscope.selectorLabels" . | fromYaml) -}}
labels:
  {{- include "claimscope.texts" $labels | nindent 2 }}
{{- with mergeOverwrite (deepCopy .root.Values.commonAnnotations) (deepCopy (.annotations | default dict)) }}
annotations:
  {{- include "claimscope.texts" . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Labels and annotations of an object's metadata: dict "root" . "component" "agent" "labels" {...} "annotations" {...} */}}
{{- define "claimscope.metadata" -}}
{{- $labels := dict "app.kubernetes.io/part-of" "claimscope" "app.kubernetes.io/version" (include "claimscope.image.tag" .root) -}}
{{- range $given := list .root.Values.commonLabels .labels -}}
{{- range $key, $value := $given }}{{- $_ := set $labels $key (include "claimscope.text" $value) -}}{{- end -}}
{{- end -}}
{{- /* What selectors go by is nobody else's. */ -}}
{{- range $key, $value := include "claimscope.selectorLabels" . | fromYaml }}{{- $_ := set $labels $key $value -}}{{- end -}}
{{- $_ := set $labels "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- $_ := set $labels "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63) -}}
{{- $annotations := dict -}}
{{- range $given := list .root.Values.commonAnnotations .annotations -}}
{{- range $key, $value := $given }}{{- $_ := set $annotations $key (include "claimscope.text" $value) -}}{{- end -}}
{{- end -}}
labels:
  {{- toYaml $labels | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* http or https: dict of one part */}}
{{- define "claimscope.scheme" -}}
{{- if and .webConfig.secretName .webConfig.tls -}}https{{- else -}}http{{- end -}}
{{- end -}}

{{/* A probe: dict "part" .Values.agent "path" "/livez" "timing" {...} */}}
{{- define "claimscope.probe" -}}
{{- if .part.webConfig.clientCertificates -}}
tcpSocket:
  port: http
{{- else -}}
httpGet:
  path: {{ .path }}
  port: http
  scheme: {{ include "claimscope.scheme" .part | upper }}
{{- end }}
{{- with .timing }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What the chart itself needs to know has values of its own: dict "where" "agent.config" "given" {...} "made" {...} */}}
{{- define "claimscope.config" -}}
{{- $made := .made -}}
{{- range $key, $value := .given -}}
{{- if not (kindIs "invalid" $value) -}}{{- $_ := set $made $key $value -}}{{- end -}}
{{- end -}}
{{- range $key, $value := $made }}
{{ $key }}: {{ if kindIs "string" $value }}{{ $value | quote }}{{ else }}{{ $value | toJson }}{{ end }}
{{- end }}
{{- end -}}

{{- /* Where the directory above the driver's root is mounted, and where the root is then. `/` is its own. */ -}}
{{- define "claimscope.agent.driverRootMount" -}}
{{- ternary "/driver-root" "/driver-root-parent" (eq (clean .Values.agent.gpuAccess.driverRoot) "/") -}}
{{- end -}}
{{- define "claimscope.agent.driverRoot" -}}
{{- $root := clean .Values.agent.gpuAccess.driverRoot -}}
{{- ternary "/driver-root" (printf "/driver-root-parent/%s" (base $root)) (eq $root "/") -}}
{{- end -}}

{{- define "claimscope.agent.config" -}}
{{- $agent := .Values.agent -}}
{{- $made := dict "web_listen_address" (printf ":%d" ($agent.port | int)) "startup_jitter_seconds" $agent.startupJitterSeconds -}}
{{- if $agent.kernelLog }}{{- $_ := set $made "kernel_log" "/dev/kmsg" }}{{- end -}}
{{- if $agent.hostPID }}{{- $_ := set $made "collectors" (append (without (get ($agent.config | default dict) "collectors" | default list) "processes") "processes") }}{{- end -}}
{{- if $agent.healthThresholds }}{{- $_ := set $made "health_thresholds" "/etc/claimscope/health.yaml" }}{{- end -}}
{{- if eq $agent.taintWriter "local" -}}
{{- $_ := set $made "taint_writer" "local" -}}
{{- $_ := set $made "taint_mode" $agent.taintMode -}}
{{- if $agent.taintPolicy }}{{- $_ := set $made "taint_policy" "/etc/claimscope/taint-policy.yaml" }}{{- end -}}
{{- end -}}
{{- if not $agent.serviceAccount.automountToken }}{{- $_ := set $made "api_server" "off" }}{{- end -}}
{{- if eq $agent.gpuAccess.mode "hostPath" }}{{- $_ := set $made "driver_root" (include "claimscope.agent.driverRoot" .) }}{{- end -}}
{{- if ne $agent.compatDcgm.families "off" -}}
{{- $_ := set $made "compat_dcgm" $agent.compatDcgm.families -}}
{{- $_ := set $made "compat_dcgm_names" $agent.compatDcgm.names -}}
{{- $_ := set $made "compat_dcgm_hostname_label" $agent.compatDcgm.hostnameLabel -}}
{{- end -}}
{{- include "claimscope.ownConfig" (dict "part" $agent "made" $made) -}}
{{- include "claimscope.config" (dict "given" (omit ($agent.config | default dict) (ternary "collectors" "" $agent.hostPID)) "made" $made) -}}
{{- end -}}

{{- define "claimscope.controller.config" -}}
{{- $controller := .Values.controller -}}
{{- $made := dict "web_listen_address" (printf ":%d" ($controller.port | int)) "taint_mode" $controller.taintMode "lease_name" (include "claimscope.controller.fullname" .) -}}
{{- if $controller.taintPolicy }}{{- $_ := set $made "taint_policy" "/etc/claimscope/taint-policy.yaml" }}{{- end -}}
{{- include "claimscope.ownConfig" (dict "part" $controller "made" $made) -}}
{{- include "claimscope.config" (dict "given" $controller.config "made" $made) -}}
{{- end -}}

{{/* What both parts have. */}}
{{- define "claimscope.ownConfig" -}}
{{- if .part.webConfig.secretName }}{{- $_ := set .made "web_config_file" (printf "/etc/claimscope-web/%s" .part.webConfig.key) }}{{- end -}}
{{- if ne .part.authorization.mode "off" -}}
{{- $_ := set .made "web_authorization" .part.authorization.mode -}}
{{- with .part.authorization.audiences }}{{- $_ := set $.made "web_authorization_audiences" . }}{{- end -}}
{{- end -}}
{{- if .part.otlp.endpoint -}}
{{- $_ := set .made "otlp_protocol" .part.otlp.protocol -}}
{{- $_ := set .made "otlp_interval_seconds" .part.otlp.intervalSeconds -}}
{{- end -}}
{{- end -}}

{{/* Variables that both parts have. The endpoint is one, since $(NODE_IP) is replaced in variables only. */}}
{{- define "claimscope.env" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: POD_UID
  valueFrom: {fieldRef: {fieldPath: metadata.uid}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- if .otlp.endpoint }}
- name: NODE_IP
  valueFrom: {fieldRef: {fieldPath: status.hostIP}}
- name: CLAIMSCOPE_OTLP_ENDPOINT
  value: {{ .otlp.endpoint | quote }}
{{- end }}
{{- end -}}

{{/* "true" where `helm uninstall` runs the Job that lifts taints: it needs an account with rights of its own. */}}
{{- define "claimscope.lifts" -}}
{{- if and .Values.uninstall.liftTaints .Values.rbac.create -}}true{{- end -}}
{{- end -}}

{{/* "true" where something of ours may stand in the cluster that uninstalling has to lift. */}}
{{- define "claimscope.fences" -}}
{{- if or (and .Values.controller.enabled .Values.rbac.fencing) (and .Values.agent.enabled (eq .Values.agent.taintWriter "local")) -}}true{{- end -}}
{{- end -}}

{{/* "true" with the right to taint Nodes. */}}
{{- define "claimscope.nodeTaints" -}}
{{- if and .Values.controller.enabled .Values.rbac.fencing (or .Values.rbac.nodeTaints (has (get (.Values.controller.taintPolicy | default dict) "node_taints") (list "prefer" "enforce"))) -}}true{{- end -}}
{{- end -}}
