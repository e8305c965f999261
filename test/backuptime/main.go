// SPDX-License-Identifier: Apache-2.0

// Backuptime measures how long a backup of a small volume takes, from the creation of
// the ActionSet to its completion, on the cluster of `make cluster`: with the
// repository's server running, with the server stopped, and for the first time. Of the
// stopped server it measures how long it takes to be ready, too, and what it costs meanwhile.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/test/scenario"
)

const name = "bench-backup" // of namespace, StatefulSet, Blueprint and Profile

var (
	warmRounds = flag.Int("warm", 20, "backups with the server running")
	coldRounds = flag.Int("cold", 5, "backups with the server stopped")
	// patience is longer than any of the controller's own limits on its way.
	patience = flag.Duration("timeout", 6*time.Minute, "how long one backup may take")
)

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "backuptime:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	c, err := scenario.Open()
	if err != nil {
		return err
	}
	if err := prepare(ctx, c); err != nil {
		return fmt.Errorf("make what is backed up: %w", err)
	}
	defer func() { err = errors.Join(err, c.DeleteNamespace(context.WithoutCancel(ctx), name)) }()

	first, as, err := backup(ctx, c)
	if err != nil {
		return err
	}
	report(wholeBackup+"new repository", "no budget", []time.Duration{first})
	id := scenario.Output(as, "save", "backupID")
	if err := rounds(*warmRounds, wholeBackup+"server running", "budget 800 ms", func() (time.Duration, error) {
		took, _, err := backup(ctx, c)
		return took, err
	}); err != nil {
		return err
	}
	var starts []time.Duration
	defer func() {
		if len(starts) > 0 {
			report("Repository server, Deployment scaled up to pod ready", "budget 4000 ms", starts)
		}
	}()
	return rounds(*coldRounds, wholeBackup+"server stopped", "budget 6000 ms", func() (time.Duration, error) {
		if err := stopServer(ctx, c, id); err != nil {
			return 0, fmt.Errorf("stop the server: %w", err)
		}
		if len(starts) == 0 {
			if err := idle(ctx, c, id); err != nil {
				return 0, fmt.Errorf("look at the idle repository: %w", err)
			}
		}
		started, err := watchStart(ctx, c, id)
		if err != nil {
			return 0, fmt.Errorf("watch the server: %w", err)
		}
		took, _, err := backup(ctx, c)
		start, startErr := started()
		if startErr == nil {
			starts = append(starts, start)
			fmt.Fprintf(os.Stderr, "server ready: %d ms\n", start.Milliseconds())
		}
		return took, errors.Join(err, startErr)
	})
}

const wholeBackup = "BackupData of 1 MiB, ActionSet created to complete, "

// rounds measures one thing n times. What was measured before an error is told.
func rounds(n int, what, budget string, measure func() (time.Duration, error)) error {
	var all []time.Duration
	for range n {
		took, err := measure()
		if err != nil {
			if len(all) > 0 {
				report(what, budget, all)
			}
			return fmt.Errorf("%s, round %d of %d: %w", what, len(all)+1, n, err)
		}
		fmt.Fprintf(os.Stderr, "%s: %d ms\n", what, took.Milliseconds())
		all = append(all, took)
	}
	if n > 0 {
		report(what, budget, all)
	}
	return nil
}

func report(what, budget string, took []time.Duration) {
	slices.Sort(took)
	fmt.Printf("%s: median of %d: %d ms, %d to %d ms (%s)\n", what,
		len(took), took[len(took)/2].Milliseconds(), took[0].Milliseconds(), took[len(took)-1].Milliseconds(), budget)
}

// prepare makes a pod with an agent and a small volume.
func prepare(ctx context.Context, c *scenario.Cluster) error {
	keys, err := c.StartS3(ctx)
	if err != nil {
		return err
	}
	if err := c.PutProfile(ctx, name, keys, name); err != nil {
		return err
	}
	if err := c.DeleteNamespace(ctx, name); err != nil {
		return err
	}
	if err := c.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: name, Labels: map[string]string{names.InjectionLabel: names.InjectionEnabled},
	}}); err != nil {
		return err
	}
	if err := c.Bind(ctx, name, "kanister-kopia-namespace"); err != nil {
		return err
	}
	if err := c.Blueprint(ctx, &crv1alpha1.Blueprint{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Actions: map[string]*crv1alpha1.BlueprintAction{"backup": {
			OutputArtifacts: map[string]crv1alpha1.Artifact{"files": {KeyValue: map[string]string{"id": "{{ .Phases.save.Output.backupID }}"}}},
			Phases: []crv1alpha1.BlueprintPhase{{Func: "BackupData", Name: "save", Args: crv1alpha1.JSONMap{
				"namespace": "{{ .StatefulSet.Namespace }}", "pod": "{{ index .StatefulSet.Pods 0 }}", "container": "app",
				"includePath": "/data", "backupArtifactPrefix": "{{ .Profile.Location.Bucket }}/" + name,
			}}},
		}},
	}); err != nil {
		return err
	}
	labels, uid := map[string]string{"app": name}, int64(1000)
	if err := c.Create(ctx, &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: name},
		Spec: appsv1.StatefulSetSpec{
			ServiceName: name, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": name, names.InjectLabel: "true"}},
				Spec: corev1.PodSpec{
					TerminationGracePeriodSeconds: new(int64(0)),
					SecurityContext:               &corev1.PodSecurityContext{RunAsUser: &uid, FSGroup: &uid},
					Containers: []corev1.Container{{
						Name: "app", Image: "kanister-kopia.local/busybox:dev", ImagePullPolicy: corev1.PullIfNotPresent,
						Command:      []string{"sh", "-c", "head -c 1048576 /dev/urandom > /data/file && sleep 1000000"},
						VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}},
					}},
				},
			},
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{
				ObjectMeta: metav1.ObjectMeta{Name: "data"},
				Spec: corev1.PersistentVolumeClaimSpec{
					AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
					Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
				},
			}},
		},
	}); err != nil {
		return err
	}
	return c.Rollout(ctx, name, "statefulset/"+name)
}

