// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver_test

import (
	"strings"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// cancelled starts an operation that is slow, cancels it when its data moves, and
// returns how it ended: by itself, as cancelled.
func (w *world) cancelled(agent *client.Client, req api.StartRequest) (op api.Operation) {
	w.Helper()
	_, err := agent.Start(w.context(), req)
	w.must(err)
	testenv.Eventually(w, time.Minute, req.ID+" moves data", func() bool {
		op, err = agent.Get(w.context(), req.ID)
		w.must(err)
		if op.State.Done() {
			w.Fatalf("%s was over before it was cancelled: %s", req.ID, told(op))
		}
		return op.Progress.Bytes > 0
	})
	began := time.Now()
	w.must(agent.Cancel(w.context(), req.ID))
	testenv.Eventually(w, time.Minute, req.ID+" ends", func() bool {
		op, err = agent.Get(w.context(), req.ID)
		w.must(err)
		return op.State.Done()
	})
	w.Logf("%s %s after %s", req.ID, told(op), time.Since(began))
	if op.State != api.StateCancelled || op.Result != nil || op.Failure == nil || op.Failure.Code != api.CodeCancelled {
		w.Fatalf("%s ended as %s with result %+v, want it cancelled", req.ID, told(op), op.Result)
	}
	return op
}

// What is cancelled while its data moves ends by itself, says what it leaves, and is no
// backup; the next backup and the next restore are exact. Only an operation that obeys
// can say more than that it was cancelled: one that is killed says nothing.
func TestIntegrationCancelled(t *testing.T) {
	t.Parallel()
	tr := newTrial(newWorld(t))
	tr.change(1)
	tr.next()
	want := tr.change(2)
	saved := tr.saved()

	backup := tr.snapshot("backup")
	backup.RateLimit = api.LeastRateLimit
	if op := tr.cancelled(tr.agent, backup); !strings.Contains(op.Failure.Title, "nothing was saved") {
		t.Errorf("%s, want it to say that nothing was saved", told(op))
	}
	if now := tr.saved(); now != saved {
		t.Errorf("%d snapshots after a cancelled one, want the %d from before", now, saved)
	}
	record := tr.next()
	tr.exact(want, "restored", record, "/restored")

	restore := tr.restoreTo("restore", record, "/over")
	restore.RateLimit = api.LeastRateLimit
	if op := tr.cancelled(tr.agent, restore); !strings.Contains(op.Failure.Title, "/over is incomplete") || op.Failure.Hint == "" {
		t.Errorf("%s, want it to say what is incomplete, and what to do", told(op))
	}
	tr.exact(want, "restored-over", record, "/over")

	// Where nothing passes any more it ends all the same, also while Kopia waits for the
	// server to save it.
	frozen := func(link *testenv.Proxy, cut <-chan struct{}, req api.StartRequest) {
		t.Helper()
		tr.heldBy(tr.agent, link, cut, req)
		began := time.Now()
		tr.must(tr.agent.Cancel(tr.context(), req.ID))
		op := tr.ended(tr.agent, req.ID)
		// It has 10 s to obey. Without a cancel it may stand still for minutes.
		if op.State != api.StateCancelled || op.Failure == nil || op.Failure.Code != api.CodeCancelled || time.Since(began) > time.Minute {
			t.Errorf("%s is %s, %s after it was cancelled", req.ID, told(op), time.Since(began))
		}
	}
	links := []*testenv.Proxy{tr.network(), tr.network(), tr.network()}
	tr.change(3)
	frozen(links[0], tr.cutAtCommit(links[0]), tr.snapshot("frozen-commit"))
	tr.change(4)
	frozen(links[1], links[1].CutAfter(noise/2), tr.snapshot("frozen-backup"))
	frozen(links[2], links[2].CutAfter(noise/2), tr.restoreTo("frozen-restore", record, "/frozen"))
	testenv.Eventually(t, time.Minute, "no process is left", func() bool { return len(children(tr.world, tr.process.Cmd.Process.Pid)) == 0 })
	tr.exact(testenv.Tree(t, tr.source()), "thawed", tr.next(), "/frozen")
}
