// SPDX-License-Identifier: Apache-2.0

package function

import (
	"log/slog"
	"maps"
	"strings"
	"testing"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
)

// everything is a registry of all functions that reach nothing: what they refuse
// they refuse before.
func everything() *Registry {
	data, companion := &Data{Log: slog.New(slog.DiscardHandler)}, &Companion{}
	return NewRegistry(append(data.Functions(), companion.Functions()...)...)
}

func goodProfile() *param.Profile {
	return &param.Profile{
		Location:   param.Location{Type: param.LocationTypeS3Compliant, Bucket: "bucket"},
		Credential: param.Credential{Type: param.CredentialTypeKeyPair, KeyPair: &param.KeyPair{ID: "id", Secret: "secret"}},
	}
}

// complete are arguments with which nothing is left to refuse.
func complete(function string) map[string]any {
	all := map[string]map[string]any{
		"BackupData":      {"namespace": "ns", "pod": "p", "container": "c", "includePath": "/data", "backupArtifactPrefix": "x"},
		"BackupDataAll":   {"namespace": "ns", "pods": "p q", "container": "c", "includePath": "/data", "backupArtifactPrefix": "x"},
		"BackupDataStats": {"namespace": "ns", "backupArtifactPrefix": "x", "backupID": "id"},
		"CopyVolumeData":  {"namespace": "ns", "volume": "v", "dataArtifactPrefix": "x"},
		"DeleteData":      {"namespace": "ns", "backupArtifactPrefix": "x", "backupID": "id"},
		"DeleteDataAll":   {"namespace": "ns", "backupArtifactPrefix": "x", "backupInfo": `{"p":{"PodName":"p","BackupID":"id"}}`},
		"RestoreData":     {"namespace": "ns", "image": "i", "backupArtifactPrefix": "x", "pod": "p", "backupIdentifier": "id"},
		"RestoreDataAll":  {"namespace": "ns", "image": "i", "backupArtifactPrefix": "x", "pods": "p", "backupInfo": `{"p":{"PodName":"p","BackupID":"id"}}`},
		"CheckRepository": {"backupArtifactPrefix": "x"},
		"LocationDelete":  {"artifact": "bucket/x"},
		"KubeOps":         {"operation": "create", "spec": "kind: ConfigMap"},
		"Wait":            {"timeout": "1s", "conditions": map[string]any{"anyOf": []any{}}},
		"WaitV2":          {"timeout": "1s", "conditions": map[string]any{"anyOf": []any{}}},
		"MultiContainerRun": {
			"backgroundImage": "i", "backgroundCommand": []any{"b"}, "outputImage": "i", "outputCommand": []any{"o"},
		},
	}
	return maps.Clone(all[function])
}

func execute(t *testing.T, name string, params param.TemplateParams, args map[string]any) (map[string]any, error) {
	t.Helper()
	f, err := everything().Get(name)
	if err != nil {
		t.Fatal(err)
	}
	return f.Exec(t.Context(), Call{Params: params, Args: args, OperationID: "op", ActionSet: "as", Log: slog.New(slog.DiscardHandler), Progress: func(api.Progress) {}})
}

