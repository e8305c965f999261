// SPDX-License-Identifier: Apache-2.0

package function

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kanister-kopia/kanister-kopia/pkg/volumes"
)

// A backup is refused that would lack another claim's data without anybody's knowing.
func TestLacksVolume(t *testing.T) {
	claim := func(volume, name string) corev1.Volume {
		return corev1.Volume{Name: volume, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}}
	}
	list := []corev1.Volume{
		claim("data", "data"), claim("wal", "wal"), claim("again", "data"),
		{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}},
		{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}},
		{Name: "secret", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{}}},
		{Name: "empty", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	}
	mount := func(volume, at, sub string) corev1.VolumeMount {
		return corev1.VolumeMount{Name: volume, MountPath: at, SubPath: sub}
	}
	data := mount("data", "/data", "")
	for name, c := range map[string]struct {
		path   string
		mounts []corev1.VolumeMount
		ignore []string
		lacks  string // the mount that it names, and the line that leaves it out
	}{
		"nothing below":                {"/data", []corev1.VolumeMount{data, mount("wal", "/wal", "")}, nil, ""},
		"another claim":                {"/data", []corev1.VolumeMount{data, mount("wal", "/data/pg/wal/", "")}, nil, "/data/pg/wal is another volume (wal): line /pg/wal in"},
		"beside the path":              {"/data/base", []corev1.VolumeMount{data, mount("wal", "/data/wal", "")}, nil, ""},
		"a path that is not clean":     {"/data/./pg/", []corev1.VolumeMount{data, mount("wal", "/data/pg/wal", "")}, nil, "/data/pg/wal is another volume (wal): line /wal in"},
		"a claim of the pod's own":     {"/data", []corev1.VolumeMount{data, mount("scratch", "/data/tmp", "")}, nil, "/data/tmp is another volume (scratch): line /tmp in"},
		"no claims":                    {"/data", []corev1.VolumeMount{data, mount("config", "/data/c", ""), mount("secret", "/data/s", ""), mount("empty", "/data/e", "")}, nil, ""},
		"a claim behind a ConfigMap":   {"/data", []corev1.VolumeMount{data, mount("config", "/data/c", ""), mount("wal", "/data/wal", "")}, nil, "/data/wal is"},
		"left out by name":             {"/data", []corev1.VolumeMount{data, mount("wal", "/data/pg/wal", "")}, []string{"/pg/wal"}, ""},
		"left out with its parent":     {"/data", []corev1.VolumeMount{data, mount("wal", "/data/pg/wal", "")}, []string{"pg/"}, ""},
		"something else is left out":   {"/data", []corev1.VolumeMount{data, mount("wal", "/data/pg/wal", "")}, []string{"/wal", "*.tmp"}, "/data/pg/wal is"},
		"the same claim, in it":        {"/data", []corev1.VolumeMount{data, mount("data", "/data/up", "pg/up")}, nil, ""},
		"the same claim, twice":        {"/data", []corev1.VolumeMount{data, mount("again", "/data/up", "pg/up")}, nil, ""},
		"the same claim, elsewhere":    {"/data", []corev1.VolumeMount{mount("data", "/data", "pg"), mount("data", "/data/up", "up")}, nil, "/data/up is another volume (data)"},
		"the same claim, like a child": {"/data", []corev1.VolumeMount{mount("data", "/data", "pg"), mount("data", "/data/up", "pg2")}, nil, "/data/up is another volume (data)"},
	} {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "db-0"},
			Spec:       corev1.PodSpec{Volumes: list, Containers: []corev1.Container{{Name: "db", VolumeMounts: c.mounts}}},
		}
		location, err := volumes.Resolve(pod, "db", c.path)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		err = lacksVolume(pod, podPath{"shop", "db-0", "db", c.path}, location, c.ignore)
		if (err != nil) != (c.lacks != "") {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for part := range strings.SplitSeq(c.lacks, ": ") {
			if err != nil && !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v, want %q in it", name, err, part)
			}
		}
	}
}
