// SPDX-License-Identifier: Apache-2.0

package function

import (
	"io"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
	"github.com/kanister-kopia/kanister-kopia/pkg/volumes"
	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
)

func TestSizeText(t *testing.T) {
	for bytes, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.000 KiB", 10570: "10.322 KiB",
		1 << 20: "1.000 MiB", 3 << 29: "1.500 GiB", 5 << 40: "5.000 TiB",
	} {
		if got := sizeText(bytes); got != want {
			t.Errorf("%d: %q, want %q", bytes, got, want)
		}
	}
}

// The cases are those of KANISTER-CONTRACT 1.4.
func TestResolvePrefix(t *testing.T) {
	profile := &param.Profile{Location: param.Location{Bucket: "bucket", Prefix: "not-used"}}
	for prefix, want := range map[string]string{
		"":                 "bucket",
		"bucket":           "bucket",
		"bucket/a/b":       "bucket/a/b",
		"a/b":              "bucket/a/b",
		"s3-bucket/path/x": "bucket/s3-bucket/path/x",
		"/bucket/a":        "bucket/bucket/a",
		"a//b/":            "bucket/a/b",
		"bucket/a/":        "bucket/a/",
		"bucket//a":        "bucket//a",
	} {
		if got := resolvePrefix(profile, prefix); got != want {
			t.Errorf("%q: %q, want %q", prefix, got, want)
		}
	}
}

// Below a prefix is what it holds, however the two are written.
func TestIsUnder(t *testing.T) {
	for _, c := range []struct {
		prefix, above string
		want          bool
	}{
		{"bucket/a", "bucket/a", true},
		{"bucket/a", "bucket/a/", true},
		{"bucket//a/", "bucket/a", true},
		{"bucket/a/db-0", "bucket//a", true},
		{"bucket/ab", "bucket/a", false},
		{"bucket/a", "bucket/a/db-0", false},
	} {
		if got := isUnder(c.prefix, c.above); got != c.want {
			t.Errorf("%s under %s: %v", c.prefix, c.above, got)
		}
	}
}

func TestReadOutputs(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	var lines []string
	got, err := readOutputs(strings.NewReader("first\n"+
		`###Phase-output###: {"key":"id","value":"a b"}`+"\r\n"+
		`in a line ###Phase-output###:{"key":"mid","value":"1"}`+"\n"+
		`###Phase-output###: {"key":"long","value":"`+long+`"}`+"\n"+
		"last, without an end"), func(l string) { lines = append(lines, l) })
	want := map[string]any{"id": "a b", "mid": "1", "long": long}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("outputs %v, %v", got, err)
	}
	if !reflect.DeepEqual(lines, []string{"first", "last, without an end"}) {
		t.Errorf("lines %q", lines)
	}
	for _, bad := range []string{`###Phase-output###: {"key":"a-b","value":""}`, `###Phase-output###: {"key"`} {
		if _, err := readOutputs(strings.NewReader(bad), func(string) {}); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
	if got, err := readOutputs(strings.NewReader("nothing\n"), func(string) {}); err != nil || got != nil {
		t.Errorf("no outputs: %v, %v; want nil", got, err)
	}
}

