// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// The pace goes down step by step while others wait, up again when they do not, stays
// where it is in between, and never stands still.
func TestPace(t *testing.T) {
	var got []pace
	p := pace(0)
	for _, others := range []float64{0, 0.41, 0.3, 0.16, 0.9, 1, 1, 0.4, 0.15, 0.14, 0.41, 0, 0, 0} {
		p = p.next(others)
		got = append(got, p)
	}
	if want := []pace{0, 1, 1, 1, 2, 2, 2, 2, 2, 1, 2, 1, 0, 0}; !slices.Equal(got, want) {
		t.Errorf("paces %v, want %v", got, want)
	}
}

func TestPause(t *testing.T) {
	ms := time.Millisecond
	for _, c := range []struct {
		pace     pace
		at, want time.Duration
	}{
		{0, 0, 0}, {0, 99 * ms, 0}, {0, 1234 * ms, 0},
		{1, 49 * ms, 0}, {1, 50 * ms, 50 * ms}, {1, 99 * ms, ms}, {1, 100 * ms, 0}, {1, 1070 * ms, 30 * ms},
		{2, 24 * ms, 0}, {2, 25 * ms, 75 * ms}, {2, 910 * ms, 0}, {2, 930 * ms, 70 * ms},
	} {
		if got := c.pace.pause(c.at); got != c.want {
			t.Errorf("pace %d at %s: %s, want %s", c.pace, c.at, got, c.want)
		}
	}
}

func TestOthersPressure(t *testing.T) {
	const missing = -1
	for _, c := range []struct {
		name                           string
		nodeCPU, ownCPU, nodeIO, ownIO float64 // percent
		want                           float64
	}{
		{"an idle node", 0, 0, 0, 0, 0},
		{"all of it is ours", 80, 80, 95, 95, 0},
		{"none of it is ours", 80, 0, 10, 0, 0.8},
		{"of the disk", 0, 0, 60, 20, 0.5},
		{"we wait all the time", 100, 100, 100, 100, 0},
		{"averages that do not fit", 10, 12, 0, 0, 0},
		{"both", 76, 40, 90, 90, 0.6},
		{"no group", 80, missing, 10, 0, missing},
		{"no node", missing, 0, missing, 0, missing},
	} {
		dir := t.TempDir()
		for name, percent := range map[string]float64{"cpu": c.nodeCPU, "cpu.pressure": c.ownCPU, "io": c.nodeIO, "io.pressure": c.ownIO} {
			if percent != missing {
				text := fmt.Sprintf("some avg10=%.2f avg60=99.00 avg300=99.00 total=1\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=2\n", percent)
				must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
			}
		}
		got, err := Pressure{Node: dir, Own: dir}.others()
		if (err != nil) != (c.want == missing) || err == nil && math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%s: %v, %v, want %v", c.name, got, err, c.want)
		}
	}
	for _, text := range []string{"", "some", "some avg10=x", "some avg10=-1", "some avg10=101", "some avg10=NaN"} {
		file := filepath.Join(t.TempDir(), "cpu")
		must(t, os.WriteFile(file, []byte(text), 0o644))
		if part, err := someIn(file); err == nil {
			t.Errorf("%q tells %v", text, part)
		}
	}
}

// While others wait an operation takes longer, by what the pace says and not more, and
// its end does not wait.
func TestGiveWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		tell := func(percent int) {
			for _, name := range []string{"cpu", "io", "cpu.pressure", "io.pressure"} {
				text := "some avg10=0.00"
				if name == "cpu" {
					text = fmt.Sprintf("some avg10=%d.00", percent)
				}
				must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		limit := newThrottle(ctx, 0)
		look := make(chan time.Time)
		stop := limit.giveWay(Pressure{Node: dir, Own: dir}, look)
		defer stop()
		// work does a second of work and returns how long it took.
		work := func() time.Duration {
			began := time.Now()
			for range 200 {
				<-time.After(5 * time.Millisecond) // the work
				must(t, limit.wait(1<<20))
			}
			return time.Since(began)
		}
		for _, c := range []struct {
			percent int
			want    time.Duration
		}{{0, time.Second}, {90, 2 * time.Second}, {90, 4 * time.Second}, {90, 4 * time.Second}, {30, 4 * time.Second}, {0, 2 * time.Second}, {0, time.Second}} {
			tell(c.percent)
			look <- time.Time{}
			synctest.Wait()
			if took := work(); math.Abs(took.Seconds()-c.want.Seconds()) > 0.15*c.want.Seconds() {
				t.Errorf("at %d %%: a second of work takes %s, want %s", c.percent, took, c.want)
			}
		}
		tell(90)
		look <- time.Time{}
		must(t, os.Remove(filepath.Join(dir, "cpu")))
		look <- time.Time{}
		synctest.Wait()
		if took := work(); took > 1100*time.Millisecond {
			t.Errorf("where nothing is told any more, a second of work takes %s", took)
		}

		limit.pace.Store(int64(slowest))
		cancel()
		<-time.After((2*paceWindow - time.Since(limit.began)%paceWindow) - 10*time.Millisecond) // in the part to rest
		if err := limit.rest(); !errors.Is(err, context.Canceled) {
			t.Errorf("the end is not noticed: %v", err)
		}
	})
}

