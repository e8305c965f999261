// SPDX-License-Identifier: Apache-2.0

// Package snapshotoptions reads what a pod's annotations ask of its backups. The
// webhook refuses a pod that asks for what nobody understands; the functions read
// them again, since annotations change without a pod being made.
package snapshotoptions

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/pkg/ignore"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// Options of the backups of one pod. The zero value asks for nothing.
type Options struct {
	// Ignore are patterns of package ignore.
	Ignore []string
	// Compression is one of api.Compressions; "" is the agent's default.
	Compression string
	// RateLimit in bytes of content a second; 0 is none.
	RateLimit int64
}

const (
	rateLimitAccepted = "a quantity of bytes a second from 16Ki to 1Ti, such as 20Mi"
	maxRateLimit      = 1 << 40
)

// Of reads the annotations. An error names key, value and what is accepted.
func Of(annotations map[string]string) (Options, error) {
	var o Options
	if v, ok := annotations[names.IgnoreAnnotation]; ok {
		o.Ignore = ignore.Lines(v)
		if _, err := ignore.Parse(o.Ignore); err != nil {
			return Options{}, fmt.Errorf("%w (%w)", malformed(names.IgnoreAnnotation, v, ignore.Accepted), err)
		}
		if len(o.Ignore) == 0 {
			return Options{}, malformed(names.IgnoreAnnotation, v, ignore.Accepted)
		}
	}
	if v, ok := annotations[names.CompressionAnnotation]; ok {
		if !slices.Contains(api.Compressions, v) {
			return Options{}, malformed(names.CompressionAnnotation, v, strings.Join(api.Compressions, ", "))
		}
		o.Compression = v
	}
	if v, ok := annotations[names.RateLimitAnnotation]; ok {
		q, err := resource.ParseQuantity(v)
		if err != nil || q.CmpInt64(api.LeastRateLimit) < 0 || q.CmpInt64(maxRateLimit) > 0 {
			return Options{}, malformed(names.RateLimitAnnotation, v, rateLimitAccepted)
		}
		o.RateLimit = q.Value()
	}
	return o, nil
}

func malformed(key, value, accepted string) error {
	return fmt.Errorf("annotation %s has value %q; accepted: %s", key, value, accepted)
}
