// SPDX-License-Identifier: Apache-2.0

package function

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	apiwait "k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/kube"
)

// kubeOps creates, deletes or patches objects of any kind.
type kubeOps struct{ *Companion }

func (*kubeOps) Name() string { return "KubeOps" }

func (*kubeOps) RequiredArgs() []string { return []string{"operation"} }

func (f *kubeOps) Arguments() []string {
	return append(f.RequiredArgs(), "spec", "namespace", "objectReference")
}

// A second create would fail, a second patch may mean something else.
func (*kubeOps) Resumable() bool { return false }

func (f *kubeOps) Exec(ctx context.Context, call Call) (map[string]any, error) {
	var operation, spec, namespace string
	var ref crv1alpha1.ObjectReference
	if err := decodeAll(call.Args, map[string]any{
		"operation": &operation, "spec": &spec, "namespace": &namespace, "objectReference": &ref,
	}); err != nil {
		return nil, err
	}
	named := ref.Name != "" && ref.APIVersion != "" && ref.Resource != ""
	switch {
	case operation != "create" && operation != "delete" && operation != "patch":
		return nil, fmt.Errorf("invalid operation '%s'", operation) // Kanister's text
	case operation != "delete" && spec == "":
		return nil, fmt.Errorf("spec cannot be empty for %s operation", operation) // Kanister's text
	case operation != "create" && !named:
		return nil, fmt.Errorf("missing one or more required fields name/namespace/group/apiVersion/resource in objectReference for %s operation", operation) // Kanister's text
	}
	var object *unstructured.Unstructured
	var err error
	if operation == "create" {
		object, err = f.create(ctx, spec, namespace)
	} else {
		// The reference's own namespace says more than the argument's default.
		namespace = cmp.Or(ref.Namespace, namespace, metav1.NamespaceDefault)
		if object, err = f.named(ref, namespace); err == nil && operation == "delete" {
			err = f.remove(ctx, object)
		} else if err == nil {
			err = f.patch(ctx, object, spec)
		}
	}
	if err != nil {
		err = fmt.Errorf("%s object: %w", operation, err)
		if apierrors.IsForbidden(err) {
			err = fmt.Errorf("%w (give the controller's ServiceAccount this right with a role of yours)", err)
		}
		return nil, err
	}
	return f.reference(object)
}

// create makes the objects of a YAML or JSON text in its order. As in Kanister, an
// object's own namespace goes before the argument, and of several the last one is the
// output. Nothing is made of a text that cannot be read to its end.
func (f *kubeOps) create(ctx context.Context, spec, namespace string) (*unstructured.Unstructured, error) {
	objects, err := readObjects(spec)
	if err != nil {
		return nil, err
	}
	for _, object := range objects {
		mapping, err := f.mapping(object.GroupVersionKind())
		switch {
		case err != nil:
			return nil, err
		case mapping.Scope.Name() == meta.RESTScopeNameRoot:
			object.SetNamespace("")
		case object.GetNamespace() == "":
			object.SetNamespace(cmp.Or(namespace, metav1.NamespaceDefault))
		}
	}
	for _, object := range objects {
		if err := f.Client.Create(ctx, object); err != nil {
			return nil, err
		}
	}
	return objects[len(objects)-1], nil
}

// readObjects reads the objects of a text; at least one.
func readObjects(spec string) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(spec), 4096)
	for {
		var document json.RawMessage
		err := decoder.Decode(&document)
		if errors.Is(err, io.EOF) && len(out) > 0 {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read spec: %w", err)
		}
		if string(document) == "null" {
			continue // nothing between two marks
		}
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(document); err != nil {
			return nil, fmt.Errorf("read spec: %w", err)
		}
		out = append(out, object)
	}
}

// remove deletes an object and waits until it is gone, as Kanister does: the next phase
// may make one of that name. One that is gone has been deleted.
func (f *kubeOps) remove(ctx context.Context, object *unstructured.Unstructured) error {
	key := client.ObjectKeyFromObject(object)
	if err := f.Client.Get(ctx, key, object); err != nil {
		return client.IgnoreNotFound(err)
	}
	uid := object.GetUID()
	if err := f.Client.Delete(ctx, object); err != nil {
		return client.IgnoreNotFound(err)
	}
	return apiwait.PollUntilContextCancel(ctx, waitPause, true, func(ctx context.Context) (bool, error) {
		err := f.Client.Get(ctx, key, object)
		return apierrors.IsNotFound(err) || object.GetUID() != uid, client.IgnoreNotFound(err)
	})
}

// patch merges a change into an object.
func (f *kubeOps) patch(ctx context.Context, object *unstructured.Unstructured, spec string) error {
	var change map[string]any
	if err := yaml.NewYAMLOrJSONDecoder(bytes.NewBufferString(spec), 4096).Decode(&change); err != nil {
		return fmt.Errorf("read spec: %w", err)
	}
	patch, err := json.Marshal(change)
	if err != nil {
		return fmt.Errorf("read spec: %w", err)
	}
	return f.Client.Patch(ctx, object, client.RawPatch(types.MergePatchType, patch))
}

// named is an object by its reference; nothing is read.
func (f *kubeOps) named(ref crv1alpha1.ObjectReference, namespace string) (*unstructured.Unstructured, error) {
	kind, err := kube.KindOf(f.Client.RESTMapper(), ref)
	if err != nil {
		return nil, err
	}
	mapping, err := f.mapping(kind)
	if err != nil {
		return nil, err
	}
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(kind)
	object.SetName(ref.Name)
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		object.SetNamespace(namespace)
	}
	return object, nil
}

func (f *kubeOps) mapping(kind schema.GroupVersionKind) (*meta.RESTMapping, error) {
	return f.Client.RESTMapper().RESTMapping(kind.GroupKind(), kind.Version)
}

// reference is the output: where the object is.
func (f *kubeOps) reference(object *unstructured.Unstructured) (map[string]any, error) {
	kind := object.GroupVersionKind()
	mapping, err := f.mapping(kind)
	if err != nil {
		return nil, err
	}
	return map[string]any{
		"apiVersion": kind.Version, "group": kind.Group, "kind": kind.Kind, "resource": mapping.Resource.Resource,
		"name": object.GetName(), "namespace": object.GetNamespace(),
	}, nil
}
