// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// JSONMap is free-form JSON: arguments, outputs, a patch of a pod. A field of this
// type carries the markers that keep the API server from pruning it.
//
// +kubebuilder:object:generate=false
type JSONMap map[string]any

// DeepCopy copies maps and lists; everything else in them is a value.
func (m JSONMap) DeepCopy() JSONMap {
	if m == nil {
		return nil
	}
	return copyJSON(map[string]any(m)).(map[string]any)
}

// DeepCopyInto copies into out.
func (m JSONMap) DeepCopyInto(out *JSONMap) { *out = m.DeepCopy() }

func copyJSON(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = copyJSON(e)
		}
		return out
	case JSONMap:
		return map[string]any(v.DeepCopy())
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = copyJSON(e)
		}
		return out
	default:
		return v
	}
}
