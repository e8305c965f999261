// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver_test

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/kopia/kopia/repo"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// A session that is ended while the storage is down ends at once, whatever it waits
// for: its streams are cut and its password is refused. The others' stay.
func TestIntegrationRevokedWhileStorageIsDown(t *testing.T) {
	t.Parallel()
	const atOnce = 15 * time.Second // no storage is waited for; Kopia would, for minutes
	for name, outage := range map[string]struct{ begin, end func(*world) }{
		"killed": {
			func(w *world) { w.s3.Gateway.Kill() },
			func(w *world) { w.s3.Gateway = w.s3.Gateway.Again(w) },
		},
		"frozen": {
			func(w *world) { w.must(w.s3.Gateway.Cmd.Process.Signal(syscall.SIGSTOP)) },
			func(w *world) { w.must(w.s3.Gateway.Cmd.Process.Signal(syscall.SIGCONT)) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			link := testenv.StartProxy(t, w.s3.Endpoint)
			w.config.Storage.Endpoint = link.Address
			tr := newTrial(w)
			second, _ := tr.sidecar(tr.source(), nil)
			activity := func() api.Activity {
				t.Helper()
				a, err := tr.s.agent.Activity(w.context())
				w.must(err)
				return a
			}
			tr.change(0)
			tr.next()
			want := tr.change(1)
			saved := tr.saved()

			// Another operation of the same user is in the midst of its work.
			other := w.kopia(w.session(tr.s, "other", "pvc.data"))
			_, writer, err := other.NewWriter(w.context(), repo.WriteSessionOptions{Purpose: "test"})
			w.must(err)
			defer writer.Close(context.Background())
			testenv.Eventually(t, atOnce, "the other operation has a stream", func() bool { return activity().Streams > 0 })
			others := activity()

			// One that waits for the storage, one whose user the server has to make known
			// first, which reads the storage too, and one that comes after it.
			revoked, late := tr.snapshot("revoked"), tr.snapshot("late")
			tr.held(tr.agent, link, 1, revoked)
			outage.begin(w)
			link.Heal()
			stranger := make(chan error, 1)
			go func() {
				_, err := tr.s.agent.StartSession(w.context(), api.SessionRequest{ID: "stranger", Username: "pvc.stranger", Hostname: host})
				stranger <- err
			}()
			testenv.Eventually(t, atOnce, "the unknown user's session is asked for", func() bool { return activity().Sessions == others.Sessions+3 })
			before := activity().Streams
			testenv.Eventually(t, time.Minute, "the late one has a stream", func() bool {
				_, err := second.Start(w.context(), late) // again, it is the same one
				return err == nil && activity().Streams > before
			})

			ended := time.Now()
			ctx, cancel := context.WithTimeout(w.context(), atOnce)
			defer cancel()
			for _, id := range []string{revoked.ID, late.ID, "stranger"} {
				w.must(tr.s.agent.EndSession(ctx, id))
			}
			if a := activity(); a.Streams != others.Streams || a.Sessions != others.Sessions {
				t.Errorf("%+v is left, the other operation had %+v", a, others)
			}
			for id, agent := range map[string]*client.Client{revoked.ID: tr.agent, late.ID: second} {
				op := tr.ended(agent, id)
				// One that has waited long enough for the storage may end for that, before.
				slow := failedWith(op, api.CodeStorage) && op.Finished.Before(ended)
				if !slow && !failedWith(op, api.CodeServerUnreachable, api.CodeAccessDenied) || op.Finished.Sub(ended) > atOnce {
					t.Errorf("%s ended %s later as %s", id, op.Finished.Sub(ended), told(op))
				}
			}
			again := revoked
			again.ID = "again"
			ctx, cancel = context.WithTimeout(w.context(), 2*atOnce)
			defer cancel()
			if _, err := tr.agent.Run(ctx, again, func(api.Progress) {}); code(err) != api.CodeAccessDenied {
				t.Errorf("the password of what was revoked: %v (%s), want %s", err, code(err), api.CodeAccessDenied)
			}

			outage.end(w)
			<-stranger // whatever it was told: it has no session
			w.must(tr.s.agent.EndSession(w.context(), "other"))
			tr.exact(want, "restore", tr.next(), "/")
			if now := tr.saved(); now != saved+1 {
				t.Errorf("%d snapshots are saved, there were %d and one was made", now, saved)
			}
		})
	}
}