// backup runs the backup and returns how long it took.
func backup(ctx context.Context, c *scenario.Cluster) (time.Duration, *crv1alpha1.ActionSet, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, *patience, fmt.Errorf("not ended after %s", *patience))
	defer cancel()
	as, err := c.Run(ctx, &crv1alpha1.ActionSet{
		ObjectMeta: metav1.ObjectMeta{GenerateName: name + "-"},
		Spec:       &crv1alpha1.ActionSetSpec{Actions: []crv1alpha1.ActionSpec{scenario.Action("backup", name, name, name, name)}},
	}, nil)
	took := time.Since(began)
	if err != nil {
		return 0, nil, err
	}
	return took, as, c.Delete(ctx, as)
}

// stopServer stops the server of the repository that a backup is in, as the controller
// does with one that nobody uses, and waits until it is gone.
func stopServer(ctx context.Context, c *scenario.Cluster, backupID string) error {
	rs, err := c.RepositoryOf(ctx, backupID)
	if err != nil {
		return err
	}
	before := rs.DeepCopy()
	delete(rs.Annotations, names.Group+"/revision")
	if err := c.Patch(ctx, rs, client.MergeFrom(before)); err != nil {
		return err
	}
	if _, err := c.Kubectl(ctx, "wait", "--for=jsonpath={.status.phase}="+string(kopiav1alpha1.PhaseStopped),
		"repositoryserver/"+rs.Name, "-n", rs.Namespace, "--timeout=3m"); err != nil {
		return err
	}
	_, err = c.Kubectl(ctx, "wait", "--for=delete", "pod", "-n", rs.Namespace, "--timeout=3m",
		"-l", names.RepositoryLabel+"="+rs.Name+","+names.ComponentLabel+"=repository-server")
	return err
}

// idle tells what a repository takes of the cluster while its server is stopped.
func idle(ctx context.Context, c *scenario.Cluster, backupID string) error {
	rs, err := c.RepositoryOf(ctx, backupID)
	if err != nil {
		return err
	}
	var pods corev1.PodList
	if err := c.List(ctx, &pods, client.InNamespace(rs.Namespace), client.MatchingLabels{names.RepositoryLabel: rs.Name}); err != nil {
		return err
	}
	fmt.Printf("Repository whose server is stopped: %d pods (budget 0)\n", len(pods.Items))
	return nil
}

// watchStart watches the stopped server of the repository that a backup is in. What it
// returns is called when the server has been used, and says how long it took from the
// Deployment's scale-up to the pod's readiness, both as they were seen here.
func watchStart(ctx context.Context, c *scenario.Cluster, backupID string) (func() (time.Duration, error), error) {
	rs, err := c.RepositoryOf(ctx, backupID)
	if err != nil {
		return nil, err
	}
	deployments, err := c.Watch(ctx, &appsv1.DeploymentList{}, client.InNamespace(rs.Namespace), client.MatchingFields{"metadata.name": rs.Name})
	if err != nil {
		return nil, err
	}
	pods, err := c.Watch(ctx, &corev1.PodList{}, client.InNamespace(rs.Namespace), client.MatchingLabels{
		names.RepositoryLabel: rs.Name, names.ComponentLabel: "repository-server",
	})
	if err != nil {
		deployments.Stop()
		return nil, err
	}
	var scaled, ready time.Time
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer deployments.Stop()
		defer pods.Stop()
		for ready.IsZero() {
			select {
			case event := <-deployments.ResultChan():
				if d, ok := event.Object.(*appsv1.Deployment); ok && scaled.IsZero() && *d.Spec.Replicas > 0 {
					scaled = time.Now()
				}
			case event := <-pods.ResultChan():
				if p, ok := event.Object.(*corev1.Pod); ok && !scaled.IsZero() && p.DeletionTimestamp == nil && isReady(p) {
					ready = time.Now()
				}
			case <-stop:
				return
			}
		}
	}()
	return func() (time.Duration, error) {
		close(stop)
		<-ended
		if ready.IsZero() {
			return 0, errors.New("the server was used, and was not seen to start")
		}
		return ready.Sub(scaled), nil
	}, nil
}

func isReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}
