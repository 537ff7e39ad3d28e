{{/* Names: the release's own when it says palisade already. */}}
{{- define "palisade.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "palisade.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "palisade.fullname" .) }}
{{- end }}

{{/* The brokers' NetworkPolicies know the operator's pods by app.kubernetes.io/name. */}}
{{- define "palisade.selectorLabels" -}}
app.kubernetes.io/name: palisade-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "palisade.labels" -}}
{{ include "palisade.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: palisade
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Its own kinds: it watches them, keeps a finalizer on them and writes their status. */}}
{{- define "palisade.kindRules" -}}
- apiGroups: [palisade.dev]
  resources: [secureclusters, users, acls, quotas, topics, certrotations]
  verbs: [list, watch, patch]
{{- end }}

{{/*
What the operator may do in a namespace that it serves: no wildcard, no role or binding, no exec, no node.
Each verb has a use: a watch needs list and watch, server-side apply get and patch, and create for a new object. What it makes is deleted by Kubernetes with its
owner; it deletes only the policy of a listener that is gone, and claims.
*/}}
{{- define "palisade.rules" -}}
{{ include "palisade.kindRules" . }}
- apiGroups: [palisade.dev]
  resources: [secureclusters/status, users/status, acls/status, quotas/status, topics/status, certrotations/status]
  verbs: [patch]
# Lets the objects that it makes for a resource be owned by the resource.
- apiGroups: [palisade.dev]
  resources: [secureclusters/finalizers, users/finalizers]
  verbs: [update]
# Authorities (replaced at a known version, hence update), broker certificates, the log's key, and what workloads mount.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, patch, update]
- apiGroups: [""]
  resources: [configmaps, services, serviceaccounts]
  verbs: [get, list, watch, create, patch]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch]
# Broker pods: an annotation makes the kubelet refresh what they mount at once.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, patch]
# Claims grow with spec.storage.size and are deleted when the reclaim policy says so.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [list, patch, delete]
# Whether a namespace is being deleted.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
