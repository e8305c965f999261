// SPDX-License-Identifier: Apache-2.0

//go:build integration && soak

package repositoryserver_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	"github.com/kanister-kopia/kanister-kopia/repositoryserver"
)

const jump = 6 * time.Hour

// jumps are those of each trial.
var jumps = map[string]time.Duration{"ahead": jump, "back": -jump}

// newClockTrial is a trial whose agent and server have a clock each.
func newClockTrial(t *testing.T, w *world) (tr *trial, agent, server *testenv.Clock) {
	t.Helper()
	agent, server = testenv.NewClock(t, "agent", "operation"), testenv.NewClock(t, "repository-server", "operation")
	w.clocks = map[string]*testenv.Clock{"agent": agent, "repository-server": server}
	return newTrial(w), agent, server
}

// inFolder keeps the repository of a world on a volume: an object store refuses requests
// of a clock that is off by a quarter of an hour.
func (w *world) inFolder() *world {
	w.config.Storage = repositoryserver.StorageConfig{Type: "filesystem", Path: filepath.Join(w.TempDir(), "repository")}
	return w
}

// midway does something in the midst of a backup and of a restore, and returns how they
// ended. What the restore left is exact where it says so.
func (t *trial) midway(name string, record api.Record, had map[string]testenv.Entry, links [2]*testenv.Proxy, something func()) (backup, restore api.Operation) {
	t.Helper()
	reqs := []api.StartRequest{t.snapshot(name + "-backup"), t.restoreTo(name+"-restore", record, "/"+name)}
	for i, link := range links {
		t.held(t.agent, link, noise/2, reqs[i])
	}
	something()
	for _, link := range links {
		link.Heal()
	}
	backup, restore = t.ended(t.agent, reqs[0].ID), t.ended(t.agent, reqs[1].ID)
	if restore.State == api.StateSucceeded {
		t.same(had, testenv.Tree(t, filepath.Join(t.volumes, "target", name)))
	}
	for _, op := range []api.Operation{backup, restore} {
		if op.Finished == nil || op.Started == nil || op.Started.Before(op.Created) || op.Finished.Before(*op.Started) || op.Finished.Sub(*op.Started) > jump/2 {
			t.Errorf("%s: made %s, started %v, finished %v", op.ID, op.Created, op.Started, op.Finished)
		}
	}
	return backup, restore
}

// An agent's clock that jumps, with its operations', changes nothing: neither in what
// runs, nor in what begins while the clock is wrong, nor in what comes after.
func TestIntegrationSoakClockOfAgent(t *testing.T) {
	t.Parallel()
	for name, by := range jumps {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr, clock, _ := newClockTrial(t, newWorld(t))
			links := [2]*testenv.Proxy{tr.network(), tr.network()}
			had := tr.change(0)
			record := tr.next()
			want := tr.change(1)
			backup, restore := tr.midway("jump", record, had, links, func() { clock.JumpBy(by) })
			if !complete(backup, want) || !complete(restore, had) {
				t.Errorf("over a jump: %s; %s", told(backup), told(restore))
			}
			want = tr.change(2)
			off := tr.next()
			if got := off.Snapshot.Start; time.Until(got).Round(time.Hour) != by {
				t.Errorf("a backup by a clock that is off by %s began at %s: the clock does nothing", by, got)
			}
			tr.exact(want, "restore-off", off, "/off")

			had, want = want, tr.change(3)
			backup, restore = tr.midway("right", off, had, links, clock.GoRight)
			if !complete(backup, want) || !complete(restore, had) {
				t.Errorf("over the jump back: %s; %s", told(backup), told(restore))
			}
			want = tr.change(4)
			tr.exact(want, "restore-next", tr.next(), "/jump")
			tr.exact(had, "restore-of-then", off, "/off")
			tr.forgotten(off)
			tr.exact(want, "restore-at-last", tr.next(), "/right")
		})
	}
}

