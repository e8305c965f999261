// SPDX-License-Identifier: Apache-2.0

package function

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	apiwait "k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/kube"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
)

// wait waits until conditions on objects hold: in the condition's text, each
// {$.jsonpath} stands for a value of the object, and the template then has to
// print "true".
type wait struct{ *Companion }

func (*wait) Name() string { return "Wait" }

func (*wait) RequiredArgs() []string { return []string{"timeout", "conditions"} }

func (f *wait) Arguments() []string { return f.RequiredArgs() }

// Waiting again is waiting on.
func (*wait) Resumable() bool { return true }

// RawArgs: the paths in a condition are no template of the Blueprint's.
func (*wait) RawArgs() bool { return true }

func (f *wait) Exec(ctx context.Context, call Call) (map[string]any, error) {
	return nil, f.await(ctx, call, func(condition string, object map[string]any) (string, error) {
		text, err := fillPaths(condition, object)
		if err != nil {
			return "", err
		}
		return param.Render(text, &call.Params)
	})
}

// waitV2 is wait with a Go template whose $ is the object.
type waitV2 struct{ wait }

func (*waitV2) Name() string { return "WaitV2" }

func (f *waitV2) Exec(ctx context.Context, call Call) (map[string]any, error) {
	return nil, f.await(ctx, call, func(condition string, object map[string]any) (string, error) {
		return param.RenderObject(condition, object)
	})
}

// condition on one object.
type condition struct {
	Condition       string
	ObjectReference crv1alpha1.ObjectReference
}

// waitPause is how often the objects are looked at. They may be of any kind, and
// of several: a watch of each is not worth it.
const waitPause = time.Second

// await evaluates the conditions until any of anyOf or all of allOf print "true".
// As in Kanister, an error is no end: the object may still be made.
func (c *Companion) await(ctx context.Context, call Call, evaluate func(condition string, object map[string]any) (string, error)) error {
	var timeoutText string
	var conditions struct{ AnyOf, AllOf []condition }
	if err := decodeAll(call.Args, map[string]any{"timeout": &timeoutText, "conditions": &conditions}); err != nil {
		return err
	}
	timeoutText, err := param.Render(timeoutText, &call.Params)
	if err != nil {
		return err
	}
	timeout, err := time.ParseDuration(timeoutText)
	if err != nil {
		return fmt.Errorf("Failed to parse timeout: %w", err) // Kanister's text
	}
	if len(conditions.AnyOf)+len(conditions.AllOf) == 0 {
		return errors.New("wait: conditions hold neither anyOf nor allOf")
	}
	var last error
	holds := func(cond condition) bool {
		object, err := c.object(ctx, call, cond.ObjectReference)
		var text string
		if err == nil {
			text, err = evaluate(cond.Condition, object)
		}
		if err != nil {
			last = err
			return false
		}
		if strings.TrimSpace(text) != "true" {
			last = fmt.Errorf("condition %q printed %q", cond.Condition, strings.TrimSpace(text))
			return false
		}
		return true
	}
	timed, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err = apiwait.PollUntilContextCancel(timed, waitPause, true, func(context.Context) (bool, error) {
		for _, cond := range conditions.AnyOf {
			if holds(cond) {
				return true, nil
			}
		}
		for _, cond := range conditions.AllOf {
			if !holds(cond) {
				return false, nil
			}
		}
		return len(conditions.AllOf) > 0, nil
	})
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	err = fmt.Errorf("Failed to wait for the condition to be met: not within %s", timeout) // Kanister's text
	if last != nil {
		err = fmt.Errorf("%w: %w", err, last)
	}
	return err
}

// object reads what a reference means. Its parts are templates.
func (c *Companion) object(ctx context.Context, call Call, ref crv1alpha1.ObjectReference) (map[string]any, error) {
	ref, err := param.RenderReference(ref, &call.Params)
	if err != nil {
		return nil, err
	}
	kind, err := kube.KindOf(c.Client.RESTMapper(), ref)
	if err != nil {
		return nil, err
	}
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(kind)
	if err := c.Client.Get(ctx, client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}, object); err != nil {
		return nil, err
	}
	return object.Object, nil
}