// TestRefused has a row for each run-time refusal of Kanister's functions.
func TestRefused(t *testing.T) {
	for _, c := range []struct {
		name, function string
		change         map[string]any
		without        string
		want           string
	}{
		{"pod and volumes", "RestoreData", map[string]any{"volumes": map[string]any{"v": "/v"}}, "", "Require one argument: pod or volumes"},
		{"neither pod nor volumes", "RestoreData", nil, "pod", "Require one argument: pod or volumes"},
		{"id and tag of a restore", "RestoreData", map[string]any{"backupTag": "t"}, "", "Require one argument: backupTag or backupIdentifier"},
		{"neither id nor tag of a restore", "RestoreData", nil, "backupIdentifier", "Require one argument: backupTag or backupIdentifier"},
		{"id and tag of a deletion", "DeleteData", map[string]any{"backupTag": "t"}, "", "Require one argument: backupID or backupTag"},
		{"neither id nor tag of a deletion", "DeleteData", nil, "backupID", "Require one argument: backupID or backupTag"},
		{"more ids than prefixes", "DeleteData", map[string]any{"backupID": "a b c", "backupArtifactPrefix": "x y"}, "", "3 ids or tags and 2 prefixes"},
		{"backupInfo of a restore", "RestoreDataAll", map[string]any{"backupInfo": "not JSON"}, "", "Could not decode JSON data"},
		{"backupInfo of a deletion", "DeleteDataAll", map[string]any{"backupInfo": "not JSON"}, "", "Could not decode JSON data"},
		{"backupInfo without an id", "DeleteDataAll", map[string]any{"backupInfo": `{"p":{"PodName":"p"}}`}, "", "no BackupID for pod p"},
		{"no pods to back up", "BackupDataAll", nil, "pods", "Failed to get pods"},
		{"no pods to restore", "RestoreDataAll", nil, "pods", "Unsupported workload type"},
		{"mountPath", "CopyVolumeData", map[string]any{"mountPath": "not/absolute"}, "", `mountPath "not/absolute" is not absolute`},
		{"reclaimSpace", "DeleteData", map[string]any{"reclaimSpace": "perhaps"}, "", "Failed to decode arg `reclaimSpace`"},
		{"reclaimSpace of all", "DeleteDataAll", map[string]any{"reclaimSpace": "perhaps"}, "", "Failed to decode arg `reclaimSpace`"},
		{"volumes", "RestoreData", map[string]any{"volumes": "v"}, "pod", "Failed to decode arg `volumes`"},
		{"podOverride", "RestoreData", map[string]any{"podOverride": "x"}, "", "Failed to decode arg `podOverride`"},
		{"podLabels", "CopyVolumeData", map[string]any{"podLabels": "x"}, "", "Failed to decode arg `podLabels`"},
		{"podAnnotations", "CopyVolumeData", map[string]any{"podAnnotations": []any{"x"}}, "", "Failed to decode arg `podAnnotations`"},
		{"the whole bucket", "LocationDelete", map[string]any{"artifact": "bucket"}, "", "is the whole bucket"},
		{"the whole bucket, untidy", "LocationDelete", map[string]any{"artifact": "/x/.."}, "", "is the whole bucket"},
		{"no namespace to check", "CheckRepository", nil, "", "whose repository cannot be told"},
		{"operation", "KubeOps", map[string]any{"operation": "replace"}, "", "invalid operation 'replace'"},
		{"spec", "KubeOps", nil, "spec", "spec cannot be empty for create operation"},
		{"spec of a patch", "KubeOps", map[string]any{"operation": "patch"}, "spec", "spec cannot be empty for patch operation"},
		{"objectReference", "KubeOps", map[string]any{"operation": "delete"}, "", "missing one or more required fields name/namespace/group/apiVersion/resource in objectReference for delete operation"},
		{"timeout", "Wait", map[string]any{"timeout": "soon"}, "", "Failed to parse timeout"},
		{"conditions", "WaitV2", nil, "", "neither anyOf nor allOf"},
		{"sharedVolumeSizeLimit", "MultiContainerRun", map[string]any{"sharedVolumeSizeLimit": "much"}, "", "Failed to parse sharedStorageSize arg"},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := complete(c.function)
			maps.Copy(args, c.change)
			delete(args, c.without)
			out, err := execute(t, c.function, param.TemplateParams{Profile: goodProfile()}, args)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: outputs %v, error %v, want %q in it", c.function, out, err, c.want)
			}
		})
	}
}

// What is on somebody else's server has no place from which it could be deleted.
func TestLocationDeleteOfExternalServer(t *testing.T) {
	profile := goodProfile()
	profile.Location = param.Location{Type: param.LocationTypeKopia, Endpoint: "https://kopia.example.com:51515"}
	_, err := execute(t, "LocationDelete", param.TemplateParams{Profile: profile}, complete("LocationDelete"))
	if err == nil || !strings.Contains(err.Error(), "use DeleteData") {
		t.Errorf("%v, want what to use", err)
	}
}

