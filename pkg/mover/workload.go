// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// PodOfStatefulSet is a pod as the StatefulSet would make it, with the claims of
// its templates as volumes. The pod need not run, or exist.
func PodOfStatefulSet(set *appsv1.StatefulSet, name string) *corev1.Pod {
	pod := podOf(set.Namespace, name, &set.Spec.Template)
	for _, claim := range set.Spec.VolumeClaimTemplates {
		// A claim's template goes over a volume of its name.
		pod.Spec.Volumes = slices.DeleteFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == claim.Name })
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: claim.Name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim.Name + "-" + name},
		}})
	}
	return pod
}

// PodOfDeployment is a pod as the Deployment would make it.
func PodOfDeployment(d *appsv1.Deployment, name string) *corev1.Pod {
	return podOf(d.Namespace, name, &d.Spec.Template)
}

func podOf(namespace, name string, t *corev1.PodTemplateSpec) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: t.Labels, Annotations: t.Annotations},
		Spec:       *t.Spec.DeepCopy(),
	}
}

// IdentityFor is the identity with which workloads of a namespace use a claim, as
// far as their pod templates, or pods, tell.
func (m *Movers) IdentityFor(ctx context.Context, namespace, claim string) (Identity, error) {
	users, err := usersOf(ctx, m.Client, namespace, claim)
	if err != nil {
		return Identity{}, fmt.Errorf("look for the workload that uses claim %s: %w", claim, err)
	}
	return identityOf(users, claim), nil
}

// usersOf are the pods that may use a claim: those that workloads would make, whether
// or not any runs, and then those that are there and are nobody's or of a workload
// that we do not know.
func usersOf(ctx context.Context, c client.Client, namespace, claim string) ([]*corev1.Pod, error) {
	var sets appsv1.StatefulSetList
	var deployments appsv1.DeploymentList
	var daemons appsv1.DaemonSetList
	var crons batchv1.CronJobList
	var jobs batchv1.JobList
	var pods corev1.PodList
	for _, list := range []client.ObjectList{&sets, &deployments, &daemons, &crons, &jobs, &pods} {
		if err := c.List(ctx, list, client.InNamespace(namespace)); err != nil {
			return nil, err
		}
	}
	var users []*corev1.Pod
	for i := range sets.Items {
		if name, ok := podOfClaim(&sets.Items[i], claim); ok {
			users = append(users, PodOfStatefulSet(&sets.Items[i], name))
		}
	}
	for i := range deployments.Items {
		users = append(users, PodOfDeployment(&deployments.Items[i], ""))
	}
	for i := range daemons.Items {
		users = append(users, podOf(namespace, "", &daemons.Items[i].Spec.Template))
	}
	for i := range crons.Items {
		users = append(users, podOf(namespace, "", &crons.Items[i].Spec.JobTemplate.Spec.Template))
	}
	for i := range jobs.Items {
		users = append(users, podOf(namespace, "", &jobs.Items[i].Spec.Template))
	}
	for i := range pods.Items {
		// A temporary pod of ours is nobody's workload.
		if pods.Items[i].Labels[names.ManagedByLabel] != names.ManagedByValue {
			users = append(users, &pods.Items[i])
		}
	}
	return users, nil
}

// identityOf is that of the first user that mounts the claim; what it leaves open
// is filled from the next.
func identityOf(users []*corev1.Pod, claim string) Identity {
	var id Identity
	for _, pod := range users {
		for _, v := range pod.Spec.Volumes {
			if c := v.PersistentVolumeClaim; c != nil && c.ClaimName == claim {
				id = id.Or(FromPodSpec(&pod.Spec, v.Name))
			}
		}
	}
	return id
}

// podOfClaim is the name of the set's pod that a claim belongs to. A claim that
// the template itself names belongs to all of them.
func podOfClaim(set *appsv1.StatefulSet, claim string) (string, bool) {
	for _, t := range set.Spec.VolumeClaimTemplates {
		if ordinal, ok := strings.CutPrefix(claim, t.Name+"-"+set.Name+"-"); ok {
			if _, err := strconv.ParseUint(ordinal, 10, 31); err == nil {
				return set.Name + "-" + ordinal, true
			}
		}
	}
	for _, v := range set.Spec.Template.Spec.Volumes {
		if c := v.PersistentVolumeClaim; c != nil && c.ClaimName == claim {
			return set.Name + "-0", true
		}
	}
	return "", false
}
