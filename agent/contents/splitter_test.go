// SPDX-License-Identifier: Apache-2.0

package contents

import (
	"math/rand/v2"
	"slices"
	"testing"

	kopiasplitter "github.com/kopia/kopia/repo/splitter"
)

// noise is n random bytes, the same for the same seed.
func noise(seed byte, n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(data)
	return data
}

// ends cuts data that comes in parts, as long as length says.
func ends(next func([]byte) int, data []byte, length func() int) []int {
	var found []int
	at := 0
	for at < len(data) {
		part := data[at:min(at+length(), len(data))]
		for len(part) > 0 {
			n := next(part)
			if n < 0 {
				at += len(part)
				break
			}
			at += n
			part = part[n:]
			found = append(found, at)
		}
	}
	return found
}

func TestSplitterCutsWhereKopiasDoes(t *testing.T) {
	lengths := map[string]func(*rand.Rand) int{
		"one byte":         func(*rand.Rand) int { return 1 },
		"less than window": func(r *rand.Rand) int { return 1 + r.IntN(windowSize) },
		"as Kopia reads":   func(*rand.Rand) int { return 64 << 10 },
		"any":              func(r *rand.Rand) int { return 1 + r.IntN(300<<10) },
		"all at once":      func(*rand.Rand) int { return 1 << 30 },
	}
	for name, average := range averages {
		data := map[string][]byte{
			"noise": noise(1, 6*average),
			"zeros": make([]byte, 5*average),
			// A hole between noise, whose ends lie within pieces.
			"hole": append(append(noise(2, average+77), make([]byte, 3*average)...), noise(3, average)...),
		}
		for kind, data := range data {
			for how, length := range lengths {
				if average > 128<<10 && how != "as Kopia reads" {
					continue // it would be the same
				}
				random := func() func() int {
					r := rand.New(rand.NewPCG(1, 2))
					return func() int { return length(r) }
				}
				kopias := kopiasplitter.GetFactory(name)()
				want := ends(kopias.NextSplitPoint, data, random())
				kopias.Close()
				got := ends(newSplitter(average).next, data, random())
				if len(want) < 2 || !slices.Equal(got, want) {
					t.Errorf("%s, %s, %s: ends at %v, want %v", name, kind, how, got, want)
				}
			}
		}
	}
}

func BenchmarkSplitter(b *testing.B) {
	data := noise(1, 64<<20)
	for _, who := range []string{"ours", "Kopia's"} {
		b.Run(who, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				next := newSplitter(1 << 20).next
				if who != "ours" {
					next = kopiasplitter.GetFactory("DYNAMIC-1M-BUZHASH")().NextSplitPoint
				}
				ends(next, data, func() int { return 64 << 10 })
			}
		})
	}
}
