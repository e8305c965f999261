// SPDX-License-Identifier: Apache-2.0

package param

import (
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig/v3"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
)

// functions are sprig's, less what Kanister forbids.
var functions = func() template.FuncMap {
	f := sprig.TxtFuncMap()
	for _, name := range []string{"bcrypt", "derivePassword", "htpasswd"} {
		f[name] = func(...any) (string, error) {
			return "", forbidden(name)
		}
	}
	generate := f["genPrivateKey"].(func(string) string)
	f["genPrivateKey"] = func(kind string) (string, error) {
		switch kind {
		case "rsa", "ecdsa", "ed25519":
			return generate(kind), nil
		}
		return "", forbidden(fmt.Sprintf("genPrivateKey for %s key", kind))
	}
	// Templates are people's who may write Blueprints, but what they see is not the
	// controller's own environment.
	delete(f, "env")
	delete(f, "expandenv")
	return f
}()

func forbidden(usage string) error {
	return fmt.Errorf("sprig usage of '%s' is not allowed by kanister as it is not FIPS compatible", usage) // Kanister's text
}

// Render fills the templates in text from data: template parameters, but for the
// conditions of Wait and WaitV2, which are about an object.
func Render(text string, data any) (string, error) {
	return render(text, data, "missingkey=error")
}

// RenderObject is Render of a template about an object of the API, which lacks what
// nobody has set: a key that is not there is no value.
func RenderObject(text string, object map[string]any) (string, error) {
	return render(text, object, "missingkey=zero")
}

func render(text string, data any, missingKey string) (string, error) {
	if !strings.Contains(text, "{{") {
		return text, nil
	}
	t, err := template.New("config").Option(missingKey).Funcs(functions).Parse(text)
	if err != nil {
		return "", fmt.Errorf("parse template: %w", err)
	}
	var out strings.Builder
	if err := t.Execute(&out, data); err != nil {
		return "", renderError(err)
	}
	return out.String(), nil
}

var missingKey = regexp.MustCompile(`map has no entry for key ("[^"]*")`)

// renderError has Kanister's text for a key that is not there.
func renderError(err error) error {
	if m := missingKey.FindStringSubmatch(err.Error()); m != nil {
		return fmt.Errorf("Failed to render template: %s not found: %w", m[1], err) // Kanister's text
	}
	return fmt.Errorf("Failed to render template: %w", err) // Kanister's text
}

// renderValue renders all text in a value: strings, lists, and maps with their
// keys. Everything else passes.
func renderValue(v any, params *TemplateParams) (any, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return Render(v, params)
	case crv1alpha1.JSONMap:
		return RenderArgs(v, params)
	case map[string]any:
		return RenderArgs(v, params)
	}
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.Slice:
		out := make([]any, r.Len())
		for i := range out {
			e, err := renderValue(r.Index(i).Interface(), params)
			if err != nil {
				return nil, err
			}
			out[i] = e
		}
		return out, nil
	case reflect.Map:
		m := map[string]any{}
		for _, k := range r.MapKeys() {
			m[fmt.Sprint(k.Interface())] = r.MapIndex(k).Interface()
		}
		return RenderArgs(m, params)
	}
	return v, nil
}

// RenderArgs renders the arguments of a phase: all text in them, keys of maps too.
func RenderArgs(m map[string]any, params *TemplateParams) (map[string]any, error) {
	out := make(map[string]any, len(m))
	for k, v := range m {
		key, err := Render(k, params)
		if err != nil {
			return nil, err
		}
		if out[key], err = renderValue(v, params); err != nil {
			return nil, fmt.Errorf("%s: %w", k, err)
		}
	}
	return out, nil
}

// RenderArtifacts fills the templates of an action's output artifacts.
func RenderArtifacts(templates map[string]crv1alpha1.Artifact, params *TemplateParams) (map[string]crv1alpha1.Artifact, error) {
	if templates == nil {
		return nil, nil
	}
	out := map[string]crv1alpha1.Artifact{}
	for name, t := range templates {
		a := crv1alpha1.Artifact{}
		if t.KeyValue != nil {
			a.KeyValue = map[string]string{}
		}
		for k, v := range t.KeyValue {
			key, err := Render(k, params)
			if err != nil {
				return nil, fmt.Errorf("render artifact %s: %w", name, err)
			}
			if a.KeyValue[key], err = Render(v, params); err != nil {
				return nil, fmt.Errorf("render artifact %s: %w", name, err)
			}
		}
		text, err := Render(t.KopiaSnapshot, params)
		if err != nil {
			return nil, fmt.Errorf("render artifact %s: %w", name, err)
		}
		a.KopiaSnapshot = text
		out[name] = a
	}
	return out, nil
}

// RenderReference fills the templates of an object reference.
func RenderReference(ref crv1alpha1.ObjectReference, params *TemplateParams) (crv1alpha1.ObjectReference, error) {
	for _, field := range []*string{&ref.APIVersion, &ref.Group, &ref.Resource, &ref.Kind, &ref.Name, &ref.Namespace} {
		text, err := Render(*field, params)
		if err != nil {
			return ref, err
		}
		*field = text
	}
	return ref, nil
}
