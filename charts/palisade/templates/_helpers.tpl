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

{{/*
What the operator may do in a namespace that it serves: no wildcard, no role or binding, no exec, no node.
Each verb has a use: watches need get, list and watch; server-side apply needs patch, and create for a new object.
*/}}
{{- define "palisade.rules" -}}
# Its own kinds: it reads them, keeps a finalizer on them and writes their status.
- apiGroups: [palisade.dev]
  resources: [secureclusters, users, acls, quotas, topics, certrotations]
  verbs: [get, list, watch, patch]
- apiGroups: [palisade.dev]
  resources: [secureclusters/status, users/status, acls/status, quotas/status, topics/status, certrotations/status]
  verbs: [patch]
# Lets the objects that it makes for a resource be owned by the resource.
- apiGroups: [palisade.dev]
  resources: [secureclusters/finalizers, users/finalizers, acls/finalizers, quotas/finalizers, topics/finalizers, certrotations/finalizers]
  verbs: [update]
# Authorities, broker certificates, the log's key, and what workloads mount.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, patch, update, delete]
- apiGroups: [""]
  resources: [configmaps, services, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
# Broker pods: an annotation makes the kubelet refresh what they mount at once.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch]
# Claims grow with spec.storage.size and are deleted when the reclaim policy says so.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, patch, delete]
# Whether a namespace is being deleted.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
