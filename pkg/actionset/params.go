// SPDX-License-Identifier: Apache-2.0

package actionset

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
	"github.com/kanister-kopia/kanister-kopia/pkg/volumes"
)

// buildParams reads what the templates of an action see. It is a snapshot: after a
// workload was scaled down, .StatefulSet.Pods still has its pods.
func buildParams(ctx context.Context, c client.Client, spec crv1alpha1.ActionSpec, time string) (*param.TemplateParams, error) {
	profile, err := resolveProfile(ctx, c, spec.Profile)
	if err != nil {
		return nil, err
	}
	p := &param.TemplateParams{
		ArtifactsIn:    map[string]param.Artifact{},
		ConfigMaps:     map[string]corev1.ConfigMap{},
		Secrets:        map[string]corev1.Secret{},
		Phases:         map[string]*param.Phase{},
		Time:           time,
		Profile:        profile,
		Options:        spec.Options,
		PodOverride:    spec.PodOverride.DeepCopy(),
		PodLabels:      spec.PodLabels,
		PodAnnotations: spec.PodAnnotations,
	}
	for name, a := range spec.Artifacts {
		p.ArtifactsIn[name] = param.Artifact{KeyValue: a.KeyValue, KopiaSnapshot: a.KopiaSnapshot}
	}
	for name, ref := range spec.Secrets {
		s, err := readSecret(ctx, c, ref)
		if err != nil {
			return nil, err
		}
		p.Secrets[name] = *s
	}
	for name, ref := range spec.ConfigMaps {
		m, err := readConfigMap(ctx, c, ref)
		if err != nil {
			return nil, err
		}
		p.ConfigMaps[name] = *m
	}
	return p, addObject(ctx, c, spec.Object, p)
}

// addObject reads the object of the action, and of a workload its pods.
func addObject(ctx context.Context, c client.Client, ref crv1alpha1.ObjectReference, p *param.TemplateParams) error {
	kind, err := kindOf(c.RESTMapper(), ref)
	if err != nil {
		return err
	}
	key := client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}
	switch strings.ToLower(ref.Kind) {
	case "statefulset":
		set := &appsv1.StatefulSet{}
		if err := c.Get(ctx, key, set); err != nil {
			return fmt.Errorf("read StatefulSet %s: %w", key, err)
		}
		pods, err := podsOf(ctx, c, set, set.Spec.Selector)
		if err != nil {
			return err
		}
		p.StatefulSet = workloadParams(set, pods)
	case "deployment":
		d := &appsv1.Deployment{}
		if err := c.Get(ctx, key, d); err != nil {
			return fmt.Errorf("read Deployment %s: %w", key, err)
		}
		current, err := currentReplicaSet(ctx, c, d)
		if err != nil {
			return err
		}
		var pods []corev1.Pod
		if current != nil {
			if pods, err = podsOf(ctx, c, current, d.Spec.Selector); err != nil {
				return err
			}
		}
		p.Deployment = (*param.DeploymentParams)(workloadParams(d, pods))
	case "pvc", "persistentvolumeclaim":
		p.PVC = &param.PVCParams{Name: ref.Name, Namespace: ref.Namespace}
	case "namespace":
		// Kanister takes the namespace of the reference, kanctl fills both.
		name := cmp.Or(ref.Namespace, ref.Name)
		p.Namespace = &param.NamespaceParams{Name: name, Namespace: name}
		key = client.ObjectKey{Name: ref.Name}
	}
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(kind)
	if err := c.Get(ctx, key, u); err != nil {
		return fmt.Errorf("read %s %s: %w", kind.Kind, key, err)
	}
	p.Object = u.Object
	return nil
}

