// SPDX-License-Identifier: Apache-2.0

package blueprint

import (
	"slices"
	"strings"
	"testing"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
)

func TestSecretFields(t *testing.T) {
	for text, want := range map[string][]string{
		"plain":                                                                    nil,
		"{{ .Profile.Location.Bucket }}":                                           nil,
		"{{ .Profile.SkipSSLVerify }}":                                             nil,
		"{{ .ArtifactsIn.a.KeyValue.b }}":                                          nil,
		"{{ .Phases.dump.Output.id }}":                                             nil,
		`{{ (index .Phases "take-it").Output.id }}`:                                nil,
		"{{ if .Profile }}with{{ end }}":                                           nil,
		"{{ range .StatefulSet.Pods }}{{ . }}{{ end }}":                            nil,
		"{{ index .ConfigMaps.c.Data \"k\" }}":                                     nil,
		"not a template {{ . ":                                                     nil,
		"{{ toJson .Profile }}":                                                    {".Profile"},
		"{{ .Profile.Credential.KeyPair.Secret }}":                                 {".Profile.Credential.KeyPair.Secret"},
		`{{ index .Secrets.db.Data "password" | toString }}`:                       {".Secrets.db.Data"},
		`{{ index .Phases.dump.Secrets.db.Data "password" | toString | quote }}`:   {".Phases.dump.Secrets.db.Data"},
		`{{ index (index .Phases "take-it").Secrets.db.Data "password" }}`:         {`(index .Phases "take-it").Secrets.db.Data`},
		"{{ .DeferPhase.Secrets.db }}":                                             {".DeferPhase.Secrets.db"},
		"{{ $p := .Profile }}{{ $p.Location.Bucket }}":                             {".Profile"},
		"{{ with .Profile }}{{ .Credential.KeyPair.Secret }}{{ end }}":             {".Profile", ".Credential.KeyPair.Secret"},
		"{{ range .StatefulSet.Pods }}{{ $.Secrets.db }}{{ end }}":                 {"$.Secrets.db"},
		"{{ range $n, $p := .Phases }}{{ $p.Secrets }}{{ end }}":                   {".Phases", "$p.Secrets"},
		"{{ if $p := .Profile }}{{ $p.Credential.KeyPair.ID }}{{ end }}":           {".Profile", "$p.Credential.KeyPair.ID"},
		"{{ if .Options.x }}{{ else }}{{ .Secrets.a }}{{ end }}":                   {".Secrets.a"},
		`{{ define "x" }}{{ .Secrets.a }}{{ end }}{{ template "x" .StatefulSet }}`: {".Secrets.a"},
		"{{ toJson . }}":                                                           {"."},
		"{{ toJson $ }}":                                                           {"$"},
		"{{ printf \"%v\" .Phases.dump }}":                                         {".Phases.dump"},
	} {
		got := secretFields(text)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

func TestSecretsInCommands(t *testing.T) {
	action := &crv1alpha1.BlueprintAction{
		Phases: []crv1alpha1.BlueprintPhase{
			{Name: "push", Func: "KubeTask", Args: map[string]any{
				"image": "i", "command": []any{"sh", "-c", "kando location push --profile '{{ toJson .Profile }}'"},
			}},
			{Name: "quiet", Func: "KubeTask", Args: map[string]any{"image": "{{ .Options.image }}", "command": []any{"true"}}},
			// A data function takes no command: what it is given stays with the agent.
			{Name: "save", Func: "BackupData", Args: map[string]any{"encryptionKey": `{{ index .Secrets.k.Data "key" }}`}},
			{Name: "gone", Func: "NoSuch", Args: map[string]any{"command": "{{ .Profile }}"}},
		},
		DeferPhase: &crv1alpha1.BlueprintPhase{Name: "clean", Func: "KubeExec", Args: map[string]any{
			"command": []any{"psql", `{{ index .Phases.push.Secrets.db.Data "password" }}`},
		}},
	}
	got := SecretsInCommands(action, testFunctions())
	if len(got) != 2 || got[0].Phase != "push" || !slices.Equal(got[0].Fields, []string{".Profile"}) ||
		got[1].Phase != "clean" || !slices.Equal(got[1].Fields, []string{".Phases.push.Secrets.db.Data"}) {
		t.Fatalf("found %+v", got)
	}
	for _, want := range []string{"phase push", ".Profile", "KubeTask"} {
		if !strings.Contains(got[0].String(), want) {
			t.Errorf("%q does not say %s", got[0], want)
		}
	}
}

// FuzzSecretFields: no template takes the controller down.
func FuzzSecretFields(f *testing.F) {
	for _, text := range []string{"{{ .Profile }}", "{{ with .Phases }}{{ . }}{{ end }}", "{{ (.x).Secrets }}", "{{ nil }}", "{{ if $x := . }}{{ break }}{{ end }}"} {
		f.Add(text)
	}
	f.Fuzz(func(_ *testing.T, text string) { secretFields(text) })
}
