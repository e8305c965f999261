// SPDX-License-Identifier: Apache-2.0

package render

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Operation is one operation of a JSON patch (RFC 6902).
type Operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value"`
}

// Apply returns the pod with the edit; the given pod is not changed.
func (e Edit) Apply(pod *corev1.Pod) *corev1.Pod {
	out := pod.DeepCopy()
	if e.Container != nil {
		out.Spec.InitContainers = put(out.Spec.InitContainers, e.ContainerIndex, *e.Container.DeepCopy())
	}
	for _, v := range e.Volumes {
		out.Spec.Volumes = put(out.Spec.Volumes, v.Index, *v.Volume.DeepCopy())
	}
	for key, value := range e.Annotations {
		if out.Annotations == nil {
			out.Annotations = map[string]string{}
		}
		out.Annotations[key] = value
	}
	return out
}

func put[T any](list []T, i int, v T) []T {
	if i < len(list) {
		list[i] = v
		return list
	}
	return append(list, v)
}

// Patch returns the edit as a JSON patch of the given pod. Fields of the pod that
// we do not know survive, because only our own operations are sent; nothing is
// computed by comparing two pods.
func (e Edit) Patch(pod *corev1.Pod) []Operation {
	var ops []Operation
	if e.Container != nil {
		ops = append(ops, putOperation("/spec/initContainers", len(pod.Spec.InitContainers), e.ContainerIndex, e.Container))
	}
	count := len(pod.Spec.Volumes)
	for _, v := range e.Volumes {
		ops = append(ops, putOperation("/spec/volumes", count, v.Index, v.Volume))
		count = max(count, v.Index+1)
	}
	if len(e.Annotations) == 0 {
		return ops
	}
	if len(pod.Annotations) == 0 {
		return append(ops, Operation{Op: "add", Path: "/metadata/annotations", Value: e.Annotations})
	}
	for _, key := range slices.Sorted(maps.Keys(e.Annotations)) {
		ops = append(ops, Operation{Op: "add", Path: "/metadata/annotations/" + escape(key), Value: e.Annotations[key]})
	}
	return ops
}

// putOperation puts a value at index i of the list at path, which has count
// entries. An empty list may be absent from the document: then it is made.
func putOperation(path string, count, i int, value any) Operation {
	switch {
	case i < count:
		return Operation{Op: "replace", Path: path + "/" + strconv.Itoa(i), Value: value}
	case count == 0:
		return Operation{Op: "add", Path: path, Value: []any{value}}
	default:
		return Operation{Op: "add", Path: path + "/-", Value: value}
	}
}

// escape writes a key as a token of a JSON pointer (RFC 6901).
func escape(key string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(key)
}
