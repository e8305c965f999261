// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// What is killed while contents go over Kopia's own protocol, as with somebody else's
// server: the operations end in a true state, the next backup works, and its restore is
// exact, also over what a killed one left.
func TestIntegrationExternalKilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	theirs := testenv.StartKopiaServer(w, w.plane.CA)
	w.passwords = append(w.passwords, theirs.Password)
	tr := newTrialElsewhere(w)
	credentials := func() *api.Credentials {
		return &api.Credentials{URL: theirs.URL, CA: string(w.plane.CA.PEM), Username: theirs.Username, Hostname: theirs.Hostname, Password: theirs.Password}
	}
	snapshot := func(id string) api.StartRequest {
		req := snapshotRequest(id, credentials(), "/")
		req.Snapshot.SourcePath = "/" + host + "/pvc.data"
		return req
	}
	restore := func(id string, of *api.SnapshotResult, path string) api.StartRequest {
		return api.StartRequest{ID: id, Kind: api.KindRestore, Credentials: credentials(), Restore: &api.RestoreRequest{
			RootObject: of.RootObject, Root: of.Root, Volume: "target", Path: path,
		}}
	}
	run := func(req api.StartRequest) *api.Result {
		t.Helper()
		result, err := tr.agent.Run(w.context(), req, func(api.Progress) {})
		w.must(err)
		return result
	}
	restored := func(path string) map[string]testenv.Entry {
		return testenv.Tree(t, filepath.Join(tr.volumes, "target", path))
	}

	want := tr.change(0)
	saved := run(snapshot("first")).Snapshot
	for i, c := range []struct {
		victim string
		strike func()
		good   func(api.Operation) bool
	}{
		{"the operation's process", func() {
			pids := children(w, tr.process.Cmd.Process.Pid)
			if len(pids) != 2 {
				t.Fatalf("%d processes of 2 operations", len(pids))
			}
			for _, pid := range pids {
				w.must(syscall.Kill(pid, syscall.SIGKILL))
			}
		}, func(op api.Operation) bool { return failedWith(op, api.CodeKilled, api.CodeOutOfMemory) }},
		{"the server", func() { theirs.Restart(w) }, func(op api.Operation) bool { return failedWith(op, api.CodeServerUnreachable) }},
	} {
		for j, phase := range []string{"start", "middle"} {
			before, path := want, fmt.Sprintf("/%d-%s", i, phase)
			want = tr.change(uint64(2*i + j + 1))
			reqs := []api.StartRequest{snapshot(fmt.Sprintf("backup-%d-%s", i, phase)), restore(fmt.Sprintf("restore-%d-%s", i, phase), saved, path)}
			var links []*testenv.Proxy
			root := "" // of the backup, if it was made after all: the server was waited for
			for _, req := range reqs {
				link := testenv.StartProxy(t, strings.TrimPrefix(theirs.URL, "https://"))
				// Not before the connection is made: who is cut off then gives up soon. The restore
				// last: their server does nothing for others while it waits for it.
				tr.held(tr.agent, link, max(4<<10, int64(j)*noise/2), req)
				links = append(links, link)
			}
			c.strike()
			for _, link := range links {
				link.Heal()
			}
			for _, req := range reqs {
				op := tr.ended(tr.agent, req.ID)
				switch {
				case op.State == api.StateSucceeded && req.Kind == api.KindRestore:
					tr.same(before, restored(path))
				case complete(op, want):
					root = op.Result.Snapshot.RootObject
				case !c.good(op):
					t.Errorf("%s killed: %s ended as %s", c.victim, req.ID, told(op))
				}
				w.noSecrets("what is told of it", []byte(told(op)))
			}
			saved = run(snapshot(fmt.Sprintf("next-%d-%s", i, phase))).Snapshot
			if root != "" && root != saved.RootObject {
				t.Errorf("%s killed: a backup saved %s, the next one of the same data %s", c.victim, root, saved.RootObject)
			}
			run(restore(fmt.Sprintf("next-restore-%d-%s", i, phase), saved, path))
			tr.same(want, restored(path))
		}
	}
}