// A server's clock that jumps cuts nothing, as far as the server is concerned: neither
// what runs, nor a password that is in use or was asked for a moment ago. It believes
// neither that nobody has used it for hours, nor that somebody will in hours.
func TestIntegrationSoakClockOfServer(t *testing.T) {
	t.Parallel()
	for name, by := range jumps {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr, _, clock := newClockTrial(t, newWorld(t).inFolder())
			links := [2]*testenv.Proxy{tr.network(), tr.network()}
			had := tr.change(0)
			record := tr.next()
			want := tr.change(1)
			early, late := tr.snapshot("asked-for-before"), tr.snapshot("ended-before")
			tr.must(tr.s.agent.EndSession(tr.context(), late.ID))
			backup, restore := tr.midway("jump", record, had, links, func() {
				clock.JumpBy(by)
				a, err := tr.s.agent.Activity(tr.context())
				tr.must(err)
				if a.Sessions != 3 || a.IdleSeconds != 0 {
					t.Errorf("with three in use: %+v", a)
				}
			})
			if !complete(backup, want) || !complete(restore, had) {
				t.Errorf("over a jump: %s; %s", told(backup), told(restore))
			}
			_, err := tr.agent.Run(tr.context(), early, func(api.Progress) {})
			tr.must(err)
			if _, err := tr.agent.Run(tr.context(), late, func(api.Progress) {}); code(err) != api.CodeAccessDenied {
				t.Errorf("a password that was ended: %v (%s)", err, code(err))
			}
			want = tr.change(2)
			off := tr.next()
			tr.exact(want, "restore-off", off, "/off")
			// The machine, which dates files, goes by another clock, as a file server may.
			if _, message := tr.maintain("--mode", "full"); !strings.Contains(message, "clock skew") {
				t.Errorf("maintenance by a wrong clock: %q", message)
			}

			had, want = want, tr.change(3)
			backup, restore = tr.midway("right", off, had, links, clock.GoRight)
			if !complete(backup, want) || !complete(restore, had) {
				t.Errorf("over the jump back: %s; %s", told(backup), told(restore))
			}
			for _, op := range []string{"jump-backup", "jump-restore", "right-backup", "right-restore", early.ID, "restore-off"} {
				tr.must(tr.s.agent.EndSession(tr.context(), op))
			}
			// Whatever is left was used a moment ago.
			if a, err := tr.s.agent.Activity(tr.context()); err != nil || a.Streams != 0 || a.IdleSeconds > 60 {
				t.Errorf("at the end: %+v, %v", a, err)
			}
			want = tr.change(4)
			tr.exact(want, "restore-next", tr.next(), "/jump")
			tr.exact(had, "restore-of-then", off, "/off")
			tr.forgotten(off)

			// Started again, it works on what it wrote when its clock was off.
			tr.s.Kill()
			tr.s.Process = tr.s.Again(tr.world)
			want = tr.change(5)
			tr.exact(want, "restore-at-last", tr.next(), "/right")
		})
	}
}

// A server that begins by a wrong clock goes on when the clock is put right.
func TestIntegrationSoakClockAtStart(t *testing.T) {
	t.Parallel()
	for name, by := range jumps {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).inFolder()
			server := testenv.NewClock(t, "repository-server", "operation")
			w.clocks = map[string]*testenv.Clock{"repository-server": server}
			server.JumpBy(by)
			tr := newTrial(w)
			want := tr.change(0)
			first := tr.next()
			server.GoRight()
			tr.exact(want, "restore-first", first, "/first")
			tr.exact(tr.change(1), "restore-second", tr.next(), "/second")
			tr.forgotten(first)
			tr.s.Kill()
			tr.s.Process = tr.s.Again(tr.world)
			tr.exact(tr.change(2), "restore-third", tr.next(), "/third")
		})
	}
}

// forgotten deletes a backup. It is gone, or somebody is told that it is not, and why:
// its manifests may be younger than now by the server's clock.
func (t *trial) forgotten(record api.Record) {
	t.Helper()
	id := record.BackupID
	_, err := t.s.agent.Run(t.context(), api.StartRequest{ID: "delete-" + id, Kind: api.KindDelete, Delete: &api.DeleteRequest{
		BackupID: id, Prefix: prefix, KeyID: "default",
	}}, func(api.Progress) {})
	found, lookErr := t.find(t.s, "find-"+id, api.FindRequest{BackupID: id, Prefix: prefix, KeyID: "default"})
	t.must(lookErr)
	switch {
	case err == nil && len(found.Records) > 0:
		t.Errorf("%s was deleted and is still there", id)
	case err != nil && !strings.Contains(err.Error(), "clock"):
		t.Errorf("delete %s: %v", id, err)
	case err != nil:
		t.Log(err)
	}
}