// What a command writes may have no lines, and no end: it is handed on, and an output in
// it is found wherever it begins.
func TestReadOutputsWithoutLines(t *testing.T) {
	output := `###Phase-output###: {"key":"k","value":"v"}` + "\n"
	for at := longLine - len(outputMark) - 1; at <= longLine+1; at++ {
		var all strings.Builder
		got, err := readOutputs(strings.NewReader(strings.Repeat("x", at)+output+"y"), func(l string) { all.WriteString(l) })
		if err != nil || !reflect.DeepEqual(got, map[string]any{"k": "v"}) || strings.Trim(all.String(), "x") != "y" {
			t.Errorf("behind %d bytes: %v, %v, lines of %d bytes", at, got, err, all.Len())
		}
	}
	const much = 8 << 20
	longest, sum := 0, 0
	if got, err := readOutputs(io.LimitReader(zeros{}, much), func(l string) { longest, sum = max(longest, len(l)), sum+len(l) }); got != nil || err != nil {
		t.Errorf("binary data: %v, %v", got, err)
	}
	if sum != much || longest > 2*longLine {
		t.Errorf("lines of up to %d bytes, %d in all, want parts of %d", longest, sum, much)
	}
	// It ends although what is read does not.
	if _, err := readOutputs(io.MultiReader(strings.NewReader(outputMark), zeros{}), func(string) {}); err == nil || !strings.Contains(err.Error(), "longer than 2 MiB") {
		t.Errorf("an output without an end: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestPodLog: lines of commands are found by Kanister's fields.
func TestPodLog(t *testing.T) {
	var out strings.Builder
	call := Call{Log: slog.New(slog.NewTextHandler(&out, nil)).With("ActionSet", "backup-x", "Phase", "dump")}
	call.podLog("db-0", "postgres").Info("12 rows")
	if want := `msg="12 rows" ActionSet=backup-x Phase=dump Pod=db-0 Container=postgres LogKind=datapath`; !strings.Contains(out.String(), want) {
		t.Errorf("line %s, want %s in it", out.String(), want)
	}
}

// FuzzReadOutputs: no output of a command takes the controller down.
func FuzzReadOutputs(f *testing.F) {
	f.Add("###Phase-output###: {\"key\":\"k\",\"value\":\"v\"}\n")
	f.Add("a\r\n###Phase-output###:")
	f.Fuzz(func(t *testing.T, text string) {
		outputs, err := readOutputs(strings.NewReader(text), func(l string) {
			if strings.Contains(l, "\n") || l == "" {
				t.Errorf("%q is not a line", l)
			}
		})
		for key := range outputs {
			if !outputKey.MatchString(key) {
				t.Errorf("key %q, error %v", key, err)
			}
		}
	})
}

func TestPlan(t *testing.T) {
	dir := api.Record{BackupID: "id", AbsolutePath: "/var/lib/db/base"}
	file := api.Record{BackupID: "id", AbsolutePath: "/var/lib/db/dump.sql", Snapshot: api.SnapshotResult{Root: api.RootEntry{Name: "dump.sql", File: true}}}
	disk := api.Record{BackupID: "id", AbsolutePath: "/dev/disk", Snapshot: api.SnapshotResult{Root: api.RootEntry{Name: "disk", File: true, Device: true}}}
	for _, c := range []struct {
		name                    string
		record                  api.Record
		restorePath, backupPath string
		target, subPath, err    string
	}{
		{"in place", dir, "/", "", "/var/lib/db/base", "", ""},
		{"below another path", dir, "/mnt/data", "", "/mnt/data/var/lib/db/base", "", ""},
		{"the root elsewhere", dir, "/mnt/data", "/var/lib/db/base", "/mnt/data", "", ""},
		{"the root, untidy", dir, "/mnt/data/", "/var/lib//db/base/", "/mnt/data", "", ""},
		{"a sub-path", dir, "/mnt", "/var/lib/db/base/pg_wal/0", "/mnt", "pg_wal/0", ""},
		{"a parent of what was backed up", dir, "/mnt", "/var/lib/db", "", "", "holds /var/lib/db/base only"},
		{"a sibling with the same beginning", dir, "/mnt", "/var/lib/db/base2", "", "", "holds /var/lib/db/base only"},
		{"out of the backup", dir, "/mnt", "/var/lib/db/base/../../x", "", "", "holds /var/lib/db/base only"},
		{"the whole volume", api.Record{AbsolutePath: "/"}, "/mnt", "/etc", "/mnt", "etc", ""},
		{"a file in place", file, "/", "", "/var/lib/db", "", ""},
		{"a file elsewhere", file, "/mnt", "/var/lib/db/dump.sql", "/mnt", "", ""},
		{"a device in place", disk, "/", "", "/dev/disk", "", ""},
		{"a device elsewhere", disk, "/dev/other", "/dev/disk", "/dev/other", "", ""},
		{"below a device", disk, "/", "/dev/disk/x", "", "", "holds /dev/disk only"},
		{"below a file", file, "/mnt", "/var/lib/db/dump.sql/x", "", "", "holds /var/lib/db/dump.sql only"},
	} {
		p, err := plan(c.record, c.restorePath, c.backupPath)
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: error %v, want one with %q", c.name, err, c.err)
			}
		case err != nil || p.target != c.target || p.subPath != c.subPath:
			t.Errorf("%s: %+v, %v; want target %s, sub-path %q", c.name, p, err, c.target, c.subPath)
		}
	}
}

// Of two containers that have a claim at the directory, the last one says where.
func TestClaimAt(t *testing.T) {
	claim := func(name string) corev1.Volume {
		return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "claim-of-" + name},
		}}
	}
	scratch := corev1.Volume{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}
	container := func(name string, mounts ...corev1.VolumeMount) corev1.Container {
		return corev1.Container{Name: name, VolumeMounts: mounts}
	}
	at := func(volume, path, subPath string) corev1.VolumeMount {
		return corev1.VolumeMount{Name: volume, MountPath: path, SubPath: subPath}
	}
	for _, c := range []struct {
		name          string
		containers    []corev1.Container
		dir           string
		claim, inside string
		err           string
	}{
		{"the last mount of one claim", []corev1.Container{container("a", at("v", "/data", "")), container("b", at("v", "/data", "db"))}, "/data/x", "claim-of-v", "/db/x", ""},
		{"and the other way round", []corev1.Container{container("b", at("v", "/data", "db")), container("a", at("v", "/data", ""))}, "/data/x", "claim-of-v", "/x", ""},
		{"of two claims", []corev1.Container{container("a", at("v", "/data", "")), container("b", at("w", "/data", ""))}, "/data", "claim-of-w", "/", ""},
		{"only the first has it", []corev1.Container{container("a", at("v", "/data", "")), container("b", at("v", "/other", ""))}, "/data/x", "claim-of-v", "/x", ""},
		{"the last has something else", []corev1.Container{container("a", at("v", "/data", "")), container("b", at("scratch", "/data", ""))}, "/data", "claim-of-v", "/", ""},
		{"nowhere", []corev1.Container{container("a", at("v", "/data", ""))}, "/etc", "", "", "/etc of container a is on no volume"},
		{"on no claim", []corev1.Container{container("a", at("scratch", "/tmp", ""))}, "/tmp", "", "", "/tmp of container a is on volume scratch"},
	} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{Containers: c.containers, Volumes: []corev1.Volume{claim("v"), claim("w"), scratch}}}
		claim, inside, err := claimAt(pod, c.dir)
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: error %v, want %q in it", c.name, err, c.err)
			}
		case err != nil || claim != c.claim || inside != c.inside:
			t.Errorf("%s: %s in %s, %v; want %s in %s", c.name, inside, claim, err, c.inside, c.claim)
		}
	}
}

