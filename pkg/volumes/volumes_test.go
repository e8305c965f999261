// SPDX-License-Identifier: Apache-2.0

package volumes_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/kanister-kopia/kanister-kopia/pkg/volumes"
)

func parsePod(t *testing.T, text string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(text), pod); err != nil {
		t.Fatal(err)
	}
	return pod
}

const databasePod = `
metadata: {name: db-0, namespace: shop}
spec:
  nodeName: node-7
  initContainers:
    - name: prepare
      volumeMounts: [{name: data, mountPath: /prepared, subPath: pg}]
    - name: proxy
      restartPolicy: Always
      volumeMounts: [{name: scratch, mountPath: /spool}]
  containers:
    - name: db
      env:
        - {name: SHARD, value: s1}
        - {name: DIR, value: "tenants/$(SHARD)"}
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: TIER, valueFrom: {fieldRef: {fieldPath: "metadata.labels['tier']"}}}
        - {name: KEY, valueFrom: {secretKeyRef: {name: s, key: k}}}
        - {name: TWICE, value: first}
        - {name: TWICE, valueFrom: {secretKeyRef: {name: s, key: k}}}
      volumeMounts:
        - {name: data, mountPath: /var/lib/db}
        - {name: wal, mountPath: /var/lib/db/wal/, readOnly: true}
        - {name: data, mountPath: /var/lib/db/shadow, subPath: old/./shadow}
        - {name: config, mountPath: /etc/db}
        - {name: shared, mountPath: /expr, subPathExpr: "$(DIR)/$(POD_NAME)"}
        - {name: shared, mountPath: /tier, subPathExpr: $(TIER)}
        - {name: shared, mountPath: /secret, subPathExpr: $(KEY)}
        - {name: shared, mountPath: /twice, subPathExpr: $(TWICE)}
        - {name: shared, mountPath: /dollar, subPathExpr: "a$$(SHARD)-$(SHARD)"}
        - {name: shared, mountPath: relative/dir}
        - {name: cache, mountPath: /cache}
        - {name: secrets, mountPath: /keys}
      volumeDevices:
        - {name: raw, devicePath: /dev/raw0}
    - name: whole
      volumeMounts: [{name: data, mountPath: /}]
  volumes:
    - {name: data, persistentVolumeClaim: {claimName: data-db-0}}
    - {name: wal, ephemeral: {volumeClaimTemplate: {spec: {}}}}
    - {name: shared, nfs: {server: nfs, path: /}}
    - {name: config, configMap: {name: c}}
    - {name: scratch, emptyDir: {}}
    - {name: cache, csi: {driver: cache.example.com}}
    - {name: secrets, csi: {driver: secrets-store.csi.k8s.io}}
    - {name: raw, persistentVolumeClaim: {claimName: raw-db-0}}
`

