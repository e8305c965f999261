// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// An operation gives way: while others on the node wait for the processor or the
// disk, it works in a part of the time only. The kernel tells who waits (PSI):
// /proc/pressure for the whole node, the files of a control group for its processes.
// An operation's own reading makes pressure too, so what counts is what the node has
// beyond our own: docs/design/agent.md.
const (
	// A pace is slower after a look at which others waited more than this part of the
	// time, and faster again after one at which they waited less than that. The
	// kernel's figures are averages over ten seconds.
	highPressure = 0.4
	lowPressure  = 0.15
	pressureLook = 5 * time.Second
	// paceWindow is what a pace divides in a part to work and a part to rest.
	paceWindow = 100 * time.Millisecond
)

// pace is how often the time to work was halved.
type pace int64

// slowest works a quarter of the time: an operation always goes on.
const slowest pace = 2

// next is the pace after a look.
func (p pace) next(others float64) pace {
	switch {
	case others > highPressure:
		return min(p+1, slowest)
	case others < lowPressure:
		return max(p-1, 0)
	default:
		return p
	}
}

// pause is how long to rest at a moment: until the next window begins, if this one's
// time to work is over.
func (p pace) pause(at time.Duration) time.Duration {
	in := at % paceWindow
	if in < paceWindow>>p {
		return 0
	}
	return paceWindow - in
}

// Pressure is where the kernel tells it; nothing is slowed down where it does not.
type Pressure struct {
	// Node holds the files cpu and io, Own cpu.pressure and io.pressure.
	Node, Own string
}

// DefaultPressure is what a container sees.
var DefaultPressure = Pressure{Node: "/proc/pressure", Own: "/sys/fs/cgroup"}

// others is the largest part of the time in which others than we waited.
func (p Pressure) others() (most float64, err error) {
	for _, what := range []string{"cpu", "io"} {
		node, err := someIn(filepath.Join(p.Node, what))
		if err != nil {
			return 0, err
		}
		own, err := someIn(filepath.Join(p.Own, what+".pressure"))
		if err != nil {
			return 0, err
		}
		most = max(most, beyond(node, own))
	}
	return most, nil
}

// beyond is the part of the time in which somebody else waited, if the others wait
// neither more nor less often when we do.
func beyond(node, own float64) float64 {
	if own >= 1 {
		return 0 // nothing is known of the others
	}
	return max(0, (node-own)/(1-own))
}

// someIn is the part of the last ten seconds in which at least one process waited.
func someIn(file string) (float64, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for _, field := range strings.Fields(string(raw)) {
		value, ok := strings.CutPrefix(field, "avg10=")
		if !ok {
			continue // the first line is of some, the next of all
		}
		percent, err := strconv.ParseFloat(value, 64)
		if err != nil || !(percent >= 0 && percent <= 100) {
			return 0, fmt.Errorf("read %s: %q is no percentage", file, value)
		}
		return percent / 100, nil
	}
	return 0, errors.New(file + " tells no pressure")
}

// giveWay lets an operation have the pace that others leave it, until stop.
func (t *throttle) giveWay(p Pressure, look <-chan time.Time) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-look:
			}
			others, err := p.others()
			if err != nil {
				others = 0 // as if there were none
			}
			t.pace.Store(int64(pace(t.pace.Load()).next(others)))
		}
	})
	return func() { close(done); wg.Wait() }
}