// TestProfile has a row for each Profile that Kanister refuses.
func TestProfile(t *testing.T) {
	with := func(change func(*param.Profile)) *param.Profile {
		p := goodProfile()
		change(p)
		return p
	}
	kopia := func(creds *param.KopiaServerCreds) *param.Profile {
		return with(func(p *param.Profile) {
			p.Credential = param.Credential{Type: param.CredentialTypeKopia, KopiaServerSecret: creds}
		})
	}
	profiles := []struct {
		name    string
		profile *param.Profile
		want    string
	}{
		{"none", nil, "Profile must be non-nil"},
		{"location", with(func(p *param.Profile) { p.Location.Type = "ftp" }), "Location type not supported"},
		{"no key pair", with(func(p *param.Profile) { p.Credential.KeyPair = nil }), "Empty KeyPair field"},
		{"no id", with(func(p *param.Profile) { p.Credential.KeyPair.ID = "" }), "Access key ID is not set"},
		{"no secret", with(func(p *param.Profile) { p.Credential.KeyPair.Secret = "" }), "Secret access key is not set"},
		{"credential", with(func(p *param.Profile) { p.Credential.Type = "card" }), "Unsupported type 'card' for credentials"},
		{"no server", kopia(nil), "Empty KopiaServerSecret field"},
		{"no user", kopia(&param.KopiaServerCreds{Hostname: "h", Password: "p", Cert: "c"}), "Kopia Username is not set"},
		{"no password", kopia(&param.KopiaServerCreds{Username: "u", Hostname: "h", Cert: "c"}), "Kopia UserPassphrase is not set"},
		{"no host", kopia(&param.KopiaServerCreds{Username: "u", Password: "p", Cert: "c"}), "Kopia Hostname is not set"},
		{"no certificate", kopia(&param.KopiaServerCreds{Username: "u", Hostname: "h", Password: "p"}), "Kopia TLSCert is not set"},
	}
	// Kanister wraps the refusal in some functions only.
	wrapped := map[string]bool{
		"BackupData": true, "BackupDataAll": true, "BackupDataStats": true, "CopyVolumeData": true, "LocationDelete": true,
		"RestoreData": false, "RestoreDataAll": false, "DeleteData": false, "DeleteDataAll": false, "CheckRepository": false,
	}
	for function, wrap := range wrapped {
		for _, p := range profiles {
			_, err := execute(t, function, param.TemplateParams{Profile: p.profile}, complete(function))
			switch {
			case err == nil || !strings.Contains(err.Error(), p.want):
				t.Errorf("%s, %s: error %v, want %q in it", function, p.name, err, p.want)
			case strings.Contains(err.Error(), "Failed to validate Profile") != wrap:
				t.Errorf("%s, %s: error %v, wrapped as Kanister does: %v", function, p.name, err, wrap)
			}
		}
	}
}

// TestDecodeArgs: every argument with a type of its own is refused by name when it
// has another one, and taken as loosely as Kanister does otherwise.
func TestDecodeArgs(t *testing.T) {
	for function, arguments := range map[string][]string{
		"BackupData":     {"insecureTLS"},
		"CopyVolumeData": {"podOverride", "podLabels", "podAnnotations"},
		"RestoreDataAll": {"podOverride", "podLabels", "podAnnotations"},
		"KubeOps":        {"objectReference"},
		"Wait":           {"conditions"},
	} {
		for _, argument := range arguments {
			if argument == "insecureTLS" {
				var yes bool
				if err := decode(map[string]any{argument: "true"}, argument, &yes); err != nil || !yes {
					t.Errorf("%s: %v, %v", argument, yes, err)
				}
				continue
			}
			args := complete(function)
			args[argument] = "text"
			_, err := execute(t, function, param.TemplateParams{Profile: goodProfile()}, args)
			if err == nil || !strings.Contains(err.Error(), "Failed to decode arg `"+argument+"`") {
				t.Errorf("%s %s: error %v", function, argument, err)
			}
		}
	}
}
