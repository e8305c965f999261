// SPDX-License-Identifier: Apache-2.0

package param

import (
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
)

func testParams() *TemplateParams {
	return &TemplateParams{
		StatefulSet: &StatefulSetParams{Name: "db", Namespace: "shop", Pods: []string{"db-0", "db-1"}},
		Options:     map[string]string{"keep": "3"},
		ArtifactsIn: map[string]Artifact{"base": {KeyValue: map[string]string{"backupID": "shop-abc"}}},
		Phases: map[string]*Phase{
			"dump": {
				Output:  map[string]any{"version": "v1"},
				Secrets: map[string]corev1.Secret{"admin": {Data: map[string][]byte{"password": []byte("pw")}}},
			},
		},
		Profile: &Profile{
			Location:   Location{Type: LocationTypeS3Compliant, Bucket: "b", Endpoint: "e", Prefix: "p", Region: "r"},
			Credential: Credential{Type: CredentialTypeKeyPair, KeyPair: &KeyPair{ID: "id", Secret: "key"}},
			CABundle:   []byte("pem"),
		},
	}
}

func TestRender(t *testing.T) {
	for text, want := range map[string]string{
		"plain {text}":                                                        "plain {text}",
		"{{ .StatefulSet.Name }}":                                             "db",
		"{{ index .StatefulSet.Pods 1 }}":                                     "db-1",
		"{{ len .StatefulSet.Pods }}":                                         "2",
		"{{ .ArtifactsIn.base.KeyValue.backupID }}":                           "shop-abc",
		"{{ .Phases.dump.Output.version | upper }}":                           "V1",
		"{{ .Options.keep | quote }}":                                         `"3"`,
		"{{ range .StatefulSet.Pods }}{{ . }} {{ end }}":                      "db-0 db-1 ",
		"{{ index .Phases.dump.Secrets.admin.Data \"password\" | toString }}": "pw",
		// The shape that `kando location --profile` reads.
		"{{ toJson .Profile }}": `{"Location":{"type":"s3Compliant","bucket":"b","endpoint":"e","prefix":"p","region":"r"},` +
			`"Credential":{"Type":"keyPair","KeyPair":{"ID":"id","Secret":"key"},"Secret":null,"KopiaServerSecret":null},"SkipSSLVerify":false}`,
	} {
		got, err := Render(text, testParams())
		if err != nil || got != want {
			t.Errorf("Render(%s) = %q, %v; want %q", text, got, err, want)
		}
	}
}

// TestRenderFound has the constructs of Blueprints that people have published, each
// with where it was seen.
func TestRenderFound(t *testing.T) {
	p := testParams()
	p.Time = "2026-11-25T16:05:06.123456789Z"
	p.Object = map[string]any{
		"kind":     "StatefulSet",
		"metadata": map[string]any{"name": "db", "namespace": "shop", "labels": map[string]any{"app.kubernetes.io/instance": "shop-db"}},
		"spec":     map[string]any{"nodeSets": []any{map[string]any{"name": "hot", "count": int64(3)}}},
		"data":     map[string]any{"endpoints": "aHR0cHM6Ly9ldGNk"},
	}
	p.Secrets = map[string]corev1.Secret{"aws": {Data: map[string][]byte{"id": []byte("key")}}}
	p.ConfigMaps = map[string]corev1.ConfigMap{"location": {Data: map[string]string{"path": "backups"}}}
	for text, want := range map[string]string{
		// kanisterio/kanister examples/mysql, and most others
		`/{{ index .Object.metadata.labels "app.kubernetes.io/instance" }}/{{ toDate "2006-01-02T15:04:05.999999999Z07:00" .Time  | date "2006-01-02T15-04-05" }}`: "/shop-db/2026-11-25T16-05-06",
		// michaelcourcy/kasten-cnpg cnpg-blueprint.yaml
		`{{ toDate "2006-01-02T15:04:05.999999999Z07:00" .Time | date "2006-01-02T15:04:05Z07:00" | toString | replace ":" "-" | lower }}`: "2026-11-25t16-05-06z",
		// kanisterio/kanister examples/etcd/etcd-in-cluster
		`{{ index .Object.data "endpoints" | toString | b64dec }}`: "https://etcd",
		// kanisterio/kanister examples/elasticsearch-incremental
		`{{ len .Object.spec.nodeSets }}{{ (index .Object.spec.nodeSets 0).name }}{{ (index .Object.spec.nodeSets 0).count }}`: "1hot3",
		// kanisterio/kanister examples/stable/mongodb-replicaset
		`host="set/{{ range $i,$p :=.StatefulSet.Pods }}{{- if $i }},{{- end }}{{- $p -}}${sfx}{{ end }}"`: `host="set/db-0${sfx},db-1${sfx}"`,
		// kanisterio/kanister examples/cassandra: no space before the braces
		`{{ range .StatefulSet.Pods }} {{.}}{{end}}|{{ index .StatefulSet.Pods 0}}`: " db-0 db-1|db-0",
		// fabiomarinetti/kanister-demo blueprints/blueprint.yaml: of two kinds the one that is there
		`{{ $object := (or .Deployment .StatefulSet) }}{{ index $object.Pods 0 }} {{ lower .Object.kind }}`: "db-0 statefulset",
		// DonaldKellett/hello-kanister time-logger/blueprint.yaml
		`{{ (printf "%s/%s" .ConfigMaps.location.Data.path (toDate "2006-01-02T15:04:05.999999999Z07:00" .Time | date "2006-01-02")) | quote }} {{ .Secrets.aws.Data.id | toString }}`: `"backups/2026-11-25" key`,
		// kanisterio/kanister examples/cockroachdb
		`{{ toJson .Profile.Credential.KeyPair.ID | toString }}`: `"id"`,
		// kanisterio/kanister examples/kafka: keys of either form
		"a\n{{- if .Profile.Credential.KeyPair }}\n{{ .Profile.Credential.KeyPair.ID }}\n{{- else }}\n{{ .Profile.Credential.Secret.Data.aws_access_key_id | toString }}\n{{- end }}\nb": "a\nid\nb",
		// kanisterio/kanister examples/postgresql-wale
		`{{- if .Profile.SkipSSLVerify }}http{{- else }}{{ .Profile.Location.Endpoint | quote}}{{- end }}`: `"e"`,
		// kastendevhub/enterprise-blueprint k8ssandra: a template for kubectl
		`kubectl get secret -o go-template='{{"{{"}} .data.password | base64decode {{"}}"}}'`: `kubectl get secret -o go-template='{{ .data.password | base64decode }}'`,
		// kastendevhub/enterprise-blueprint cpd/cpd-bp.yaml
		"{{- range $key, $value := .Phases.dump.Secrets.admin.Data }}\nexport {{ $key }}={{ $value | toString }}\n{{- end }}": "\nexport password=pw",
	} {
		got, err := Render(text, p)
		if err != nil || got != want {
			t.Errorf("Render(%s) = %q, %v; want %q", text, got, err, want)
		}
	}
}

func TestRenderRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"{{ .Options.lost }}":                       `Failed to render template: "lost" not found`,
		"{{ if .Options.lost }}{{ end }}":           `Failed to render template: "lost" not found`,
		"{{ .ArtifactsIn.lost.KeyValue }}":          `Failed to render template: "lost" not found`,
		"{{ bcrypt \"x\" }}":                        "sprig usage of 'bcrypt' is not allowed by kanister as it is not FIPS compatible",
		"{{ htpasswd \"u\" \"p\" }}":                "not FIPS compatible",
		`{{ derivePassword 1 "long" "p" "u" "s" }}`: "sprig usage of 'derivePassword' is not allowed by kanister as it is not FIPS compatible",
		"{{ genPrivateKey \"dsa\" }}":               "sprig usage of 'genPrivateKey for dsa key' is not allowed by kanister",
		"{{ env \"HOME\" }}":                        `function "env" not defined`,
		"{{ .StatefulSet.Name":                      "parse template",
		"{{ .Deployment.Name }}":                    "Failed to render template",
	} {
		_, err := Render(text, testParams())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Render(%s): error %v, want one with %q", text, err, want)
		}
	}
}

func TestRenderValue(t *testing.T) {
	args := crv1alpha1.JSONMap{
		"pod":                            "{{ index .StatefulSet.Pods 0 }}",
		"replicas":                       int64(2),
		"wait":                           true,
		"nothing":                        nil,
		"command":                        []any{"sh", "-c", "echo {{ .Options.keep }}"},
		"data-{{ .StatefulSet.Name }}-0": map[string]any{"{{ .Options.keep }}": "{{ .StatefulSet.Namespace }}"},
	}
	got, err := RenderArgs(args, testParams())
	want := map[string]any{
		"pod": "db-0", "replicas": int64(2), "wait": true, "nothing": nil,
		"command":   []any{"sh", "-c", "echo 3"},
		"data-db-0": map[string]any{"3": "shop"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v\nwant %v", got, err, want)
	}
}

func TestRenderArtifacts(t *testing.T) {
	got, err := RenderArtifacts(map[string]crv1alpha1.Artifact{
		"base": {KeyValue: map[string]string{"v": "{{ .Phases.dump.Output.version }}", "k{{ .Options.keep }}": "x"}, KopiaSnapshot: "{{ .Options.keep }}"},
	}, testParams())
	want := map[string]crv1alpha1.Artifact{"base": {KeyValue: map[string]string{"v": "v1", "k3": "x"}, KopiaSnapshot: "3"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	_, err = RenderArtifacts(map[string]crv1alpha1.Artifact{"base": {KeyValue: map[string]string{"v": "{{ .Phases.lost }}"}}}, testParams())
	if err == nil || !strings.Contains(err.Error(), "artifact base") {
		t.Errorf("a template that fails: error %v, want one that names the artifact", err)
	}
}
