{{- define "frostline.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- /* At most 52 characters: the suffix of the longest name must fit into 63. */}}
{{- define "frostline.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains (include "frostline.name" .) .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "frostline.name" .) | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "frostline.selectorLabels" -}}
app.kubernetes.io/name: {{ include "frostline.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "frostline.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "frostline.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "frostline.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "frostline.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "frostline.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- $tag := default (printf "%s%s" .Chart.AppVersion (ternary "-gpu" (ternary "-openvino" "" .Values.openvino.enabled) .Values.gpu.enabled)) .Values.image.tag }}
{{- printf "%s:%s" .Values.image.repository $tag }}
{{- end }}
{{- end }}

{{- define "frostline.authorized" -}}
{{- if or .Values.auth.keys.secretName .Values.auth.jwt.jwksConfigMapName .Values.auth.certificates }}true{{ end }}
{{- end }}

{{- /* A number of values, whole where it is: 30 and not 30.0 or 3e+01. */}}
{{- define "frostline.number" -}}
{{- if eq (float64 .) (floor (float64 .)) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{- /* A value as TOML: JSON's strings are TOML's basic strings. */}}
{{- define "frostline.toml" -}}
{{- if kindIs "map" . }}{
{{- $first := true }}
{{- range $key, $value := . }}
{{- if not $first }}, {{ end }}{{ toJson $key }} = {{ include "frostline.toml" $value }}
{{- $first = false }}
{{- end -}}
}
{{- else if kindIs "slice" . }}[
{{- range $index, $value := . }}
{{- if $index }}, {{ end }}{{ include "frostline.toml" $value }}
{{- end -}}
]
{{- else if or (kindIs "float64" .) (kindIs "int64" .) (kindIs "int" .) }}{{ include "frostline.number" . }}
{{- else }}{{ toJson . }}
{{- end }}
{{- end }}

{{- /* The configuration: what was given, and what the chart knows better. */}}
{{- define "frostline.config" -}}
{{- $config := deepCopy .Values.config }}
{{- $server := dict "listen" (printf "0.0.0.0:%d" (int .Values.service.port)) }}
{{- if not (and .Values.tls.enabled (include "frostline.authorized" .)) }}
{{- $_ := set $server "insecure" true }}
{{- end }}
{{- $config = mergeOverwrite $config (dict "server" $server "telemetry" (dict "admin" (printf "0.0.0.0:%d" (int .Values.admin.port)))) }}
{{- if ne .Values.models.type "embedded" }}
{{- $config = mergeOverwrite $config (dict "repository" (dict "path" "/models")) }}
{{- end }}
{{- if .Values.tls.enabled }}
{{- $tls := dict "cert" "/etc/frostline/tls/tls.crt" "key" "/etc/frostline/tls/tls.key" }}
{{- if .Values.tls.clientCaSecretName }}
{{- $_ := set $tls "client_ca" "/etc/frostline/client-ca/ca.crt" }}
{{- end }}
{{- $config = mergeOverwrite $config (dict "tls" $tls) }}
{{- end }}
{{- $auth := dict }}
{{- if .Values.auth.keys.secretName }}
{{- $_ := set $auth "keys" (printf "/etc/frostline/keys/%s" .Values.auth.keys.key) }}
{{- end }}
{{- with .Values.auth.jwt }}
{{- if .jwksConfigMapName }}
{{- $_ := set $auth "jwks" (printf "/etc/frostline/jwks/%s" .key) }}
{{- $_ := set $auth "issuer" .issuer }}
{{- $_ := set $auth "audience" .audience }}
{{- end }}
{{- end }}
{{- if .Values.auth.certificates }}
{{- $_ := set $auth "certificates" true }}
{{- end }}
{{- if $auth }}
{{- $config = mergeOverwrite $config (dict "auth" $auth) }}
{{- end }}
{{- range $section := keys $config | sortAlpha }}
{{- $values := index $config $section }}
{{- if $values }}
[{{ $section }}]
{{- range $key := keys $values | sortAlpha }}
{{ $key }} = {{ include "frostline.toml" (index $values $key) }}
{{- end }}
{{ end }}
{{- end }}
{{- end }}

{{- /* observability/rules.yml for this release: its job and namespace, its start-up allowance, and where the runbook is. */}}
{{- define "frostline.rules" -}}
{{- $root := . }}
{{- $given := .Values.prometheusRule }}
{{- $rules := .Files.Get "files/rules.yml" | required "the chart was packaged without files/rules.yml" | fromYaml }}
{{- $job := printf "job=%q,namespace=%q" (default (include "frostline.fullname" .) $given.job) .Release.Namespace }}
{{- $without := $given.without }}
{{- if and .Values.keda.enabled (eq (int .Values.keda.minReplicas) 0) }}
{{- /* Scaled to nothing there is no target, as it should be. */}}
{{- $without = append $without "FrostlineAbsent" }}
{{- end }}
{{- $names := list }}
{{- range $group := $rules.groups }}
{{- $kept := list }}
{{- range $rule := $group.rules }}
{{- $_ := set $rule "expr" ($rule.expr | replace "job=\"frostline\"" $job) }}
{{- with $rule.alert }}
{{- $names = append $names . }}
{{- if eq . "FrostlineNotReady" }}
{{- $_ := set $rule "for" (printf "%ds" (add (int $root.Values.probes.startupSeconds) 300)) }}
{{- end }}
{{- with $given.runbookUrl }}
{{- $_ := set $rule.annotations "runbook_url" (printf "%s#%s" (trimSuffix "#" .) (lower $rule.alert)) }}
{{- end }}
{{- end }}
{{- if not (and $rule.alert (has $rule.alert $without)) }}
{{- $kept = append $kept $rule }}
{{- end }}
{{- end }}
{{- $_ := set $group "rules" $kept }}
{{- end }}
{{- range $without }}
{{- if not (has . $names) }}
{{- fail (printf "prometheusRule.without: there is no alert %s" .) }}
{{- end }}
{{- end }}
{{- toYaml $rules }}
{{- end }}

{{- /* Namespaces that the gateway's proxies run in, with commas. */}}
{{- define "frostline.gatewayNamespaces" -}}
{{- $names := .Values.gateway.namespaces }}
{{- if not $names }}
{{- range .Values.gateway.parentRefs }}
{{- $names = append $names (default $.Release.Namespace .namespace) }}
{{- end }}
{{- if .Values.gateway.envoyGateway.enabled }}
{{- $names = append $names "envoy-gateway-system" }}
{{- end }}
{{- end }}
{{- $names | uniq | join "," }}
{{- end }}

{{- /* Ends with a word where values do not go together. */}}
{{- define "frostline.check" -}}
{{- if not (or .Values.insecure (and .Values.tls.enabled (include "frostline.authorized" .))) }}
{{- fail "neither tls.enabled nor auth may be missing: set both, or insecure=true to be reachable without" }}
{{- end }}
{{- if and .Values.autoscaling.enabled .Values.keda.enabled }}
{{- fail "autoscaling.enabled and keda.enabled exclude each other" }}
{{- end }}
{{- if and .Values.auth.certificates (not (and .Values.tls.enabled .Values.tls.clientCaSecretName)) }}
{{- fail "auth.certificates needs tls.enabled and tls.clientCaSecretName" }}
{{- end }}
{{- if and .Values.tls.clientCaSecretName (not .Values.tls.enabled) }}
{{- fail "tls.clientCaSecretName needs tls.enabled" }}
{{- end }}
{{- if and .Values.tls.enabled (eq .Values.probes.type "grpc") }}
{{- fail "probes.type=grpc does not go with tls.enabled: the kubelet asks without TLS" }}
{{- end }}
{{- end }}

{{- /* What a probe asks: `root` and the `path` on the admin port. */}}
{{- define "frostline.probe" -}}
{{- if eq .root.Values.probes.type "http" -}}
httpGet:
  port: admin
  path: {{ .path }}
{{- else -}}
grpc:
  port: {{ .root.Values.service.port }}
{{- end }}
{{- end }}
