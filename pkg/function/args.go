// SPDX-License-Identifier: Apache-2.0

package function

import (
	"fmt"

	"github.com/go-viper/mapstructure/v2"
)

// decode reads an argument as loosely as Kanister does: "true" is a bool, a number
// is text, a map of anything is a map of text.
func decode(args map[string]any, name string, into any) error {
	v, ok := args[name]
	if !ok {
		return nil
	}
	if err := mapstructure.WeakDecode(v, into); err != nil {
		return fmt.Errorf("Failed to decode arg `%s`: %w", name, err) // Kanister's text
	}
	return nil
}

// decodeAll reads several arguments; those that are absent keep their defaults.
func decodeAll(args map[string]any, into map[string]any) error {
	for name, target := range into {
		if err := decode(args, name, target); err != nil {
			return err
		}
	}
	return nil
}

// podArgs are what every function with a temporary pod accepts.
type podArgs struct {
	override            map[string]any
	labels, annotations map[string]string
}

var podArgNames = []string{"podOverride", "podLabels", "podAnnotations"}

// decodePod reads them and adds the ActionSet's: of two labels of one name the
// Blueprint's wins.
func decodePod(call Call) (podArgs, error) {
	var p podArgs
	err := decodeAll(call.Args, map[string]any{
		"podOverride": &p.override, "podLabels": &p.labels, "podAnnotations": &p.annotations,
	})
	p.labels = union(call.Params.PodLabels, p.labels)
	p.annotations = union(call.Params.PodAnnotations, p.annotations)
	return p, err
}

func union(a, b map[string]string) map[string]string {
	out := map[string]string{}
	for _, m := range []map[string]string{a, b} {
		for k, v := range m {
			out[k] = v
		}
	}
	return out
}

// encryptionKey tells an absent key (nil) from an empty one.
func encryptionKey(args map[string]any) (*string, error) {
	if _, ok := args["encryptionKey"]; !ok {
		return nil, nil
	}
	var key string
	return &key, decode(args, "encryptionKey", &key)
}