func TestLabelsMissing(t *testing.T) {
	pod := func(labels map[string]string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db-0", Labels: labels}}
	}
	for _, c := range []struct {
		name string
		pod  *corev1.Pod
		mode decide.Mode
		want string
	}{
		{"not opted in", pod(nil), decide.ModeNone, "label it kopia.kanister.io/injection=enabled"},
		{"no label", pod(nil), decide.ModeEnabled, "lacks label kopia.kanister.io/inject=true"},
		{"opted out", pod(map[string]string{"kopia.kanister.io/inject": "false"}), decide.ModeEnabled, "opted out"},
		{"labelled", pod(map[string]string{"kopia.kanister.io/inject": "true"}), decide.ModeEnabled, ""},
		{"mode all", pod(nil), decide.ModeAll, ""},
	} {
		got := labelsMissing(c.pod, decide.Namespace{Name: "shop", Mode: c.mode})
		if !strings.Contains(got, c.want) || (got == "") != (c.want == "") {
			t.Errorf("%s: %q, want %q in it", c.name, got, c.want)
		}
	}
}

func TestIdentity(t *testing.T) {
	owned := func(kind, name string) *corev1.Pod {
		controller := true
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Name: "web-5d4f-x1", Labels: map[string]string{"pod-template-hash": "5d4f"},
			OwnerReferences: []metav1.OwnerReference{{Kind: kind, Name: name, Controller: &controller}},
		}}
	}
	claim := volumes.Location{Kind: volumes.PersistentVolumeClaim, ClaimName: "data-db-0", VolumeName: "data"}
	nfs := volumes.Location{Kind: volumes.NFS, VolumeName: "share"}
	for _, c := range []struct {
		pod  *corev1.Pod
		at   volumes.Location
		want string
	}{
		{owned("ReplicaSet", "web-5d4f"), claim, "pvc.data-db-0"},
		{owned("ReplicaSet", "web-5d4f"), nfs, "deployment.web.share"},
		{owned("StatefulSet", "web"), nfs, "statefulset.web-5d4f-x1.share"},
		{&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "bare"}}, nfs, "pod.bare.share"},
	} {
		if got := identity(c.pod, c.at); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}

func TestDecode(t *testing.T) {
	var text string
	var yes bool
	var number int32
	var claims map[string]string
	var command []string
	args := map[string]any{
		"text": int64(7), "yes": "true", "number": "3",
		"claims": map[string]any{"data": "/mnt"}, "command": []any{"sh", int64(1)},
	}
	if err := decodeAll(args, map[string]any{"text": &text, "yes": &yes, "number": &number, "claims": &claims, "command": &command}); err != nil {
		t.Fatal(err)
	}
	if text != "7" || !yes || number != 3 || claims["data"] != "/mnt" || !reflect.DeepEqual(command, []string{"sh", "1"}) {
		t.Errorf("decoded %q %v %d %v %q", text, yes, number, claims, command)
	}
	err := decode(map[string]any{"number": "many"}, "number", &number)
	if err == nil || !strings.Contains(err.Error(), "Failed to decode arg `number`") {
		t.Errorf("error %v", err)
	}
}

func TestEncryptionKey(t *testing.T) {
	if key, err := encryptionKey(map[string]any{}); key != nil || err != nil {
		t.Errorf("absent: %v, %v", key, err)
	}
	if key, err := encryptionKey(map[string]any{"encryptionKey": ""}); key == nil || *key != "" || err != nil {
		t.Errorf("empty: %v, %v: it is not absent", key, err)
	}
}
