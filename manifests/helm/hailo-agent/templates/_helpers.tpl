{{/* Helm's customary name for the file of what templates share. */}}

{{/* What never changes in the life of a release: the DaemonSet's selector cannot. */}}
{{- define "hailo-agent.selectorLabels" -}}
app.kubernetes.io/name: hailo-agent
app.kubernetes.io/component: node-agent
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "hailo-agent.labels" -}}
{{ include "hailo-agent.selectorLabels" . }}
app.kubernetes.io/part-of: hailo-agent
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end }}

{{/* Labels or annotations of an object whose owner may add some: a map of all, ours last, so that they win. */}}
{{- define "hailo-agent.labelsWith" -}}
{{- $own := include "hailo-agent.labels" .root | fromYaml -}}
{{- merge $own (.labels | default dict) | toYaml -}}
{{- end }}

{{- define "hailo-agent.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* "true" or nothing. Notifications need devnodes opened just as active probes do. */}}
{{- define "hailo-agent.opensDevnodes" -}}
{{- if or .Values.activeProbes.enabled .Values.notifications.enabled }}true{{ end -}}
{{- end }}

{{- define "hailo-agent.machine" -}}
/run/hailo-agent/machine
{{- end }}

{{/* The settings that the chart itself makes, from values that mean more than one setting. */}}
{{- define "hailo-agent.ownConfig" -}}
{{- $config := dict "host" (dict "dev" "/host/dev" "sys" "/host/sys") "log" (dict "format" "json") -}}
{{- if ne .Values.kubeletRoot "/var/lib/kubelet" -}}
{{- $_ := set $config "kubelet" (dict "root" .Values.kubeletRoot) -}}
{{- end -}}
{{- $runtime := dict -}}
{{- if ne .Values.cdi.dir "/var/run/cdi" -}}
{{- $_ := set $runtime "cdi_dir" .Values.cdi.dir -}}
{{- $_ := set $runtime "cdi_search_dirs" (list "/etc/cdi" .Values.cdi.dir | uniq) -}}
{{- end -}}
{{- $health := dict -}}
{{- if include "hailo-agent.opensDevnodes" . -}}
{{- $_ := set $health "queries" "on" -}}
{{- end -}}
{{- if .Values.notifications.enabled -}}
{{- $_ := set $health "notifications" true -}}
{{- end -}}
{{- if .Values.usageMonitor.enabled -}}
{{- $_ := set $config "monitor" (dict "enabled" true) -}}
{{- end -}}
{{- if .Values.demo.enabled -}}
{{- $machine := include "hailo-agent.machine" . -}}
{{- $_ := set $config "host" (dict "dev" (printf "%s/dev" $machine) "sys" (printf "%s/sys" $machine)) -}}
{{- $_ := set $runtime "host_dev" (printf "%s/dev" $machine) -}}
{{- $_ := set $runtime "host_sys" (printf "%s/sys" $machine) -}}
{{/* A CDI spec would mount something onto a class directory that a kernel without the driver does not have. */}}
{{- $_ := set $runtime "delivery" (list "devicespec") -}}
{{/* Nothing answers behind a simulated devnode: asked, each device would look ill. */}}
{{- $_ := set $health "queries" "off" -}}
{{- end -}}
{{- if $runtime -}}{{- $_ := set $config "runtime" $runtime -}}{{- end -}}
{{- if $health -}}{{- $_ := set $config "health" $health -}}{{- end -}}
{{- $config | toYaml -}}
{{- end }}

{{/* The agent's settings, whole. */}}
{{- define "hailo-agent.config" -}}
{{- mergeOverwrite (include "hailo-agent.ownConfig" . | fromYaml) (.Values.config | default dict | deepCopy) | toYaml -}}
{{- end }}

{{/* The port that the agent listens at, in web.listen. */}}
{{- define "hailo-agent.port" -}}
{{- $config := include "hailo-agent.config" . | fromYaml -}}
{{- regexFind "[0-9]+$" (dig "web" "listen" ":9808" $config) | int -}}
{{- end }}

{{/* What pods ask for, if it is not named after models. */}}
{{- define "hailo-agent.resource" -}}
{{- dig "resource" "name" "hailo.ai/npu" (include "hailo-agent.config" . | fromYaml) -}}
{{- end }}

{{/* The affinity of the pods: the owner's, and in each of its terms that NFD has found a device. */}}
{{- define "hailo-agent.affinity" -}}
{{- $affinity := .Values.affinity | default dict | deepCopy -}}
{{- if .Values.nodeFeatureDiscovery.enabled -}}
{{- $found := dict "key" "feature.node.kubernetes.io/pci-0b40_1e60.present" "operator" "In" "values" (list "true") -}}
{{- $node := get $affinity "nodeAffinity" | default dict -}}
{{- $required := get $node "requiredDuringSchedulingIgnoredDuringExecution" | default dict -}}
{{- $terms := list -}}
{{- range (get $required "nodeSelectorTerms" | default (list dict)) -}}
{{- $terms = append $terms (set . "matchExpressions" (append (get . "matchExpressions" | default list) $found)) -}}
{{- end -}}
{{- $_ := set $node "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $terms) -}}
{{- $_ := set $affinity "nodeAffinity" $node -}}
{{- end -}}
{{- if $affinity -}}{{- toYaml $affinity -}}{{- end -}}
{{- end }}

{{/* How metrics are scraped, for PodMonitor and ServiceMonitor alike. */}}
{{- define "hailo-agent.endpoint" -}}
port: http
path: /metrics
{{- with .interval }}
interval: {{ . | quote }}
{{- end }}
{{- with .scrapeTimeout }}
scrapeTimeout: {{ . | quote }}
{{- end }}
# `namespace`, `pod` and `container` are the holder's, not the agent's.
honorLabels: true
relabelings:
  # The node, which is what dashboards call it, and which outlives the pod.
  - sourceLabels:
      - __meta_kubernetes_pod_node_name
    targetLabel: instance
  # Two alerts know agents by the name of their job alone.
  - targetLabel: job
    replacement: hailo-agent
{{- end }}
