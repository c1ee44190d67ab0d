{{/* Settings of all members, as variables. Passwords come from files, so that no child process and no `env` shows them. */}}
{{- define "howdah.settings" -}}
{{- $credentials := "/etc/howdah/credentials" -}}
- name: HOWDAH_SCOPE
  value: {{ include "howdah.fullname" . }}
{{ include "howdah.dcsEnv" . }}
- name: HOWDAH_SUPERUSER_USERNAME
  value: {{ .Values.auth.username | quote }}
- name: HOWDAH_SUPERUSER_PASSWORD_FILE
  value: {{ $credentials }}/superuser-password
- name: HOWDAH_REPLICATION_PASSWORD_FILE
  value: {{ $credentials }}/replication-password
- name: HOWDAH_REWIND_PASSWORD_FILE
  value: {{ $credentials }}/rewind-password
{{- with .Values.auth.restapiUsername }}
- name: HOWDAH_RESTAPI_USERNAME
  value: {{ . | quote }}
- name: HOWDAH_RESTAPI_PASSWORD_FILE
  value: {{ $credentials }}/restapi-password
{{- end }}
{{- with .Values.postgresql }}
{{- with .database }}
- name: HOWDAH_BOOTSTRAP_DATABASE
  value: {{ . | quote }}
{{- end }}
{{- with .parameters }}
- name: HOWDAH_POSTGRESQL_PARAMETERS
  value: {{ toJson . | quote }}
{{- end }}
{{- with .pgHba }}
- name: HOWDAH_POSTGRESQL_PG_HBA
  value: {{ join "\n" . | quote }}
{{- end }}
{{- with .initdb }}
- name: HOWDAH_BOOTSTRAP_INITDB
  value: {{ toJson . | quote }}
{{- end }}
{{- end }}
{{- with .Values.bootstrap }}
- name: HOWDAH_BOOTSTRAP_DCS
  value: {{ toJson . | quote }}
{{- end }}
{{- with .Values.configuration }}
- name: HOWDAH_CONFIGURATION
  value: {{ toYaml . | quote }}
{{- end }}
{{- end }}
