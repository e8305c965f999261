// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// Whatever is killed in the middle of a backup, with data under way: the operation
// ends in a true state, the next backup works, and its restore is exact.
func TestIntegrationKilledInTheMiddle(t *testing.T) {
	for _, victim := range []string{"the operation's process", "the repository server", "the storage"} {
		t.Run(victim, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			source := w.volume()
			random := rand.NewChaCha8([32]byte{2})
			content := make([]byte, 6<<20)
			for i := range 4 {
				_, _ = random.Read(content)
				w.must(os.WriteFile(filepath.Join(source, fmt.Sprintf("file-%d", i)), content, 0o640))
			}
			testenv.MakeTree(w, source)
			want := testenv.Tree(w, source)
			s := w.serve()
			agent, process := w.sidecar(source, nil)

			strike := func() {
				switch victim {
				case "the operation's process":
					for _, pid := range children(w, process.Cmd.Process.Pid) {
						w.must(syscall.Kill(pid, syscall.SIGKILL))
					}
				case "the repository server":
					s.Kill()
					s.Process = s.Again(w)
				case "the storage":
					w.s3.Gateway.Kill()
					w.s3.Gateway = w.s3.Gateway.Again(w)
				}
			}
			var once sync.Once
			struck := false
			ctx, cancel := context.WithTimeout(w.context(), 2*time.Minute)
			defer cancel()
			result, err := agent.Run(ctx, snapshotRequest("hit", w.session(s, "hit", "pvc.data"), "/"), func(p api.Progress) {
				if p.UploadedBytes > 2<<20 {
					once.Do(func() { struck = true; strike() })
				}
			})
			if !struck {
				t.Fatal("the backup was over before anything could be killed")
			}
			t.Logf("ended with %v", err)
			switch victim {
			case "the operation's process":
				if code(err) != api.CodeOutOfMemory {
					t.Errorf("ended with %v, want that it was killed", err)
				}
			case "the repository server":
				// Its password went with the server.
				if err == nil {
					t.Errorf("succeeded: %+v", result)
				}
			case "the storage":
				if err == nil && result.Snapshot.Files != int64(files(want)) {
					t.Errorf("succeeded with %d files of %d", result.Snapshot.Files, files(want))
				}
			}
			w.ready(s)
			record := w.backup(s, agent, "next", "/")
			got, _ := w.restore(s, "restore", record, "", "/")
			w.same(want, testenv.Tree(w, got))
		})
	}
}

func files(tree map[string]testenv.Entry) int {
	n := 0
	for _, e := range tree {
		if e.Mode.IsRegular() {
			n++
		}
	}
	return n
}
