// SPDX-License-Identifier: Apache-2.0

package actionset

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/kube"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
	"github.com/kanister-kopia/kanister-kopia/pkg/volumes"
)

// buildParams reads what the templates of an action see. It is a snapshot: after a
// workload was scaled down, .StatefulSet.Pods still has its pods. status is that of
// an action which an earlier controller began, if it has a time; then the snapshot is
// the earlier one. It is returned to be kept.
func buildParams(ctx context.Context, c client.Client, spec crv1alpha1.ActionSpec, status crv1alpha1.ActionStatus, now time.Time) (*param.TemplateParams, *crv1alpha1.WorkloadSnapshot, error) {
	profile := sync.OnceValues(func() (*param.Profile, error) { return resolveProfile(ctx, c, spec.Profile) })
	go profile() // while the object is read
	p := &param.TemplateParams{
		ArtifactsIn:    map[string]param.Artifact{},
		ConfigMaps:     map[string]corev1.ConfigMap{},
		Secrets:        map[string]corev1.Secret{},
		Phases:         map[string]*param.Phase{},
		Time:           cmp.Or(status.Time, now.UTC().Format(time.RFC3339Nano)),
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
			return nil, nil, err
		}
		p.Secrets[name] = *s
	}
	for name, ref := range spec.ConfigMaps {
		m, err := readConfigMap(ctx, c, ref)
		if err != nil {
			return nil, nil, err
		}
		p.ConfigMaps[name] = *m
	}
	snapshot, err := addObject(ctx, c, spec.Object, status, p)
	if err != nil {
		return nil, nil, err
	}
	if p.Profile, err = profile(); err != nil {
		return nil, nil, err
	}
	return p, snapshot, nil
}

// addObject reads the object of the action, and of a workload its pods, unless an
// earlier controller has.
func addObject(ctx context.Context, c client.Client, ref crv1alpha1.ObjectReference, status crv1alpha1.ActionStatus, p *param.TemplateParams) (*crv1alpha1.WorkloadSnapshot, error) {
	kind, err := objectKind(c.RESTMapper(), ref)
	if err != nil {
		return nil, err
	}
	key := client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}
	switch strings.ToLower(ref.Kind) {
	case "pvc", "persistentvolumeclaim":
		p.PVC = &param.PVCParams{Name: ref.Name, Namespace: ref.Namespace}
	case "namespace":
		// Kanister takes the namespace of the reference, kanctl fills both.
		name := cmp.Or(ref.Namespace, ref.Name)
		p.Namespace = &param.NamespaceParams{Name: name, Namespace: name}
		key = client.ObjectKey{Name: ref.Name}
	}
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(kind)
	err = c.Get(ctx, key, object)
	// An action that deletes its object goes on after a restart as it would have before.
	gone := apierrors.IsNotFound(err) && status.Time != ""
	if err != nil && !gone {
		return nil, fmt.Errorf("read %s %s: %w", kind.Kind, key, err)
	}
	p.Object = object.Object
	set := map[string]func(*param.StatefulSetParams){
		"statefulset":      func(w *param.StatefulSetParams) { p.StatefulSet = w },
		"deployment":       func(w *param.StatefulSetParams) { p.Deployment = (*param.DeploymentParams)(w) },
		"deploymentconfig": func(w *param.StatefulSetParams) { p.DeploymentConfig = (*param.DeploymentConfigParams)(w) },
	}[strings.ToLower(ref.Kind)]
	if set == nil {
		return nil, nil
	}
	snapshot := status.Workload
	switch {
	case snapshot == nil && gone:
		snapshot = &crv1alpha1.WorkloadSnapshot{}
	case snapshot == nil:
		pods, err := podsOf(ctx, c, object)
		if err != nil {
			return nil, err
		}
		snapshot = snapshotOf(object, pods)
	case snapshot.Replicas != nil && !gone:
		// What ScaleWorkload changed since.
		if err := unstructured.SetNestedField(object.Object, *snapshot.Replicas, "spec", "replicas"); err != nil {
			return nil, fmt.Errorf("read %s %s: %w", kind.Kind, key, err)
		}
	}
	set(workloadParams(ref.Namespace, ref.Name, snapshot))
	return snapshot, nil
}

// objectKind is the kind of an action's object: the ones that Kanister knows need no
// resource.
func objectKind(mapper meta.RESTMapper, ref crv1alpha1.ObjectReference) (schema.GroupVersionKind, error) {
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
		return schema.GroupVersionKind{Group: "apps.openshift.io", Version: "v1", Kind: "DeploymentConfig"}, nil
	}
	kind, err := kube.KindOf(mapper, ref)
	if err != nil {
		return kind, fmt.Errorf("read the object of the action: %w", err)
	}
	return kind, nil
}

