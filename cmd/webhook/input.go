// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
)

// input is what a file holds: pods, as they are or as a workload would make them,
// and what is known of their namespace.
type input struct {
	pods      []subject
	namespace decide.Namespace
	// ignored are the kinds that say nothing about pods.
	ignored []string
}

// subject is a pod and what it comes from.
type subject struct {
	// name is "pod db-0" or "statefulset db".
	name string
	pod  *corev1.Pod
	// misplaced: the workload carries the pod's label itself.
	misplaced bool
}

// object is any of the kinds that are understood.
type object struct {
	Kind     string `json:"kind"`
	Metadata struct {
		Name        string            `json:"name"`
		Namespace   string            `json:"namespace"`
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	Items []json.RawMessage `json:"items"`
}

// readInput reads YAML or JSON documents, and the items of lists in them, as
// `kubectl get limitranges,resourcequotas,deployments -o yaml` prints.
func readInput(r io.Reader) (*input, error) {
	in := &input{namespace: decide.Namespace{Labels: map[string]string{}, Annotations: map[string]string{}}}
	decoder := yaml.NewYAMLOrJSONDecoder(r, 4096)
	for {
		var raw json.RawMessage
		err := decoder.Decode(&raw)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read pod: %w", err)
		}
		if len(bytes.TrimSpace(raw)) == 0 || string(raw) == "null" {
			continue
		}
		if err := in.add(raw); err != nil {
			return nil, fmt.Errorf("read pod: %w", err)
		}
	}
	if len(in.pods) == 0 {
		found := "nothing"
		if len(in.ignored) > 0 {
			found = strings.Join(in.ignored, ", ")
		}
		return nil, fmt.Errorf("read pod: the file holds no Pod and no workload that makes one; it holds: %s", found)
	}
	return in, nil
}

func (in *input) add(raw json.RawMessage) error {
	var o object
	if err := json.Unmarshal(raw, &o); err != nil {
		return err
	}
	if strings.HasSuffix(o.Kind, "List") && len(o.Items) > 0 {
		for _, item := range o.Items {
			if err := in.add(item); err != nil {
				return err
			}
		}
		return nil
	}
	template := func(t corev1.PodTemplateSpec, claims []corev1.PersistentVolumeClaim) {
		pod := &corev1.Pod{ObjectMeta: t.ObjectMeta, Spec: t.Spec}
		pod.Namespace = o.Metadata.Namespace
		for _, c := range claims {
			pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: c.Name, VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c.Name + "-" + o.Metadata.Name + "-0"},
			}})
		}
		_, onWorkload := o.Metadata.Labels[names.InjectLabel]
		_, onTemplate := t.Labels[names.InjectLabel]
		in.pods = append(in.pods, subject{name: strings.ToLower(o.Kind) + " " + o.Metadata.Name, pod: pod, misplaced: onWorkload && !onTemplate})
	}
	switch o.Kind {
	case "Pod":
		return decode(raw, func(pod *corev1.Pod) { in.pods = append(in.pods, subject{name: "pod " + pod.Name, pod: pod}) })
	case "Deployment":
		return decode(raw, func(w *appsv1.Deployment) { template(w.Spec.Template, nil) })
	case "StatefulSet":
		return decode(raw, func(w *appsv1.StatefulSet) { template(w.Spec.Template, w.Spec.VolumeClaimTemplates) })
	case "DaemonSet":
		return decode(raw, func(w *appsv1.DaemonSet) { template(w.Spec.Template, nil) })
	case "ReplicaSet":
		return decode(raw, func(w *appsv1.ReplicaSet) { template(w.Spec.Template, nil) })
	case "Job":
		return decode(raw, func(w *batchv1.Job) { template(w.Spec.Template, nil) })
	case "CronJob":
		return decode(raw, func(w *batchv1.CronJob) { template(w.Spec.JobTemplate.Spec.Template, nil) })
	case "Namespace":
		in.namespace.Name, in.namespace.Labels, in.namespace.Annotations = o.Metadata.Name, o.Metadata.Labels, o.Metadata.Annotations
	case "LimitRange":
		return decode(raw, func(l *corev1.LimitRange) { in.namespace.Limits = append(in.namespace.Limits, l.Spec.Limits...) })
	case "ResourceQuota":
		return decode(raw, func(q *corev1.ResourceQuota) { in.namespace.Quotas = append(in.namespace.Quotas, *q) })
	default:
		in.ignored = append(in.ignored, o.Kind+" "+o.Metadata.Name)
	}
	return nil
}

func decode[T any](raw json.RawMessage, use func(*T)) error {
	v := new(T)
	if err := json.Unmarshal(raw, v); err != nil {
		return err
	}
	use(v)
	return nil
}
