// SPDX-License-Identifier: Apache-2.0

//go:build integration && soak

package repositoryserver_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// A cut of ten minutes ends what may stand still for five, with a word about it. What
// may stand still for longer goes on when the network is back: a restore reads on, and
// is exact; a backup's stream was given up by the server meanwhile, so it fails with
// that, or is exact.
func TestIntegrationSoakNetworkCut(t *testing.T) {
	t.Parallel()
	tr := newTrial(newWorld(t))
	before := tr.change(1)
	record := tr.next()
	want := tr.change(2)
	patient, _ := tr.sidecar(tr.source(), nil, "-stall-timeout", "20m")
	links := []*testenv.Proxy{tr.network(), tr.network(), tr.network(), tr.network()}
	tr.held(tr.agent, links[0], noise/2, tr.snapshot("stalled-backup"))
	tr.held(tr.agent, links[1], noise/2, tr.restoreTo("stalled-restore", record, "/stalled"))
	tr.held(patient, links[2], noise/2, tr.snapshot("patient-backup"))
	tr.held(patient, links[3], noise/2, tr.restoreTo("patient-restore", record, "/patient"))
	timer := time.NewTimer(10 * time.Minute)
	defer timer.Stop()
	<-timer.C
	for _, id := range []string{"stalled-backup", "stalled-restore"} {
		if op := tr.ended(tr.agent, id); !failedWith(op, api.CodeStalled) || !strings.Contains(op.Failure.Title, "no data moved for 5m0s") {
			t.Errorf("%s ended as %s", id, told(op))
		}
	}
	for _, link := range links {
		link.Heal()
	}
	if op := tr.ended(patient, "patient-restore"); op.State != api.StateSucceeded {
		t.Errorf("patient-restore ended as %s", told(op))
	} else {
		tr.same(before, testenv.Tree(t, filepath.Join(tr.volumes, "target", "patient")))
	}
	if op := tr.ended(patient, "patient-backup"); !complete(op, want) && !failedWith(op, api.CodeServerUnreachable) {
		t.Errorf("patient-backup ended as %s", told(op))
	}
	tr.exact(want, "restore", tr.next(), "/next")
	tr.exact(before, "again", record, "/stalled")
}

// A server that is frozen for longer than an operation may stand still blocks Kopia's
// calls whatever their context says: the operation's process is ended, and when the
// server goes on, the next backup works.
func TestIntegrationSoakFrozenServer(t *testing.T) {
	t.Parallel()
	tr := newTrial(newWorld(t))
	tr.change(1)
	record := tr.next()
	want := tr.change(2)
	links := []*testenv.Proxy{tr.network(), tr.network()}
	tr.held(tr.agent, links[0], noise/2, tr.snapshot("backup"))
	tr.held(tr.agent, links[1], noise/2, tr.restoreTo("restore", record, "/frozen"))
	tr.must(tr.s.Cmd.Process.Signal(syscall.SIGSTOP))
	for _, link := range links {
		link.Heal()
	}
	for _, id := range []string{"backup", "restore"} {
		testenv.Eventually(t, 7*time.Minute, id+" ends", func() bool {
			op, err := tr.agent.Get(tr.context(), id)
			return err == nil && op.State.Done()
		})
		if op := tr.ended(tr.agent, id); !failedWith(op, api.CodeStalled) {
			t.Errorf("%s ended as %s", id, told(op))
		}
	}
	if left := children(tr.world, tr.process.Cmd.Process.Pid); len(left) > 0 {
		t.Errorf("%d processes of operations are left", len(left))
	}
	tr.must(tr.s.Cmd.Process.Signal(syscall.SIGCONT))
	tr.exact(want, "next", tr.next(), "/next")
}

// An operation with the least rate limit takes many times what it may stand still, and
// is not taken for one that does.
func TestIntegrationSoakSlowIsNotStalled(t *testing.T) {
	t.Parallel()
	tr := newTrial(newWorld(t))
	want := tr.change(1)
	slow, _ := tr.sidecar(tr.source(), nil, "-stall-timeout", "30s")
	req := tr.snapshot("slow")
	req.RateLimit = api.LeastRateLimit
	_, err := slow.Start(tr.context(), req)
	tr.must(err)
	testenv.Eventually(t, 10*time.Minute, "it ends", func() bool {
		op, err := slow.Get(tr.context(), req.ID)
		return err == nil && op.State.Done()
	})
	op := tr.ended(slow, req.ID)
	if !complete(op, want) {
		t.Fatalf("it ended as %s", told(op))
	}
	if took := op.Finished.Sub(*op.Started); took < time.Minute {
		t.Errorf("it took %s only: nothing was shown", took)
	}
}

// Hundreds of operations one after the other leave nothing behind: neither in the
// agent nor in the server does memory grow, and no file is left.
func TestIntegrationSoakNoLeaks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.plain = true
	tr := newTrial(w)
	// Memory goes up and down with collections: what does not go below the least of before has grown.
	const all, window, settled = 400, 50, 2
	least := map[string][]int64{} // of each window, by program
	for i := range all {
		want := tr.change(uint64(i))
		record := tr.next()
		if i%10 == 0 {
			tr.exact(want, fmt.Sprintf("restore-%d", i), record, "/same")
		}
		if i%window == window-1 { // an index that nobody compacts grows
			if _, failure := tr.maintain("--mode", "quick"); failure != "" {
				t.Fatal(failure)
			}
		}
		for who, process := range map[string]*testenv.Process{"agent": tr.process, "server": tr.s.Process} {
			now := anonymous(tr, process) >> 20
			if i%window == 0 {
				least[who] = append(least[who], now)
			}
			last := len(least[who]) - 1
			least[who][last] = min(least[who][last], now)
		}
	}
	for who, of := range least {
		t.Logf("%s, the least MiB of each %d backups: %d", who, window, of)
		// What is kept fills first, and the repository grows a little with each backup.
		if early, late := of[settled], of[len(of)-1]; late > early+early/4+4 {
			t.Errorf("the %s had %d MiB at least after %d backups and has %d after %d", who, early, settled*window, late, all)
		}
	}
	state := tr.process.Cmd.Args[slices.Index(tr.process.Cmd.Args, "-state-dir")+1]
	left, err := os.ReadDir(state)
	tr.must(err)
	for _, e := range left {
		if e.Name() != "operations" && e.Name() != "agent.key" {
			t.Errorf("the agent keeps %s", e.Name())
		}
	}
}

// anonymous is the memory of a process that is not of files.
func anonymous(tr *trial, p *testenv.Process) int64 {
	tr.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Cmd.Process.Pid))
	tr.must(err)
	for line := range strings.Lines(string(raw)) {
		if value, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			tr.must(err)
			return kib << 10
		}
	}
	tr.Fatal("no RssAnon")
	return 0
}