// An object store refuses what was signed by a wrong clock. That is what the operations
// fail with, and those that come; when the clock is right, so is everything.
func TestIntegrationSoakClockOfServerAndObjectStore(t *testing.T) {
	t.Parallel()
	for name, by := range jumps {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			storage := testenv.StartProxy(t, w.s3.Endpoint)
			w.config.Storage.Endpoint = storage.Address
			tr, _, clock := newClockTrial(t, w)
			had := tr.change(0)
			record := tr.next()
			want := tr.change(1)
			tooSkewed := func(op api.Operation) bool {
				return failedWith(op, api.CodeStorage) && strings.Contains(op.Failure.Error(), "clock")
			}
			// In the midst of what is written, and of what is read.
			link := tr.network()
			backup := tr.snapshot("jump-backup")
			tr.held(tr.agent, link, noise/2, backup)
			clock.JumpBy(by)
			link.Heal()
			if op := tr.ended(tr.agent, backup.ID); !tooSkewed(op) {
				t.Errorf("a backup over a jump: %s", told(op))
			}
			clock.GoRight()
			restore := tr.restoreTo("jump-restore", record, "/jump")
			tr.held(tr.agent, link, 1, restore)
			clock.JumpBy(by)
			link.Heal()
			if op := tr.ended(tr.agent, restore.ID); op.State == api.StateSucceeded {
				tr.same(had, testenv.Tree(t, filepath.Join(tr.volumes, "target", "jump"))) // it had all that it needs
			} else if !tooSkewed(op) && !(failedWith(op, api.CodeStorage) && strings.Contains(op.Failure.Title, "did not answer")) {
				t.Errorf("a restore over a jump: %s", told(op))
			}
			var refusal error
			testenv.Eventually(t, 3*time.Minute, "new operations are refused for the storage", func() bool {
				id := fmt.Sprintf("while-off-%d", time.Now().UnixNano())
				_, refusal = tr.s.agent.StartSession(tr.context(), api.SessionRequest{ID: id, Username: "pvc.data", Hostname: host})
				if refusal == nil {
					tr.must(tr.s.agent.EndSession(tr.context(), id))
				}
				return code(refusal) == api.CodeStorage
			})
			if !strings.Contains(refusal.Error(), "clock") {
				t.Errorf("a new operation: %v", refusal)
			}
			t.Log(refusal)
			for _, mode := range []string{"quick", "full"} {
				if _, message := tr.maintain("--mode", mode); !strings.Contains(message, "clock") {
					t.Errorf("%s maintenance: %q", mode, message)
				} else {
					t.Log(message)
				}
			}
			clock.GoRight()
			tr.exact(want, "restore-next", tr.next(), "/jump")
			tr.exact(had, "restore-of-then", record, "/then")

			// By less than the store minds, Kopia minds.
			clock.JumpBy(by / 36)
			tr.exact(tr.change(2), "restore-off", tr.next(), "/off")
			for _, mode := range []string{"quick", "full"} {
				if _, message := tr.maintain("--mode", mode); !strings.Contains(message, "clock") {
					t.Errorf("%s maintenance by %s: %q", mode, by/36, message)
				} else {
					t.Log(message)
				}
			}
			clock.GoRight()
			if _, message := tr.maintain("--mode", "full"); message != "" {
				t.Errorf("maintenance at last: %s", message)
			}
			tr.exact(tr.change(3), "restore-at-last", tr.next(), "/last")
		})
	}
}

// Certificates that are not good yet, or any more, by the clock of whoever looks at them
// are refused at once, with the clock named; what runs goes on.
func TestIntegrationSoakClockAndCertificates(t *testing.T) {
	t.Parallel()
	for name, by := range map[string]time.Duration{"ahead": 3 * 24 * time.Hour, "back": -3 * 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr, agents, servers := newClockTrial(t, newWorld(t).inFolder())
			links := [2]*testenv.Proxy{tr.network(), tr.network()}
			had := tr.change(0)
			record := tr.next()
			want := tr.change(1)
			begun := tr.snapshot("begun")
			refused := func(who string, c *client.Client) {
				t.Helper()
				c.Close() // a new connection
				at := time.Now()
				_, err := c.Info(tr.context())
				if err == nil || !strings.Contains(err.Error(), "clock") || time.Since(at) > 30*time.Second {
					t.Errorf("%s by its wrong clock, after %s: %v", who, time.Since(at), err)
				} else {
					t.Log(err)
				}
			}
			backup, restore := tr.midway("jump", record, had, links, func() {
				agents.JumpBy(by)
				servers.JumpBy(by)
			})
			if !complete(backup, want) || !complete(restore, had) {
				t.Errorf("over a jump: %s; %s", told(backup), told(restore))
			}
			// It is asked for over the connection that is there.
			at := time.Now()
			_, err := tr.agent.Run(tr.context(), begun, func(api.Progress) {})
			if code(err) != api.CodeServerUntrusted || !strings.Contains(err.Error(), "clock") || time.Since(at) > time.Minute {
				t.Errorf("an operation by a wrong clock, after %s: %v (%s)", time.Since(at), err, code(err))
			} else {
				t.Log(err)
			}
			refused("the agent", tr.agent)
			refused("the server", tr.s.agent)
			agents.GoRight()
			servers.GoRight()
			tr.exact(want, "restore-next", tr.next(), "/jump")
		})
	}
}
