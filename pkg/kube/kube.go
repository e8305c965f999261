// SPDX-License-Identifier: Apache-2.0

// Package kube holds what several parts of the controller do with objects of the
// cluster: make one so (Apply), wait until it is so (Await), tell what kind a reference
// means (KindOf), why a pod does not run (Failure), and whether the API server answered
// at all (Unanswered).
package kube

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// Apply makes the object as given by server-side apply. Fields that are not given
// belong to others and stay; an object that is already so is not written.
func Apply(ctx context.Context, c client.Client, obj client.Object) error {
	gvk, err := apiutil.GVKForObject(obj, c.Scheme())
	if err != nil {
		return fmt.Errorf("apply %T: %w", obj, err)
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	if err != nil {
		return fmt.Errorf("apply %s %s: %w", gvk.Kind, obj.GetName(), err)
	}
	u := &unstructured.Unstructured{Object: content}
	u.SetGroupVersionKind(gvk)
	// What typed objects always carry but nobody means to own.
	delete(content, "status")
	unstructured.RemoveNestedField(content, "metadata", "creationTimestamp")
	unstructured.RemoveNestedField(content, "metadata", "managedFields")
	unstructured.RemoveNestedField(content, "metadata", "resourceVersion")
	unstructured.RemoveNestedField(content, "spec", "template", "metadata", "creationTimestamp")
	err = c.Apply(ctx, client.ApplyConfigurationFromUnstructured(u),
		client.FieldOwner(names.ManagedByValue), client.ForceOwnership)
	if err != nil {
		return fmt.Errorf("apply %s %s/%s: %w", gvk.Kind, obj.GetNamespace(), obj.GetName(), err)
	}
	return nil
}

// ErrGone is returned by Await when the object is not there or is deleted meanwhile.
var ErrGone = errors.New("the object is gone")

// Await calls done with states of the object of that key until it returns true or
// an error, or ctx ends; the first is the present one, and the same or an older
// state may come again. It watches, and starts again when the watch breaks, or after a
// pause when the API server does not answer. list is an empty list of the object's type.
// With ctx's end the error is ctx's cause.
func Await[T client.Object](ctx context.Context, c client.WithWatch, key client.ObjectKey, obj T, list client.ObjectList, done func(T) (bool, error)) error {
	// Mostly it is so already, and a watch costs more than a look.
	ok, err := look(ctx, c, key, obj, done)
	for {
		// What done says is the end, whatever it asked for.
		if asking := (*askError)(nil); errors.As(err, &asking) {
			if err = AskAgain(ctx, asking.error); err != nil {
				return fmt.Errorf("wait for %T %s: %w", obj, key, err)
			}
		}
		if ok || err != nil {
			return err
		}
		ok, err = follow(ctx, c, key, obj, list, done)
	}
}

// askError is the API server's, or its absence.
type askError struct{ error }

// look is one look at the object.
func look[T client.Object](ctx context.Context, c client.Client, key client.ObjectKey, obj T, done func(T) (bool, error)) (bool, error) {
	err := c.Get(ctx, key, obj)
	switch {
	case apierrors.IsNotFound(err):
		return false, &askError{ErrGone}
	case err != nil:
		return false, &askError{err}
	}
	return done(obj)
}

// follow is one watch. False without an error: it broke off.
func follow[T client.Object](ctx context.Context, c client.WithWatch, key client.ObjectKey, obj T, list client.ObjectList, done func(T) (bool, error)) (bool, error) {
	w, err := c.Watch(ctx, list, client.InNamespace(key.Namespace),
		client.MatchingFieldsSelector{Selector: fields.OneTermEqualSelector("metadata.name", key.Name)})
	if err != nil {
		return false, &askError{err}
	}
	defer w.Stop()
	// After the watch began, so that nothing is missed between the two.
	if ok, err := look(ctx, c, key, obj, done); ok || err != nil {
		return ok, err
	}
	for {
		select {
		case <-ctx.Done():
			return false, &askError{ctx.Err()}
		case event, ok := <-w.ResultChan():
			if !ok || event.Type == watch.Error {
				// Cut off, or too old: a new watch says where to go on.
				return false, nil
			}
			seen, ok := event.Object.(T)
			if !ok || seen.GetName() != key.Name {
				continue
			}
			if event.Type == watch.Deleted {
				return false, &askError{ErrGone}
			}
			if ok, err := done(seen); ok || err != nil {
				return ok, err
			}
		}
	}
}