// podsOf lists the Running pods of a workload's present version, in their order.
func podsOf(ctx context.Context, c client.Client, workload *unstructured.Unstructured) ([]corev1.Pod, error) {
	owner, selector, err := ownerOfPods(ctx, c, workload)
	if err != nil || owner == nil {
		return nil, err
	}
	var list corev1.PodList
	if err := c.List(ctx, &list, client.InNamespace(workload.GetNamespace()), client.MatchingLabelsSelector{Selector: selector}); err != nil {
		return nil, fmt.Errorf("list pods of %s: %w", workload.GetName(), err)
	}
	pods := slices.DeleteFunc(list.Items, func(p corev1.Pod) bool {
		return p.Status.Phase != corev1.PodRunning || p.DeletionTimestamp != nil || !metav1.IsControlledBy(&p, owner)
	})
	slices.SortFunc(pods, func(a, b corev1.Pod) int {
		return cmp.Or(cmp.Compare(ordinal(a.Name), ordinal(b.Name)), strings.Compare(a.Name, b.Name))
	})
	return pods, nil
}

// ownerOfPods is the object that made a workload's pods, nil if there is none yet.
func ownerOfPods(ctx context.Context, c client.Client, workload *unstructured.Unstructured) (metav1.Object, labels.Selector, error) {
	list := func(into client.ObjectList) error {
		if err := c.List(ctx, into, client.InNamespace(workload.GetNamespace())); err != nil {
			return fmt.Errorf("list the versions of %s: %w", workload.GetName(), err)
		}
		return nil
	}
	current := func(o metav1.Object, annotation, version string) bool {
		return metav1.IsControlledBy(o, workload) && o.GetAnnotations()[annotation] == version
	}
	switch workload.GetKind() {
	case "Deployment":
		var sets appsv1.ReplicaSetList
		if err := list(&sets); err != nil {
			return nil, nil, err
		}
		for i := range sets.Items {
			if rs := &sets.Items[i]; current(rs, revisionAnnotation, workload.GetAnnotations()[revisionAnnotation]) {
				selector, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector)
				return rs, selector, err
			}
		}
		return nil, nil, nil
	case "DeploymentConfig":
		version, _, _ := unstructured.NestedInt64(workload.Object, "status", "latestVersion")
		var controllers corev1.ReplicationControllerList
		if err := list(&controllers); err != nil {
			return nil, nil, err
		}
		for i := range controllers.Items {
			if rc := &controllers.Items[i]; current(rc, versionAnnotation, strconv.FormatInt(version, 10)) {
				return rc, labels.SelectorFromSet(rc.Spec.Selector), nil
			}
		}
		return nil, nil, nil
	default: // StatefulSet
		var set appsv1.StatefulSet
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(workload.Object, &set); err != nil {
			return nil, nil, fmt.Errorf("read StatefulSet %s: %w", workload.GetName(), err)
		}
		selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
		return workload, selector, err
	}
}

const (
	revisionAnnotation = "deployment.kubernetes.io/revision"
	// versionAnnotation is OpenShift's, on the ReplicationControllers of a DeploymentConfig.
	versionAnnotation = "openshift.io/deployment-config.latest-version"
)

// ordinal of a StatefulSet's pod; 0 for others.
func ordinal(pod string) int {
	n, err := strconv.Atoi(pod[strings.LastIndexByte(pod, '-')+1:])
	if err != nil {
		return 0
	}
	return n
}

func snapshotOf(workload *unstructured.Unstructured, pods []corev1.Pod) *crv1alpha1.WorkloadSnapshot {
	out := &crv1alpha1.WorkloadSnapshot{}
	if n, ok, _ := unstructured.NestedInt64(workload.Object, "spec", "replicas"); ok {
		out.Replicas = &n
	}
	for i := range pods {
		pod := crv1alpha1.PodSnapshot{Name: pods[i].Name, Claims: claimMounts(&pods[i])}
		// As the kubelet reports them; native sidecars, so our agent, are not there.
		for _, s := range pods[i].Status.ContainerStatuses {
			pod.Containers = append(pod.Containers, s.Name)
		}
		out.Pods = append(out.Pods, pod)
	}
	return out
}

func workloadParams(namespace, name string, s *crv1alpha1.WorkloadSnapshot) *param.StatefulSetParams {
	out := &param.StatefulSetParams{
		Name: name, Namespace: namespace,
		Pods: []string{}, Containers: [][]string{}, PersistentVolumeClaims: map[string]map[string]string{},
	}
	for _, pod := range s.Pods {
		out.Pods = append(out.Pods, pod.Name)
		out.Containers = append(out.Containers, append([]string{}, pod.Containers...))
		if len(pod.Claims) > 0 {
			out.PersistentVolumeClaims[pod.Name] = pod.Claims
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
