{{- define "tandem.fullname" -}}
{{- if contains "tandem" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-tandem{{ end }}
{{- end }}

{{/* What a role's pods are found by: of (dict "root" $ "role" "web") */}}
{{- define "tandem.selector" -}}
app.kubernetes.io/name: tandem
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{- define "tandem.labels" -}}
{{ include "tandem.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "tandem.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "tandem.claim" -}}
{{ .Values.data.existingClaim | default (printf "%s-data" (include "tandem.fullname" .)) }}
{{- end }}

{{/* The environment of a role: (dict "root" $ "settings" (dict …) "secrets" (dict …)); the settings given here win over
     those of all; `secrets` are variables of this role alone, by the Secret's keys. */}}
{{- define "tandem.env" -}}
{{- $secret := required "existingSecret: name the Secret with redis-url, database-url and secret" .root.Values.existingSecret -}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- $own := .secrets | default dict }}
{{- range $variable, $key := merge (dict "REDIS_URL" "redis-url" "DATABASE_URL" "database-url" "SECRET" "secret") $own }}
- name: TANDEM_{{ $variable }}
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ $key }}}}
{{- end }}
{{- range $variable, $key := dict "METRICS_TOKEN" "metrics-token" "TURN_SECRET" "turn-secret" }}
- name: TANDEM_{{ $variable }}
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ $key }}, optional: true}}
{{- end }}
{{- $all := dict "model" .root.Values.model "data_dir" "/data" "log_format" "json" "alive_file" "/tmp/alive" }}
{{- range $name, $value := mergeOverwrite $all .root.Values.settings .settings }}
- name: TANDEM_{{ upper $name }}
  value: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}
{{- end }}
- {name: HOME, value: /tmp}
- {name: HF_HOME, value: /tmp/huggingface}
{{- end }}

{{/* A role's pod: (dict "root" $ "role" … "command" (list …) "image" … "settings" … "secrets" … "of" its values "rest"
     more of the container, as YAML). */}}
{{- define "tandem.pod" -}}
metadata:
  labels: {{- include "tandem.selector" . | nindent 4 }}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false  # TANDEM_… of a Service would be taken for a setting
  {{- with .root.Values.image.pullSecrets }}
  imagePullSecrets: {{- range . }}
    - name: {{ . }}
  {{- end }}
  {{- end }}
  {{- if .hostNetwork }}
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  {{- end }}
  terminationGracePeriodSeconds: {{ add .of.drainS 30 }}  # it drains, then ends in order
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  containers:
    - name: {{ .role }}
      image: {{ include "tandem.image" (dict "root" .root "image" .image) }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      args: {{ toJson .command }}
      env: {{- include "tandem.env" (dict "root" .root "settings" .settings "secrets" .secrets) | nindent 8 }}
      {{- with .rest }}
      {{- . | nindent 6 }}
      {{- end }}
      resources: {{- toYaml .of.resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      volumeMounts:
        - {name: data, mountPath: /data}
        - {name: tmp, mountPath: /tmp}
  volumes:
    - name: data
      persistentVolumeClaim: {claimName: {{ include "tandem.claim" .root }}}
    - name: tmp
      emptyDir: {}
  {{- with .of.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .of.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* A role without a port that could be asked: its processes' files are younger than a minute. */}}
{{- define "tandem.alive" -}}
startupProbe:
  exec: {command: [sh, -c, "ls /tmp/alive*"]}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  exec: {command: [sh, -c, 'test -z "$(find /tmp/alive* -mmin +1)"']}
  periodSeconds: 20
  timeoutSeconds: 5
{{- end }}

{{/* How many pods of a role may be away at a time: (dict "root" $ "role" …) */}}
{{- define "tandem.budget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "tandem.fullname" .root }}-{{ .role }}
  labels: {{- include "tandem.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {{- include "tandem.selector" . | nindent 6 }}
{{- end }}

{{/* A way in from outside: (dict "root" $ "role" … "port" its Service's "of" its values) */}}
{{- define "tandem.ingress" -}}
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: {{ include "tandem.fullname" .root }}-{{ .role }}
  labels: {{- include "tandem.labels" . | nindent 4 }}
  annotations: {{- toYaml .of.annotations | nindent 4 }}
spec:
  {{- with .of.className }}
  ingressClassName: {{ . }}
  {{- end }}
  rules:
    - host: {{ required (printf "%s.ingress.host" .role) .of.host }}
      http:
        paths:
          - path: /
            pathType: Prefix
            backend: {service: {name: {{ include "tandem.fullname" .root }}-{{ .role }}, port: {name: {{ .port }}}}}
  {{- with .of.tlsSecret }}
  tls:
    - {secretName: {{ . }}, hosts: [{{ $.of.host }}]}
  {{- end }}
{{- end }}
