// SPDX-License-Identifier: Apache-2.0

package serve_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
	"github.com/kanister-kopia/kanister-kopia/webhook/serve"
)

// BenchmarkAdmission is the whole of an admission but network and TLS: the review
// decoded, the pod injected, the response encoded. It reports p50 and p99. The
// budgets: 2 containers and 3 volumes at most 0.5 ms per operation on one core
// (2,000/s); 20 containers and 40 volumes p50 at most 1.5 ms, p99 at most 5 ms.
func BenchmarkAdmission(b *testing.B) {
	for _, size := range []struct{ containers, volumes int }{{1, 0}, {2, 3}, {2, 5}, {5, 15}, {20, 40}} {
		b.Run(fmt.Sprintf("containers=%d/volumes=%d", size.containers, size.volumes), func(b *testing.B) {
			body := review(b, "shop", "CREATE", largePod(b, size.containers, size.volumes))
			handler := injector()
			handler.Namespaces = fakeNamespaces{"shop": limitedNamespace()}
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
			percentiles(b, times)
		})
	}
}

// BenchmarkAdmissionOverTLS asks the real server on loopback, as the API server
// does: HTTP/2, connections kept. Client and server share the processors.
func BenchmarkAdmissionOverTLS(b *testing.B) {
	for _, clients := range []int{1, 16} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			s := start(b)
			s.client.Transport.(*http.Transport).ForceAttemptHTTP2 = true
			body := review(b, "shop", "CREATE", largePod(b, 2, 3))
			var mu sync.Mutex
			var times []time.Duration
			b.ReportAllocs()
			b.SetParallelism(max(1, clients/runtime.GOMAXPROCS(0)))
			b.ResetTimer()
			one := func() time.Duration {
				begin := time.Now()
				resp, err := s.client.Post(s.url+serve.Path(decide.ModeEnabled), "application/json", bytes.NewReader(body))
				if err != nil {
					b.Error(err)
					return 0
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					b.Error(resp.Status)
				}
				return time.Since(begin)
			}
			if clients == 1 {
				for range b.N {
					times = append(times, one())
				}
			} else {
				b.RunParallel(func(pb *testing.PB) {
					var own []time.Duration
					for pb.Next() {
						own = append(own, one())
					}
					mu.Lock()
					defer mu.Unlock()
					times = append(times, own...)
				})
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "admissions/s")
			percentiles(b, times)
		})
	}
}

func percentiles(b *testing.B, times []time.Duration) {
	b.Helper()
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-µs")
}

// limitedNamespace has rules on resources, which cost time.
func limitedNamespace() decide.Namespace {
	memory := func(s string) corev1.ResourceList { return corev1.ResourceList{"memory": resource.MustParse(s)} }
	return decide.Namespace{
		Name:   "shop",
		Limits: []corev1.LimitRangeItem{{Type: corev1.LimitTypeContainer, Min: memory("64Mi"), Max: memory("2Gi")}},
		Quotas: []corev1.ResourceQuota{{Status: corev1.ResourceQuotaStatus{Hard: corev1.ResourceList{"requests.memory": resource.MustParse("64Gi")}}}},
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
