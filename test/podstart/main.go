// SPDX-License-Identifier: Apache-2.0

// Podstart measures what the agent costs a pod's start, on the cluster of
// `make cluster`: pods with and without it are started in turn, so that both see
// the same machine, and the time from the request to readiness is compared.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/test/scenario"
)

const (
	namespace = "bench-podstart"
	rounds    = 15
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "podstart:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	c, err := scenario.Open()
	if err != nil {
		return err
	}
	if err := c.DeleteNamespace(ctx, namespace); err != nil {
		return err
	}
	if err := c.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: namespace, Labels: map[string]string{names.InjectionLabel: names.InjectionEnabled},
	}}); err != nil {
		return err
	}
	defer func() {
		_ = c.Delete(context.WithoutCancel(ctx), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}})
	}()

	took := map[bool][]time.Duration{}
	for i := range rounds {
		for _, agent := range []bool{false, true} {
			d, err := start(ctx, c, fmt.Sprintf("pod-%d-%v", i, agent), agent)
			if err != nil {
				return err
			}
			// The first of each kind warms caches up.
			if i > 0 {
				took[agent] = append(took[agent], d)
			}
		}
	}
	without, with := median(took[false]), median(took[true])
	fmt.Printf("pod start, median of %d: without agent %d ms, with agent %d ms, ratio %.2f\n",
		rounds-1, without.Milliseconds(), with.Milliseconds(), with.Seconds()/without.Seconds())
	return nil
}

// start creates a pod and returns the time until it is ready.
func start(ctx context.Context, c *scenario.Cluster, name string, agent bool) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	watch, err := c.Watch(ctx, &corev1.PodList{}, client.InNamespace(namespace),
		client.MatchingFieldsSelector{Selector: fields.OneTermEqualSelector("metadata.name", name)})
	if err != nil {
		return 0, err
	}
	defer watch.Stop()
	uid, grace := int64(1000), int64(0)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name, Annotations: map[string]string{names.VolumesAnnotation: "data"},
			Labels: map[string]string{names.InjectLabel: fmt.Sprint(agent)},
		},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			SecurityContext:               &corev1.PodSecurityContext{RunAsUser: &uid},
			Containers: []corev1.Container{{
				Name: "app", Image: "kanister-kopia.local/busybox:dev", ImagePullPolicy: corev1.PullIfNotPresent,
				Command: []string{"sleep", "1000000"}, VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}},
			}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
		},
	}
	begin := time.Now()
	if err := c.Create(ctx, pod); err != nil {
		return 0, err
	}
	if got := len(pod.Spec.InitContainers) == 1; got != agent {
		return 0, fmt.Errorf("pod %s has an agent: %v, expected %v", name, got, agent)
	}
	for event := range watch.ResultChan() {
		p, ok := event.Object.(*corev1.Pod)
		if !ok || !ready(p) {
			continue
		}
		took := time.Since(begin)
		return took, c.Delete(ctx, pod)
	}
	return 0, fmt.Errorf("pod %s was not ready in time: %w", name, context.Cause(ctx))
}

func ready(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func median(list []time.Duration) time.Duration {
	slices.Sort(list)
	return list[len(list)/2]
}