// kindOf finds the kind that a reference means.
func kindOf(mapper meta.RESTMapper, ref crv1alpha1.ObjectReference) (schema.GroupVersionKind, error) {
	switch strings.ToLower(ref.Kind) {
	case "statefulset":
		return appsv1.SchemeGroupVersion.WithKind("StatefulSet"), nil
	case "deployment":
		return appsv1.SchemeGroupVersion.WithKind("Deployment"), nil
	case "pvc", "persistentvolumeclaim":
		return corev1.SchemeGroupVersion.WithKind("PersistentVolumeClaim"), nil
	case "namespace":
		return corev1.SchemeGroupVersion.WithKind("Namespace"), nil
	case "deploymentconfig":
		return schema.GroupVersionKind{}, errors.New("read the object of the action: kind deploymentconfig is not supported: use a Deployment")
	}
	if ref.APIVersion == "" || ref.Resource == "" {
		return schema.GroupVersionKind{}, fmt.Errorf("read the object of the action: kind %q needs apiVersion and resource", ref.Kind)
	}
	// kanctl sends "apps/" for the group.
	group, version := strings.Trim(ref.Group, "/"), ref.APIVersion
	if g, v, ok := strings.Cut(ref.APIVersion, "/"); ok {
		group, version = g, v
	}
	kind, err := mapper.KindFor(schema.GroupVersionResource{Group: group, Version: version, Resource: ref.Resource})
	if err != nil {
		return kind, fmt.Errorf("read the object of the action: %w", err)
	}
	return kind, nil
}

// podsOf lists the Running pods that owner made, in their order.
func podsOf(ctx context.Context, c client.Client, owner client.Object, selector *metav1.LabelSelector) ([]corev1.Pod, error) {
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return nil, fmt.Errorf("list pods of %s: %w", owner.GetName(), err)
	}
	var list corev1.PodList
	if err := c.List(ctx, &list, client.InNamespace(owner.GetNamespace()), client.MatchingLabelsSelector{Selector: s}); err != nil {
		return nil, fmt.Errorf("list pods of %s: %w", owner.GetName(), err)
	}
	pods := slices.DeleteFunc(list.Items, func(p corev1.Pod) bool {
		return p.Status.Phase != corev1.PodRunning || p.DeletionTimestamp != nil || !metav1.IsControlledBy(&p, owner)
	})
	slices.SortFunc(pods, func(a, b corev1.Pod) int {
		return cmp.Or(cmp.Compare(ordinal(a.Name), ordinal(b.Name)), strings.Compare(a.Name, b.Name))
	})
	return pods, nil
}

// ordinal of a StatefulSet's pod; 0 for others.
func ordinal(pod string) int {
	n, err := strconv.Atoi(pod[strings.LastIndexByte(pod, '-')+1:])
	if err != nil {
		return 0
	}
	return n
}

const revisionAnnotation = "deployment.kubernetes.io/revision"

// currentReplicaSet is that of the Deployment's present template; nil if none yet.
func currentReplicaSet(ctx context.Context, c client.Client, d *appsv1.Deployment) (*appsv1.ReplicaSet, error) {
	var list appsv1.ReplicaSetList
	if err := c.List(ctx, &list, client.InNamespace(d.Namespace)); err != nil {
		return nil, fmt.Errorf("list replica sets of %s: %w", d.Name, err)
	}
	for i := range list.Items {
		rs := &list.Items[i]
		if metav1.IsControlledBy(rs, d) && rs.Annotations[revisionAnnotation] == d.Annotations[revisionAnnotation] {
			return rs, nil
		}
	}
	return nil, nil
}

func workloadParams(owner client.Object, pods []corev1.Pod) *param.StatefulSetParams {
	out := &param.StatefulSetParams{
		Name: owner.GetName(), Namespace: owner.GetNamespace(),
		Pods: []string{}, Containers: [][]string{}, PersistentVolumeClaims: map[string]map[string]string{},
	}
	for i := range pods {
		pod := &pods[i]
		out.Pods = append(out.Pods, pod.Name)
		// As the kubelet reports them; native sidecars, so our agent, are not there.
		containers := []string{}
		for _, s := range pod.Status.ContainerStatuses {
			containers = append(containers, s.Name)
		}
		out.Containers = append(out.Containers, containers)
		if claims := claimMounts(pod); len(claims) > 0 {
			out.PersistentVolumeClaims[pod.Name] = claims
		}
	}
	return out
}

// claimMounts maps claim to mount path. As in Kanister, the last container that
// mounts a claim decides.
func claimMounts(pod *corev1.Pod) map[string]string {
	claims := map[string]string{}
	for _, v := range pod.Spec.Volumes {
		if v.PersistentVolumeClaim != nil {
			claims[v.Name] = volumes.ClaimName(pod.Name, &v)
		}
	}
	out := map[string]string{}
	for _, c := range pod.Spec.Containers {
		for _, m := range c.VolumeMounts {
			if claim, ok := claims[m.Name]; ok {
				out[claim] = m.MountPath
			}
		}
	}
	return out
}
