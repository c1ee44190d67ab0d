{{- define "howdah.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/*
Full name of the release: name of the cluster, of its primary's Service and of the StatefulSet. At most 40 characters, because
"-replicas", the number of a pod and the hash of a revision come behind it, in names and labels of 63.
*/}}
{{- define "howdah.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Labels of every pod of the release, and of the objects that the members make. */}}
{{- define "howdah.selectorLabels" -}}
app.kubernetes.io/name: {{ include "howdah.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels that select the members. */}}
{{- define "howdah.memberLabels" -}}
{{ include "howdah.selectorLabels" . }}
cluster-name: {{ include "howdah.fullname" . }}
{{- end }}

{{- define "howdah.labels" -}}
{{ include "howdah.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Metadata of an object: its name, and labels and annotations beside the common ones. */}}
{{- define "howdah.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "howdah.labels" .root | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (default dict .annotations) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "howdah.image" -}}
{{- $image := .Values.image }}
{{- $name := $image.repository }}
{{- if $image.registry }}{{ $name = printf "%s/%s" $image.registry $name }}{{ end }}
{{- if $image.digest }}
{{- printf "%s@%s" $name $image.digest }}
{{- else }}
{{- printf "%s:%s" $name (default .Chart.AppVersion $image.tag) }}
{{- end }}
{{- end }}

{{- define "howdah.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "howdah.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "howdah.secret" -}}
{{- default (printf "%s-credentials" (include "howdah.fullname" .)) .Values.auth.existingSecret }}
{{- end }}

{{- define "howdah.onKubernetes" -}}
{{- if eq .Values.dcs.type "kubernetes" }}true{{ end }}
{{- end }}

{{/* The Kubernetes mode, empty with another store. */}}
{{- define "howdah.mode" -}}
{{- if include "howdah.onKubernetes" . }}{{ .Values.dcs.kubernetes.mode }}{{ end }}
{{- end }}

{{/* The members by their names in the headless Service, for clients that choose for themselves. */}}
{{- define "howdah.hosts" -}}
{{- $name := include "howdah.fullname" . }}
{{- $hosts := list }}
{{- range until (int .Values.replicaCount) }}
{{- $hosts = append $hosts (printf "%s-%d.%s-members" $name . $name) }}
{{- end }}
{{- join "," $hosts }}
{{- end }}

{{/* Where the cluster is kept: variables of a member. */}}
{{- define "howdah.dcsEnv" -}}
{{- $dcs := .Values.dcs -}}
{{- if eq $dcs.type "kubernetes" }}
- name: HOWDAH_KUBERNETES_MODE
  value: {{ $dcs.kubernetes.mode }}
- name: HOWDAH_KUBERNETES_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: HOWDAH_KUBERNETES_LABELS
  value: {{ include "howdah.selectorLabels" . | fromYaml | toJson | quote }}
- name: HOWDAH_KUBERNETES_PORTS
  value: '[{"name": "postgresql", "port": 5432}]'
{{- else if eq $dcs.type "etcd3" }}
- name: HOWDAH_ETCD3_HOSTS
  value: {{ join "," (required "dcs.etcd3.hosts is needed with dcs.type etcd3" $dcs.etcd3.hosts) | quote }}
{{- else if eq $dcs.type "consul" }}
- name: HOWDAH_CONSUL_HOST
  value: {{ required "dcs.consul.host is needed with dcs.type consul" $dcs.consul.host | quote }}
{{- else if eq $dcs.type "zookeeper" }}
- name: HOWDAH_ZOOKEEPER_HOSTS
  value: {{ join "," (required "dcs.zookeeper.hosts is needed with dcs.type zookeeper" $dcs.zookeeper.hosts) | quote }}
{{- end }}
{{- end }}

{{/* What a small pod of ours has beside its container: it never restarts and writes nothing. */}}
{{- define "howdah.smallPod" -}}
restartPolicy: Never
enableServiceLinks: {{ .links }}
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
