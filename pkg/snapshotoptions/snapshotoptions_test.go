// SPDX-License-Identifier: Apache-2.0

package snapshotoptions

import (
	"reflect"
	"strings"
	"testing"
)

func TestOf(t *testing.T) {
	const ignore, compression, rate = "kopia.kanister.io/ignore", "kopia.kanister.io/compression", "kopia.kanister.io/rate-limit"
	for name, c := range map[string]struct {
		annotations map[string]string
		want        Options
		refused     []string
	}{
		"nothing":                       {nil, Options{}, nil},
		"others":                        {map[string]string{"kopia.kanister.io/run-as": "x"}, Options{}, nil},
		"all":                           {map[string]string{ignore: "# comment\n*.tmp\n\n!keep.tmp\n", compression: "zstd", rate: "20Mi"}, Options{[]string{"*.tmp", "!keep.tmp"}, "zstd", 20 << 20}, nil},
		"the least":                     {map[string]string{rate: "16384"}, Options{RateLimit: 16384}, nil},
		"no bytes":                      {map[string]string{rate: "1000.5k"}, Options{RateLimit: 1000500}, nil},
		"a pattern that is malformed":   {map[string]string{ignore: "*.tmp\na["}, Options{}, []string{ignore, `"a["`, "accepted: patterns as in a .gitignore"}},
		"no pattern":                    {map[string]string{ignore: " \n# x"}, Options{}, []string{ignore, "accepted"}},
		"what Kopia cannot write":       {map[string]string{compression: "lz4"}, Options{}, []string{compression, `"lz4"`, "zstd-fastest"}},
		"an empty compression":          {map[string]string{compression: ""}, Options{}, []string{compression}},
		"a rate that is none":           {map[string]string{rate: "fast"}, Options{}, []string{rate, `"fast"`, "such as 20Mi"}},
		"too slow to be told from hung": {map[string]string{rate: "16383"}, Options{}, []string{rate, "16Ki"}},
		"a negative one":                {map[string]string{rate: "-1"}, Options{}, []string{rate}},
		"too fast to be meant":          {map[string]string{rate: "1E"}, Options{}, []string{rate}},
	} {
		got, err := Of(c.annotations)
		if len(c.refused) == 0 {
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("%s: %+v, %v; want %+v", name, got, err, c.want)
			}
			continue
		}
		if err == nil {
			t.Errorf("%s: %+v, want a refusal", name, got)
			continue
		}
		for _, text := range c.refused {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %q, want %q in it", name, err, text)
			}
		}
	}
}
