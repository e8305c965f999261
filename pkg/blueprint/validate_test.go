// SPDX-License-Identifier: Apache-2.0

package blueprint

import (
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/function"
)

func testFunctions() *function.Registry {
	return function.NewRegistry(append((&function.Data{}).Functions(), (&function.Companion{}).Functions()...)...)
}

// The verdicts are those that the real `kanctl validate blueprint` gave for
// Blueprints of these shapes, or follow from its code. "" is accepted. Where a shape
// was found in a public repository, its name stands beside it.
func TestValidate(t *testing.T) {
	for name, c := range map[string]struct{ actions, want string }{
		"one phase": {`
backup:
  phases:
  - {func: KubeTask, name: dump, args: {image: i, command: [a]}}
`, ""},
		// Fields that no schema knows any more, and artifacts of both kinds.
		"an old one": {`
backup:
  type: StatefulSet
  inputArtifactNames: [undeclared]
  outputArtifacts:
    dump: {keyValue: {path: "{{ .Phases.dump.Output.path }}"}}
    snap: {kopiaSnapshot: "{{ .Phases.dump.Output.snap }}"}
  phases:
  - {func: KubeExec, name: dump, args: {namespace: n, pod: p, command: [a], container: c}}
`, ""},
		"objects are not rendered": {`
backup:
  phases:
  - func: KubeTask
    name: dump
    objects: {db: {kind: Secret, name: "{{ .Object.metadata.name }}", namespace: "{{ .StatefulSet.Namespace }}"}}
    args: {image: i, command: ["{{ .Phases.dump.Secrets.db.Data.password }}"]}
`, ""},
		"podOverride and labels": {`
backup:
  phases:
  - {func: KubeTask, name: a, args: {image: i, command: [a], podOverride: {containers: [{name: container}]}, podLabels: {team: db}, podAnnotations: {a/b: c}}}
`, ""},
		// kastendevhub/enterprise-blueprint cpd/cpd-bp.yaml: it refers to another phase.
		"a deferPhase with a pod of its own": {`
backup:
  deferPhase:
    func: KubeTask
    name: cleanup
    objects: {vars: {kind: Secret, name: vars, namespace: "{{ .Object.metadata.namespace }}"}}
    args: {image: i, command: ["{{ .Phases.dump.Secrets.vars.Data }}"]}
  phases:
  - {func: KubeTask, name: dump, args: {image: i, command: [a], podOverride: {volumes: [{name: v, ephemeral: {}}], containers: [{name: container, volumeMounts: [{name: v, mountPath: /tmp}]}]}}}
`, ""},
		// fabiomarinetti/kanister-demo blueprints/blueprint.yaml
		"yes, and a template for a key": {`
restore:
  phases:
  - {func: PrepareData, name: bring, args: {namespace: n1, image: i, command: [a], volumes: {"{{ .ArtifactsIn.context.KeyValue.pvc }}": /mnt}}}
  - {func: ScaleWorkload, name: start, args: {namespace: n1, name: a, kind: "{{ lower .Object.kind }}", replicas: 1, waitForReady: yes}}
`, ""},
		// kanisterio/kanister examples/migrate-pvc, examples/cassandra and kanisterio/blueprints time-log
		"the data functions": {`
backup:
  phases:
  - {func: BackupData, name: a, args: {namespace: n1, pod: p, container: c, includePath: /d, backupArtifactPrefix: x}}
  - {func: BackupDataAll, name: b, args: {namespace: n1, pods: p q, container: c, includePath: /d, backupArtifactPrefix: x}}
  - {func: CopyVolumeData, name: c, args: {namespace: n1, volume: v, dataArtifactPrefix: x}}
restore:
  phases:
  - {func: RestoreData, name: d, args: {namespace: n1, image: i, pod: p, backupArtifactPrefix: x, backupTag: t}}
  - {func: RestoreDataAll, name: e, args: {namespace: n1, image: i, backupArtifactPrefix: x, pods: p q, restorePath: /, backupInfo: x}}
delete:
  phases:
  - {func: DeleteDataAll, name: f, args: {namespace: n1, backupArtifactPrefix: x, backupInfo: x, reclaimSpace: true}}
  - {func: LocationDelete, name: g, args: {artifact: x}}
`, ""},
		// michaelcourcy/kasten-mongodb-percona psmdb-bp.yaml and kanisterio/blueprints crunchy-pgo
		"objects and conditions": {`
backup:
  phases:
  - {func: KubeOps, name: a, args: {operation: create, namespace: n1, spec: "kind: A\n---\nkind: B"}}
  - func: Wait
    name: b
    args: {timeout: 360s, conditions: {anyOf: [{condition: '{{ if eq "{ $.status.state }" "ready" }}true{{ end }}', objectReference: {apiVersion: v1, group: g, resource: r, name: x, namespace: n1}}]}}
  - func: WaitV2
    name: c
    args: {timeout: 45m, conditions: {anyOf: [{condition: '{{ if .status.done }}true{{ end }}', objectReference: {apiVersion: v1, resource: r, name: x, namespace: n1}}]}}
  - {func: KubeOps, name: d, args: {operation: delete, objectReference: {group: g, resource: r, name: x}}}
`, ""},
		// A guide for Kasten and a page about Vault: what no pod spec has is not looked at.
		"a podOverride of a pod instead of its spec": {"backup: {phases: [{func: KubeTask, name: a, args: {image: i, command: [a], podOverride: {spec: {serviceAccountName: s}}}}]}", ""},
		"a template that does not parse":             {"backup: {phases: [{func: KubeTask, name: a, args: {image: i, command: ['{{ .Broken']}}]}", ""},
		// kanisterio/kanister examples/stable/cassandra of 0.50
		"KubeExecAll's argument for KubeExec": {"backup: {phases: [{func: KubeExec, name: a, args: {namespace: n1, pod: p, containers: c, command: [a]}}]}",
			"Failed to validate phase a in action backup: argument containers is not supported"},
		// A guide for Kasten
		"arguments that KubeOps never had": {`
backup:
  phases: [{func: KubeOps, name: create, args: {namespace: n1, resource: {apiVersion: v1}, spec: {kind: Pod}}}]
  deferPhase: {func: KubeOps, name: clean, args: {namespace: n1, op: delete, resource: {apiVersion: v1}}}
`, "Failed to validate phase clean in action backup: argument op is not supported"},
		// michaelcourcy/elasticsearch-kasten, kanisterio/kanister examples/aws-rds/postgresql/rds-postgres-blueprint.yaml
		"one setup for two actions": {`
backup: {phases: [{func: KubeTask, name: setup, args: {image: i, command: [a]}}, {func: KubeTask, name: save, args: {image: i, command: [a]}}]}
restore: {phases: [{func: KubeTask, name: setup, args: {image: i, command: [a]}}, {func: KubeTask, name: bring, args: {image: i, command: [a]}}]}
`, "Failed to validate: Duplicated phase name is not allowed. Violating phase 'setup'"},
		// kanisterio/kanister examples/csi-snapshot
		"a function of CSI snapshots": {"delete: {phases: [{func: DeleteCSISnapshot, name: a, args: {name: x, namespace: n1}}]}",
			"Requested function {DeleteCSISnapshot} has not been registered: it is one of Kanister's that are not here: run this Blueprint with a stock Kanister"},
		// What Kanister had before CheckRepository
		"a function that is gone": {"check: {phases: [{func: DescribeBackups, name: a, args: {backupArtifactPrefix: x}}]}",
			"Requested function {DescribeBackups} has not been registered: it is one of Kanister's that are not here: use CheckRepository"},
		"one unnamed phase":    {"backup: {phases: [{func: KubeTask, args: {image: i, command: [a]}}]}", ""},
		"no actions":           {"{}", ""},
		"an action of nothing": {"backup: {}", ""},
		"a null argument":      {"backup: {phases: [{func: KubeTask, name: a, args: {image: null, command: [a]}}]}", ""},
		"two unnamed phases": {"backup: {phases: [{func: KubeTask, args: {image: i, command: [a]}}, {func: KubeTask, args: {image: i, command: [a]}}]}",
			"Failed to validate: Duplicated phase name is not allowed. Violating phase ''"},
		"a name in two actions": {`
backup: {phases: [{func: KubeTask, name: same, args: {image: i, command: [a]}}]}
restore: {phases: [{func: KubeTask, name: same, args: {image: i, command: [a]}}]}
`, "Failed to validate: Duplicated phase name is not allowed. Violating phase 'same'"},
		"a deferPhase of another's name": {`
backup:
  phases: [{func: KubeTask, name: same, args: {image: i, command: [a]}}]
  deferPhase: {func: KubeTask, name: same, args: {image: i, command: [a]}}
`, "Failed to validate: Duplicated phase name is not allowed. Violating phase 'same'"},
		"a function of AWS": {"backup: {phases: [{func: CreateRDSSnapshot, name: a, args: {instanceID: x}}]}",
			"Failed to validate action backup: Requested function {CreateRDSSnapshot} has not been registered: it is one of Kanister's that are not here: run this Blueprint with a stock Kanister"},
		"a function of the former RepositoryServer": {"backup: {phases: [{func: BackupDataUsingKopiaServer, name: a, args: {namespace: n, pod: p, container: c, includePath: /d}}]}",
			"Requested function {BackupDataUsingKopiaServer} has not been registered: it is one of Kanister's that are not here: use BackupData"},
		"a function that is newer": {`
backup: {phases: [{func: PrepareData, name: a, args: {namespace: n, image: i, command: [a]}}, {func: WaitForEphemeralSnapshot, name: b, args: {namespace: n}}]}
restore: {phases: [{func: KubeTask, name: c, args: {image: i, command: [a], snapshotVolumes: {s: {mountPath: /r}}}}]}
`, "Failed to validate action backup: Requested function {WaitForEphemeralSnapshot} has not been registered: it is one of Kanister's that are not here: run this Blueprint with a stock Kanister"},
		"an argument that is newer": {"restore: {phases: [{func: KubeTask, name: c, args: {image: i, command: [a], snapshotVolumes: {s: {mountPath: /r}}}}]}",
			"Failed to validate phase c in action restore: argument snapshotVolumes is not supported"},
		"a function is missed before a name is found twice": {`
export: {phases: [{func: ExportRDSSnapshotToLocation, name: same, args: {namespace: n}}]}
restore: {phases: [{func: KubeTask, name: same, args: {image: i, command: [a]}}]}
`, "Failed to validate action export: Requested function {ExportRDSSnapshotToLocation} has not been registered"},
		"names are case-sensitive": {"backup: {phases: [{func: kubetask, name: a, args: {image: i, command: [a]}}]}",
			"Requested function {kubetask} has not been registered"},
		"an unknown function in a deferPhase": {"backup: {deferPhase: {func: Nothing, name: a}}",
			"Failed to validate action backup: Requested function {Nothing} has not been registered"},
		"an unknown argument": {"backup: {phases: [{func: KubeTask, name: a, args: {image: i, command: [a], mode: x}}]}",
			"Failed to validate phase a in action backup: argument mode is not supported"},
		"unsupported comes before missing": {"backup: {phases: [{func: KubeTask, name: a, args: {mode: x}}]}",
			"Failed to validate phase a in action backup: argument mode is not supported"},
		"a missing argument": {"backup: {phases: [{func: KubeTask, name: a, args: {image: i}}]}",
			"Failed to validate phase a in action backup: Required arg missing: command"},
		"no arguments": {"backup: {phases: [{func: KubeTask, name: a}]}",
			"Failed to validate phase a in action backup: Required arg missing: image"},
		"the deferPhase is judged first": {`
backup:
  phases: [{func: KubeTask, name: a}]
  deferPhase: {func: KubeTask, name: b}
`, "Failed to validate phase b in action backup"},
		"labels come before all": {"backup: {phases: [{func: KubeTask, name: a, args: {podLabels: {'-': x}, mode: y}}]}",
			"Failed to validate phase a in action backup: Kanister function validation failed, while validating labels: label key '-' failed validation. ["},
		"a label's value": {"backup: {phases: [{func: KubeTask, name: a, args: {image: i, command: [a], podLabels: {a: 'no good'}}}]}",
			"while validating labels: label value 'no good' failed validation. ["},
		"an annotation": {"backup: {phases: [{func: KubeTask, name: a, args: {image: i, command: [a], podAnnotations: {'a b': x}}}]}",
			"while validating annotations: annotation key 'a b' failed validation. ["},
		"labels that are no map": {"backup: {phases: [{func: KubeTask, name: a, args: {image: i, command: [a], podLabels: x}}]}",
			"podLabels are not in correct format. Expected format is map[string]interface{}."},
		"annotations that are no map": {"backup: {phases: [{func: KubeTask, name: a, args: {image: i, command: [a], podAnnotations: [x]}}]}",
			"podAnnotations are not in correct format. expected format is map[string]string."},
		"labels where there is no pod": {"backup: {phases: [{func: KubeExec, name: a, args: {namespace: n, pod: p, command: [a], podLabels: {a: b}}}]}",
			"argument podLabels is not supported"},
		"an empty action": {"backup: null", "Failed to validate action backup: it is empty"},
	} {
		var b crv1alpha1.Blueprint
		if err := yaml.Unmarshal([]byte(c.actions), &b.Actions); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		err := Validate(&b, testFunctions())
		if (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestValidateAction(t *testing.T) {
	task := func(name string) crv1alpha1.BlueprintPhase {
		return crv1alpha1.BlueprintPhase{Name: name, Func: "KubeTask"}
	}
	b := &crv1alpha1.Blueprint{Actions: map[string]*crv1alpha1.BlueprintAction{
		"backup":  {Phases: []crv1alpha1.BlueprintPhase{task("same")}},
		"restore": {Phases: []crv1alpha1.BlueprintPhase{task("same"), {Name: "rds", Func: "RestoreRDSSnapshot"}}},
		"twice":   {Phases: []crv1alpha1.BlueprintPhase{task("a"), task("a")}},
	}}
	b.Name = "bp"
	for action, want := range map[string]string{
		"backup":  "",
		"restore": "Requested function {RestoreRDSSnapshot} has not been registered",
		"twice":   "Violating phase 'a'",
		"lost":    "Action lost for object kind Deployment not found in blueprint bp",
	} {
		err := ValidateAction(b, action, "Deployment", testFunctions())
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", action, err, want)
		}
	}
}

// TestCheckArgs: at run time the order is the other way round, and a null counts.
func TestCheckArgs(t *testing.T) {
	f, err := testFunctions().Get("KubeTask")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args map[string]any
		want string
	}{
		{map[string]any{"image": nil, "command": nil}, ""},
		{map[string]any{"image": "i", "mode": "x"}, "Required args missing for function KubeTask: Required arg missing: command"},
		{map[string]any{"image": "i", "command": "c", "mode": "x"}, "Checking supported args for function KubeTask.: argument mode is not supported"},
	} {
		err := CheckArgs(f, c.args)
		if (c.want == "") != (err == nil) || err != nil && err.Error() != c.want {
			t.Errorf("%v: %v, want %q", c.args, err, c.want)
		}
	}
}
