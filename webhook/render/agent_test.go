// SPDX-License-Identifier: Apache-2.0

package render_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/kanister-kopia/kanister-kopia/webhook/render"
)

// A temporary pod takes the container as it is: nothing of a sidecar is in it.
func TestAgentContainerOfATemporaryPod(t *testing.T) {
	uid := int64(999)
	c := render.AgentContainer(render.AgentOptions{
		Name:        "container",
		Image:       "agent",
		UID:         &uid,
		MemoryLimit: 400 << 20,
		DataMounts:  []corev1.VolumeMount{{Name: "data", MountPath: "/volumes/data"}},
	})
	if c.RestartPolicy != nil {
		t.Error("restartPolicy is set: only init containers have one")
	}
	if c.Name != "container" || c.Image != "agent" || *c.SecurityContext.RunAsUser != 999 || !*c.SecurityContext.RunAsNonRoot {
		t.Errorf("got %+v", c)
	}
	if len(c.Env) != 1 || c.Env[0] != (corev1.EnvVar{Name: "GOMEMLIMIT", Value: "300MiB"}) {
		t.Errorf("env: got %v, want three quarters of the limit", c.Env)
	}
	volumes := map[string]bool{"data": true}
	for _, v := range render.AgentVolumes() {
		volumes[v.Name] = true
	}
	for _, m := range c.VolumeMounts {
		if !volumes[m.Name] {
			t.Errorf("mount of %s, which AgentVolumes does not have", m.Name)
		}
	}
}
