// SPDX-License-Identifier: Apache-2.0

package volumes

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// containerEnv returns the variables of a container whose values follow from the
// pod alone: literals, and fields that never change. A variable from a Secret, a
// ConfigMap or a label is left out, and so unknown.
func containerEnv(pod *corev1.Pod, c *corev1.Container) map[string]string {
	env := map[string]string{}
	for i := range c.Env {
		e := &c.Env[i]
		// The last entry of a name wins, also when its value is unknown.
		delete(env, e.Name)
		switch {
		case e.ValueFrom == nil:
			// It may refer to earlier variables; if one of those is unknown, so is it.
			if v, err := expand(e.Value, env); err == nil {
				env[e.Name] = v
			}
		case e.ValueFrom.FieldRef != nil:
			if v := podField(pod, e.ValueFrom.FieldRef.FieldPath); v != "" {
				env[e.Name] = v
			}
		}
	}
	return env
}

func podField(pod *corev1.Pod, fieldPath string) string {
	switch fieldPath {
	case "metadata.name":
		return pod.Name
	case "metadata.namespace":
		return pod.Namespace
	case "metadata.uid":
		return string(pod.UID)
	case "spec.nodeName":
		return pod.Spec.NodeName
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName
	default:
		return ""
	}
}

// expand replaces $(NAME) by its value and $$ by $, as kubelet does. An unknown
// name is an error: a guess would name another directory.
func expand(s string, env map[string]string) (string, error) {
	var out strings.Builder
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 || i+1 == len(s) {
			out.WriteString(s)
			return out.String(), nil
		}
		out.WriteString(s[:i])
		s = s[i:]
		end := strings.IndexByte(s, ')')
		switch {
		case s[1] == '$':
			out.WriteByte('$')
			s = s[2:]
		case s[1] == '(' && end > 0:
			name := s[2:end]
			v, ok := env[name]
			if !ok {
				return "", fmt.Errorf("variable %s has no literal value in the container", name)
			}
			out.WriteString(v)
			s = s[end+1:]
		default:
			out.WriteByte('$')
			s = s[1:]
		}
	}
}
