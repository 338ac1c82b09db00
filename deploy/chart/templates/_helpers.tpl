{{/* Name of the Deployment and of what belongs to it. */}}
{{- define "operator.name" -}}
{{- .Values.nameOverride | default "databasecluster-operator" -}}
{{- end }}

{{/*
Ends the names of cluster-scoped objects, so that installations in several namespaces have their own. The command
`databasecluster-operator fence --namespace` has the same rule (src/operator/src/fence.rs).
*/}}
{{- define "operator.suffix" -}}
{{- if ne .Release.Namespace "databasecluster-system" -}}
.{{ .Release.Namespace }}
{{- end -}}
{{- end }}

{{- define "operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.name -}}
{{ .Values.serviceAccount.name }}
{{- else if .Values.serviceAccount.create -}}
{{ include "operator.name" . }}
{{- else -}}
{{- fail "serviceAccount.create=false needs serviceAccount.name: the admission policies know the operator by its ServiceAccount" -}}
{{- end -}}
{{- end }}

{{- define "operator.priorityClassName" -}}
{{- if .Values.priorityClass.name -}}
{{ .Values.priorityClass.name }}
{{- else if .Values.priorityClass.create -}}
databasecluster-operator{{ include "operator.suffix" . }}
{{- end -}}
{{- end }}

{{/* By which the operator's Pods are selected. The operator's Leases have this label too, so it has no override. */}}
{{- define "operator.selectorLabels" -}}
app.kubernetes.io/name: databasecluster-operator
{{- end }}

{{/* Labels of every object. */}}
{{- define "operator.labels" -}}
{{ include "operator.selectorLabels" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
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

{{/*
Refuses an installation that would reconcile what another one reconciles, and one that would take the
CustomResourceDefinitions from another release. Without a cluster (helm template) there is nothing to compare with.
*/}}
{{- define "operator.checkNeighbours" -}}
{{- $own := printf "databasecluster-operator%s" (include "operator.suffix" .) -}}
{{- range (lookup "rbac.authorization.k8s.io/v1" "ClusterRole" "" "").items -}}
{{- if and (or (eq .metadata.name "databasecluster-operator") (hasPrefix "databasecluster-operator." .metadata.name)) (ne .metadata.name $own) -}}
{{- $theirs := index (.metadata.annotations | default dict) "database.io/watch-namespaces" | default "" -}}
{{- if or (not $theirs) (not $.Values.watchNamespaces) -}}
{{- fail (printf "another installation serves %s (annotation database.io/watch-namespaces of ClusterRole %s), and this one would serve %s: give each installation watchNamespaces of its own" ($theirs | default "all namespaces") .metadata.name (join "," $.Values.watchNamespaces | default "all namespaces")) -}}
{{- end -}}
{{- range $.Values.watchNamespaces -}}
{{- if has . (splitList "," $theirs) -}}
{{- fail (printf "watchNamespaces: namespace %s is served by the installation of ClusterRole databasecluster-operator* with the namespaces %s; two installations must not serve the same namespace" . $theirs) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if .Values.crds.create -}}
{{- range list "databaseclusters.database.io" "shardtables.database.io" -}}
{{- $crd := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" . -}}
{{- $owner := ($crd.metadata | default dict).annotations | default dict -}}
{{- $release := index $owner "meta.helm.sh/release-name" -}}
{{- $namespace := index $owner "meta.helm.sh/release-namespace" -}}
{{- if and $release (or (ne $release $.Release.Name) (ne $namespace $.Release.Namespace)) -}}
{{- fail (printf "CustomResourceDefinition %s belongs to release %s in namespace %s: set crds.create=false, or pass --take-ownership if that release is gone" . $release $namespace) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
