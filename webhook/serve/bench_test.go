// SPDX-License-Identifier: Apache-2.0

package serve_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
	"github.com/kanister-kopia/kanister-kopia/webhook/render"
	"github.com/kanister-kopia/kanister-kopia/webhook/serve"
)

// BenchmarkAdmission is the whole of an admission but network and TLS: the review
// decoded, the pod injected, the response encoded. It reports p50 and p99. The
// budgets: 2 containers and 3 volumes at most 0.5 ms per operation on one core
// (2,000/s); 20 containers and 40 volumes p50 at most 1.5 ms, p99 at most 5 ms.
func BenchmarkAdmission(b *testing.B) {
	for _, size := range []struct{ containers, volumes int }{{1, 0}, {2, 3}, {20, 40}} {
		b.Run(fmt.Sprintf("containers=%d/volumes=%d", size.containers, size.volumes), func(b *testing.B) {
			body := review(b, "shop", "CREATE", largePod(b, size.containers, size.volumes))
			handler := &admission.Webhook{Handler: &serve.Injector{
				Mode:       decide.ModeEnabled,
				Namespaces: fakeNamespaces{"shop": {Name: "shop"}},
				Options:    render.Options{Image: "agent", Version: "v1"},
				Metrics:    serve.NewMetrics(prometheus.NewRegistry()),
				Log:        slog.New(slog.DiscardHandler),
				Clock:      clock.RealClock{},
			}}
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			var times []time.Duration
			for b.Loop() {
				start := time.Now()
				req := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
				req.Header.Set("Content-Type", "application/json")
				w := httptest.NewRecorder()
				handler.ServeHTTP(w, req)
				times = append(times, time.Since(start))
				if w.Code != http.StatusOK {
					b.Fatal(w.Body)
				}
			}
			slices.Sort(times)
			b.ReportMetric(float64(times[len(times)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-µs")
		})
	}
}

func largePod(b *testing.B, containers, volumes int) []byte {
	b.Helper()
	pod := &corev1.Pod{}
	pod.Name = "db-0"
	pod.Labels = map[string]string{"kopia.kanister.io/inject": "true", "app": "db"}
	for i := range volumes {
		v := corev1.Volume{Name: fmt.Sprintf("volume-%d", i)}
		if i%2 == 0 {
			v.PersistentVolumeClaim = &corev1.PersistentVolumeClaimVolumeSource{ClaimName: fmt.Sprintf("claim-%d", i)}
		} else {
			v.ConfigMap = &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: fmt.Sprintf("config-%d", i)}}
		}
		pod.Spec.Volumes = append(pod.Spec.Volumes, v)
	}
	for i := range containers {
		c := corev1.Container{
			Name: fmt.Sprintf("container-%d", i), Image: "registry.example.com/team/application:v1.2.3",
			Command: []string{"/usr/bin/application", "--config=/etc/application/config.yaml", "--verbose"},
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
				"cpu": resource.MustParse("100m"), "memory": resource.MustParse("128Mi"),
			}},
			ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{}}},
		}
		for e := range 10 {
			c.Env = append(c.Env, corev1.EnvVar{Name: fmt.Sprintf("VARIABLE_%d", e), Value: "some value of usual length"})
		}
		for _, v := range pod.Spec.Volumes {
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: v.Name, MountPath: "/mnt/" + v.Name})
		}
		pod.Spec.Containers = append(pod.Spec.Containers, c)
	}
	raw, err := json.Marshal(pod)
	if err != nil {
		b.Fatal(err)
	}
	return raw
}