// An operation that is told where to look has, a look later, the pace that others leave
// it; one that is not never slows down. Its limit changes while it runs.
func TestThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		for name, text := range map[string]string{"cpu": "some avg10=90.00", "io": "some avg10=0.00", "cpu.pressure": "some avg10=0.00", "io.pressure": "some avg10=0.00"} {
			must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
		}
		limits := make(chan int64)
		behind, stop := Env{Limits: limits, Pressure: Pressure{Node: dir, Own: dir}}.throttle(t.Context(), 0)
		defer stop()
		before, stopBefore := Env{}.throttle(t.Context(), 0)
		defer stopBefore()
		for _, want := range []pace{0, 1, 2} {
			if got := pace(behind.pace.Load()); got != want {
				t.Errorf("pace %d, want %d", got, want)
			}
			<-time.After(pressureLook + time.Millisecond)
			synctest.Wait()
		}
		if got := pace(before.pace.Load()); got != 0 {
			t.Errorf("nobody is to be looked at: pace %d", got)
		}
		limits <- 1 << 20
		synctest.Wait()
		if got := behind.limiter.Limit(); got != 1<<20 {
			t.Errorf("limit %v", got)
		}
	})
}

// Anybody may lower his priority; all threads of the process have it, also new ones.
func TestLowerPriority(t *testing.T) {
	if os.Getenv("LOWER_PRIORITY") == "" {
		again := exec.Command(os.Args[0], "-test.run=^TestLowerPriority$")
		again.Env = append(os.Environ(), "LOWER_PRIORITY=1")
		if out, err := again.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	LowerPriority()
	release := make(chan struct{})
	var ready sync.WaitGroup
	for range 20 {
		ready.Add(1)
		go func() {
			runtime.LockOSThread() // a thread each
			ready.Done()
			<-release
		}()
	}
	ready.Wait()
	defer close(release)
	threads, err := os.ReadDir("/proc/self/task")
	must(t, err)
	for _, thread := range threads {
		raw, err := os.ReadFile(filepath.Join("/proc/self/task", thread.Name(), "stat"))
		must(t, err)
		_, fields, _ := strings.Cut(string(raw), ") ") // behind the name, the third field is the first
		if nice := strings.Fields(fields)[16]; nice != "10" {
			t.Errorf("thread %s has niceness %s", thread.Name(), nice)
		}
	}
}

// BenchmarkNeighbour measures what a busy process for each processor has of it beside an
// operation that is as busy, by niceness and pace.
func BenchmarkNeighbour(b *testing.B) {
	for _, c := range []struct {
		name string
		work bool
		nice bool
		pace pace
	}{{"alone", false, false, 0}, {"beside", true, false, 0}, {"half-pace", true, false, 1}, {"slowest-pace", true, false, slowest}, {"nice", true, true, 0}, {"nice-slowest-pace", true, true, slowest}} {
		b.Run(c.name, func(b *testing.B) {
			if c.nice {
				LowerPriority() // last: there is no way back
			}
			ctx, cancel := context.WithCancel(b.Context())
			limit := newThrottle(ctx, 0)
			limit.pace.Store(int64(c.pace))
			var workers sync.WaitGroup
			for range runtime.NumCPU() {
				workers.Go(func() {
					for c.work && limit.wait(1) == nil {
						for at := time.Now(); time.Since(at) < time.Millisecond; {
						}
					}
				})
			}
			var had, wall time.Duration
			for b.Loop() {
				began := time.Now()
				var neighbours []*exec.Cmd
				for range runtime.NumCPU() {
					p := exec.Command("/bin/sh", "-c", "while :; do :; done")
					if c.nice { // which it would inherit; only root may undo that
						p.Args = append([]string{"nice", "-n", fmt.Sprint(-childNice)}, p.Args...)
						p.Path = "/usr/bin/nice"
					}
					if err := p.Start(); err != nil {
						b.Fatal(err)
					}
					neighbours = append(neighbours, p)
				}
				<-time.After(2 * time.Second)
				for _, p := range neighbours {
					_ = p.Process.Kill()
					_ = p.Wait()
					had += p.ProcessState.UserTime() + p.ProcessState.SystemTime()
				}
				wall += time.Since(began)
			}
			cancel()
			workers.Wait()
			b.ReportMetric(100*had.Seconds()/(wall.Seconds()*float64(runtime.NumCPU())), "%-of-the-cores")
		})
	}
}
