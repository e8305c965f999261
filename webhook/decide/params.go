// SPDX-License-Identifier: Apache-2.0

package decide

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/snapshotoptions"
	"github.com/kanister-kopia/kanister-kopia/pkg/volumes"
)

// params are the pod's annotations, parsed. A nil field was not given.
type params struct {
	uid, gid                   *int64
	volumes                    []string
	cpu                        *resource.Quantity
	memoryRequest, memoryLimit *resource.Quantity
	noHealth                   bool
}

const (
	runAsAccepted = `"<uid>" or "<uid>:<gid>", numbers from 0 to 2147483647, such as 999 or 999:999`
	// minMemory is what an idle agent needs with something to spare; less would be
	// a container that is killed again and again, or "256" where "256Mi" was meant.
	minMemory      = 32 << 20
	memoryAccepted = "a quantity of at least 32Mi, such as 256Mi"
	// maxMemory guards the arithmetic on bytes.
	maxMemory   = 1 << 50
	cpuAccepted = "a quantity from 1m to 1024, such as 100m"
	maxCPUMilli = 1024 * 1000
)

// parseParams reads the annotations. An error names key, value and accepted values.
func parseParams(pod *corev1.Pod) (params, error) {
	var p params
	a := pod.Annotations
	if v, ok := a[names.RunAsAnnotation]; ok {
		uid, gid, err := parseRunAs(v)
		if err != nil {
			return params{}, malformed("annotation", names.RunAsAnnotation, v, runAsAccepted)
		}
		p.uid, p.gid = uid, gid
	}
	if v, ok := a[names.VolumesAnnotation]; ok {
		p.volumes = []string{}
		for name := range strings.SplitSeq(v, ",") {
			if name = strings.TrimSpace(name); name != "" && !slices.Contains(p.volumes, name) {
				p.volumes = append(p.volumes, name)
			}
		}
		if len(p.volumes) == 0 {
			return params{}, malformed("annotation", names.VolumesAnnotation, v, "names of the pod's volumes, separated by commas")
		}
	}
	for _, q := range []struct {
		key      string
		to       **resource.Quantity
		accepted string
		ok       func(resource.Quantity) bool
	}{
		{names.CPURequestAnnotation, &p.cpu, cpuAccepted, isCPU},
		{names.MemoryRequestAnnotation, &p.memoryRequest, memoryAccepted, isMemory},
		{names.MemoryLimitAnnotation, &p.memoryLimit, memoryAccepted, isMemory},
	} {
		v, ok := a[q.key]
		if !ok {
			continue
		}
		parsed, err := resource.ParseQuantity(v)
		if err != nil || !q.ok(parsed) {
			return params{}, malformed("annotation", q.key, v, q.accepted)
		}
		*q.to = &parsed
	}
	switch v, ok := a[names.HealthAnnotation]; {
	case ok && v != "true" && v != "false":
		return params{}, malformed("annotation", names.HealthAnnotation, v, "true, false")
	default:
		p.noHealth = v == "false"
	}
	// They are the functions' to use; a pod's author hears of a mistake now.
	if _, err := snapshotoptions.Of(a); err != nil {
		return params{}, err
	}
	if p.memoryRequest != nil && p.memoryLimit != nil && p.memoryRequest.Cmp(*p.memoryLimit) > 0 {
		return params{}, malformed("annotation", names.MemoryRequestAnnotation, p.memoryRequest.String(),
			"at most "+p.memoryLimit.String()+", which "+names.MemoryLimitAnnotation+" allows")
	}
	return p, nil
}

func isMemory(q resource.Quantity) bool {
	return q.CmpInt64(minMemory) >= 0 && q.CmpInt64(maxMemory) <= 0
}

func isCPU(q resource.Quantity) bool {
	return q.Cmp(*resource.NewMilliQuantity(1, resource.DecimalSI)) >= 0 &&
		q.Cmp(*resource.NewMilliQuantity(maxCPUMilli, resource.DecimalSI)) <= 0
}

func parseRunAs(s string) (uid, gid *int64, err error) {
	u, g, both := strings.Cut(s, ":")
	if uid, err = parseID(u); err != nil {
		return nil, nil, err
	}
	if both {
		if gid, err = parseID(g); err != nil {
			return nil, nil, err
		}
	}
	return uid, gid, nil
}

func parseID(s string) (*int64, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return nil, err
	}
	if n > math.MaxInt32 {
		return nil, strconv.ErrRange
	}
	id := int64(n)
	return &id, nil
}

func malformed(what, key, value, accepted string) error {
	return fmt.Errorf("%s %s has value %q; accepted: %s", what, key, value, accepted)
}

func volumesError(pod *corev1.Pod, err error) error {
	value := pod.Annotations[names.VolumesAnnotation]
	var unknown *volumes.UnknownVolumeError
	if !errors.As(err, &unknown) {
		return malformed("annotation", names.VolumesAnnotation, value, err.Error())
	}
	accepted := "none of this pod's volumes"
	if len(unknown.Accepted) > 0 {
		accepted = strings.Join(unknown.Accepted, ", ")
	}
	return fmt.Errorf("%w (%w)", malformed("annotation", names.VolumesAnnotation, value, accepted), err)
}

var knownKeys = []string{
	names.RunAsAnnotation, names.VolumesAnnotation, names.CPURequestAnnotation,
	names.MemoryRequestAnnotation, names.MemoryLimitAnnotation, names.HealthAnnotation, names.StatusAnnotation,
	names.IgnoreAnnotation, names.CompressionAnnotation, names.RateLimitAnnotation,
}

// unknownKeys warns about annotations under our prefix that nothing reads. They
// are not refused: a newer version may know them.
func unknownKeys(pod *corev1.Pod) []string {
	var warnings []string
	for key := range pod.Annotations {
		if strings.HasPrefix(key, names.Group+"/") && !slices.Contains(knownKeys, key) {
			warnings = append(warnings, "annotation "+key+" is not known and has no effect")
		}
	}
	slices.Sort(warnings)
	return warnings
}