func TestResolve(t *testing.T) {
	pod := parsePod(t, databasePod)
	type want struct{ volume, claim, path, mount, root string }
	if l, err := volumes.Resolve(pod, "db", "/dev//raw0"); err != nil || !l.Device || l.VolumeName != "raw" || l.ClaimName != "raw-db-0" || l.PathInVolume != "/" || l.MountPath != "/dev/raw0" {
		t.Errorf("block device: %+v, %v", l, err)
	}
	for _, tc := range []struct {
		container, path string
		want            want
	}{
		{"db", "/var/lib/db", want{"data", "data-db-0", "/", "/var/lib/db", "/"}},
		{"db", "/var/lib/db/base/1", want{"data", "data-db-0", "/base/1", "/var/lib/db", "/"}},
		{"db", "/var//lib/x/../db/base/", want{"data", "data-db-0", "/base", "/var/lib/db", "/"}},
		{"db", "/var/lib/db/wal/0001", want{"wal", "db-0-wal", "/0001", "/var/lib/db/wal", "/"}},
		// Not below the mount /var/lib/db/wal, although it begins with its text.
		{"db", "/var/lib/db/walrus", want{"data", "data-db-0", "/walrus", "/var/lib/db", "/"}},
		{"db", "/var/lib/db/shadow/f", want{"data", "data-db-0", "/old/shadow/f", "/var/lib/db/shadow", "/old/shadow"}},
		{"db", "/expr/f", want{"shared", "", "/tenants/s1/db-0/f", "/expr", "/tenants/s1/db-0"}},
		{"db", "/dollar", want{"shared", "", "/a$(SHARD)-s1", "/dollar", "/a$(SHARD)-s1"}},
		{"db", "/relative/dir/f", want{"shared", "", "/f", "/relative/dir", "/"}},
		{"db", "/cache/f", want{"cache", "", "/f", "/cache", "/"}},
		{"prepare", "/prepared/f", want{"data", "data-db-0", "/pg/f", "/prepared", "/pg"}},
		{"proxy", "/spool", want{"scratch", "", "/", "/spool", "/"}},
		{"whole", "/etc", want{"data", "data-db-0", "/etc", "/", "/"}},
		{"whole", "/", want{"data", "data-db-0", "/", "/", "/"}},
	} {
		t.Run(tc.container+tc.path, func(t *testing.T) {
			l, err := volumes.Resolve(pod, tc.container, tc.path)
			if err != nil {
				t.Fatal(err)
			}
			got := want{l.VolumeName, l.ClaimName, l.PathInVolume, l.MountPath, l.MountRoot}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(want{})); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestResolveRefuses(t *testing.T) {
	pod := parsePod(t, databasePod)
	for _, tc := range []struct {
		container, path string
		reason          volumes.Reason
		text            string
	}{
		{"db", "/etc", volumes.NoVolume, "/etc of container db is on no volume; the agent reads volumes only"},
		{"db", "/var/lib/db/../../etc", volumes.NoVolume, "/var/etc of container db is on no volume; the agent reads volumes only"},
		{"db", "/etc/db/x", volumes.NotMirrored, "/etc/db/x of container db is on volume config, which the agent does not mirror: a volume of kind configMap is never mirrored"},
		{"db", "/keys", volumes.NotMirrored, "holds credentials"},
		{"db", "/dev/raw0/part", volumes.BlockDevice, "is below block device /dev/raw0 (raw)"},
		{"db", "data", volumes.BadPath, `path "data" is not absolute`},
		{"db", "", volumes.BadPath, "path is empty"},
		{"nope", "/data", volumes.UnknownContainer, `no container "nope"; it has: db, whole, prepare, proxy`},
		{"db", "/tier/x", volumes.UnknownSubPath, "variable TIER has no literal value"},
		{"db", "/secret", volumes.UnknownSubPath, "variable KEY has no literal value"},
		{"db", "/twice", volumes.UnknownSubPath, "variable TWICE has no literal value"},
	} {
		t.Run(tc.container+tc.path, func(t *testing.T) {
			l, err := volumes.Resolve(pod, tc.container, tc.path)
			var refused *volumes.Error
			if !errors.As(err, &refused) {
				t.Fatalf("got %+v, %v; want an *Error", l, err)
			}
			if refused.Reason != tc.reason || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %s: %v\nwant %s: %s", refused.Reason, err, tc.reason, tc.text)
			}
		})
	}
}

func TestResolveSubPathThatLeavesTheVolume(t *testing.T) {
	pod := parsePod(t, databasePod)
	pod.Spec.Containers[0].Env[0].Value = "../../other"
	_, err := volumes.Resolve(pod, "db", "/expr")
	var refused *volumes.Error
	if !errors.As(err, &refused) || refused.Reason != volumes.UnknownSubPath {
		t.Errorf("got %v, want %s", err, volumes.UnknownSubPath)
	}
}

func TestResolveWarnsOfNestedMounts(t *testing.T) {
	pod := parsePod(t, databasePod)
	l, err := volumes.Resolve(pod, "db", "/var/lib/db")
	if err != nil {
		t.Fatal(err)
	}
	want := []volumes.Nested{
		{MountPath: "/var/lib/db/shadow", VolumeName: "data"},
		{MountPath: "/var/lib/db/wal", VolumeName: "wal"},
	}
	if diff := cmp.Diff(want, l.Nested); diff != "" {
		t.Errorf("nested (-want +got)\n%s", diff)
	}
	for _, m := range want {
		if !strings.Contains(l.Warning(), m.MountPath) {
			t.Errorf("warning %q does not name %s", l.Warning(), m.MountPath)
		}
	}
	if l, err = volumes.Resolve(pod, "db", "/var/lib/db/base"); err != nil || l.Warning() != "" {
		t.Errorf("got warning %q (%v) for a path without nested mounts", l.Warning(), err)
	}
}

// A pod that has the agent is the truth: what it does not mount cannot be read.
func TestResolveFollowsTheAgentsMounts(t *testing.T) {
	pod := parsePod(t, databasePod)
	pod.Spec.InitContainers = append(pod.Spec.InitContainers, corev1.Container{
		Name:         "kopia-agent",
		VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/volumes/data", ReadOnly: true}},
	})
	if _, err := volumes.Resolve(pod, "db", "/var/lib/db/base"); err != nil {
		t.Errorf("mirrored volume: %v", err)
	}
	_, err := volumes.Resolve(pod, "proxy", "/spool")
	var refused *volumes.Error
	if !errors.As(err, &refused) || refused.Reason != volumes.NotMirrored || !strings.Contains(err.Error(), "kopia.kanister.io/volumes") {
		t.Errorf("volume the agent does not mount: got %v, want %s with the annotation to set", err, volumes.NotMirrored)
	}
	if _, err := volumes.Resolve(pod, "kopia-agent", "/volumes/data"); err == nil {
		t.Error("the agent's own container was resolved")
	}
}

func TestResolveClaims(t *testing.T) {
	mounts := map[string]string{"data": "/mnt/data", "wal": "/mnt/data/wal/", "other": "/srv"}
	for _, tc := range []struct{ path, claim, inside string }{
		{"/mnt/data", "data", "/"},
		{"/mnt/data/base/1", "data", "/base/1"},
		{"/mnt/data/wal", "wal", "/"},
		{"/mnt/data/wal/x/../y", "wal", "/y"},
		{"/mnt/data/walrus", "data", "/walrus"},
		{"/srv/", "other", "/"},
	} {
		claim, inside, err := volumes.ResolveClaims(mounts, tc.path)
		if err != nil || claim != tc.claim || inside != tc.inside {
			t.Errorf("%s: got %s:%s, %v; want %s:%s", tc.path, claim, inside, err, tc.claim, tc.inside)
		}
	}
	for _, tc := range []struct {
		mounts map[string]string
		path   string
		reason volumes.Reason
	}{
		{mounts, "/etc", volumes.NoVolume},
		{mounts, "/", volumes.NoVolume},
		{mounts, "x", volumes.BadPath},
		{map[string]string{"data": "mnt"}, "/mnt", volumes.BadPath},
		{map[string]string{"a": "/mnt", "b": "/mnt/"}, "/mnt/x", volumes.Ambiguous},
		{nil, "/mnt", volumes.NoVolume},
	} {
		_, _, err := volumes.ResolveClaims(tc.mounts, tc.path)
		var refused *volumes.Error
		if !errors.As(err, &refused) || refused.Reason != tc.reason {
			t.Errorf("%v %s: got %v, want %s", tc.mounts, tc.path, err, tc.reason)
		}
	}
	if claim, inside, err := volumes.ResolveClaims(map[string]string{"all": "/"}, "/a/b"); err != nil || claim != "all" || inside != "/a/b" {
		t.Errorf("claim at /: got %s:%s, %v", claim, inside, err)
	}
}

func TestChoose(t *testing.T) {
	const all = `
spec:
  containers:
    - name: c
      volumeMounts:
        - {name: claim, mountPath: /a}
        - {name: claim, mountPath: /b, subPath: b}
        - {name: eph, mountPath: /c}
        - {name: inline, mountPath: /d}
        - {name: nfs, mountPath: /e}
        - {name: tmp, mountPath: /f}
        - {name: secret, mountPath: /g}
        - {name: host, mountPath: /h}
        - {name: keys, mountPath: /i}
      volumeDevices: [{name: raw, devicePath: /dev/x}]
  volumes:
    - {name: claim, persistentVolumeClaim: {claimName: x}}
    - {name: unused, persistentVolumeClaim: {claimName: w}}
    - {name: raw, persistentVolumeClaim: {claimName: z}}
    - {name: eph, ephemeral: {}}
    - {name: inline, csi: {driver: d}}
    - {name: nfs, nfs: {server: s, path: /}}
    - {name: tmp, emptyDir: {}}
    - {name: secret, secret: {secretName: s}}
    - {name: config, configMap: {name: s}}
    - {name: token, projected: {}}
    - {name: down, downwardAPI: {}}
    - {name: host, hostPath: {path: /}}
    - {name: keys, csi: {driver: csi.cert-manager.io}}
    - {name: kopia-agent-state, emptyDir: {}}
`
	pod := parsePod(t, all)
	for _, tc := range []struct {
		name    string
		wanted  []string
		mirror  []string
		devices []string
		skipped []string
		unknown string
	}{
		{
			name:    "all that can be",
			mirror:  []string{"claim", "eph", "inline", "nfs"},
			devices: []string{"raw"},
			skipped: []string{"unused", "tmp", "host", "keys"},
		},
		{
			name:    "listed, in the pod's order",
			wanted:  []string{"tmp", "claim"},
			mirror:  []string{"claim", "tmp"},
			skipped: []string{"unused", "raw", "eph", "inline", "nfs", "host", "keys"},
		},
		{name: "listed although no container mounts it", wanted: []string{"unused"}, mirror: []string{"unused"}, skipped: []string{"claim", "raw", "eph", "inline", "nfs", "tmp", "host", "keys"}},
		{name: "secret", wanted: []string{"secret"}, unknown: "secret"},
		{name: "hostPath", wanted: []string{"claim", "host"}, unknown: "host"},
		{name: "credentials", wanted: []string{"keys"}, unknown: "keys"},
		{name: "block device", wanted: []string{"raw"}, devices: []string{"raw"}, skipped: []string{"claim", "unused", "eph", "inline", "nfs", "tmp", "host", "keys"}},
		{name: "not there", wanted: []string{"nope"}, unknown: "nope"},
		{name: "our own", wanted: []string{"kopia-agent-state"}, unknown: "kopia-agent-state"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			choice, err := volumes.Choose(pod, tc.wanted)
			if tc.unknown != "" {
				var e *volumes.UnknownVolumeError
				if !errors.As(err, &e) || e.Volume != tc.unknown {
					t.Fatalf("got %v, want an error about %s", err, tc.unknown)
				}
				if diff := cmp.Diff([]string{"claim", "unused", "raw", "eph", "inline", "nfs", "tmp"}, e.Accepted); diff != "" {
					t.Errorf("accepted (-want +got)\n%s", diff)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var skipped []string
			for _, s := range choice.Skipped {
				if s.Reason == "" {
					t.Errorf("volume %s is skipped without a reason", s.Name)
				}
				skipped = append(skipped, s.Name)
			}
			if diff := cmp.Diff(tc.mirror, choice.Mirrored); diff != "" {
				t.Errorf("mirrored (-want +got)\n%s", diff)
			}
			if diff := cmp.Diff(tc.devices, choice.Devices); diff != "" {
				t.Errorf("devices (-want +got)\n%s", diff)
			}
			if diff := cmp.Diff(tc.skipped, skipped); diff != "" {
				t.Errorf("skipped (-want +got)\n%s", diff)
			}
		})
	}
}
