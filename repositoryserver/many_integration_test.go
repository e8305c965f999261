// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

func TestIntegrationManyEntries(t *testing.T) {
	t.Parallel()
	manyEntries(t, 3000)
}

// manyEntries: a directory of many entries, a name of 255 bytes and a path of almost
// PATH_MAX come back, and are not read again when nothing has changed.
func manyEntries(t *testing.T, many int) {
	w := newWorld(t)
	source := w.volume()
	dir := filepath.Join(source, "dir")
	w.must(os.Mkdir(dir, 0o755))
	for i := range many {
		var content []byte // of most none
		if i%100 == 0 {
			content = []byte(fmt.Sprint(i))
		}
		w.must(os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), content, 0o640))
	}
	long := strings.Repeat("n", 255)
	w.must(os.WriteFile(filepath.Join(source, long), []byte("long"), 0o600))
	deep, err := os.OpenRoot(source)
	w.must(err)
	depth := 0
	for length := 0; length+256 < 4096-len("/volumes/data/"); length += 256 {
		w.must(deep.Mkdir(long[:250]+fmt.Sprintf("%05d", depth), 0o755))
		next, err := deep.OpenRoot(long[:250] + fmt.Sprintf("%05d", depth))
		w.must(err)
		deep.Close()
		deep = next
		depth++
	}
	w.must(deep.WriteFile("end", []byte("deep"), 0o600))
	deep.Close()

	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	began := time.Now()
	record := w.backup(s, agent, "op-1", "/")
	t.Logf("first: %s, %d files", time.Since(began), record.Snapshot.Files)
	began = time.Now()
	second := w.backup(s, agent, "op-2", "/")
	t.Logf("again: %s, %d bytes sent", time.Since(began), second.Snapshot.NewBytes)
	if second.Snapshot.CachedFiles != second.Snapshot.Files || second.Snapshot.RootObject != record.Snapshot.RootObject {
		t.Errorf("nothing has changed: %+v", second.Snapshot)
	}
	began = time.Now()
	folder, result := w.restore(s, "op-3", record, "", "/")
	t.Logf("restored: %s", time.Since(began))
	w.same(testenv.Tree(t, dir), testenv.Tree(t, filepath.Join(folder, "dir")))
	if result.Files != record.Snapshot.Files || result.Files != int64(many)+2 {
		t.Errorf("%d of %d files came back, want %d", result.Files, record.Snapshot.Files, many+2)
	}
	at, err := os.OpenRoot(folder)
	w.must(err)
	defer at.Close()
	for i := range depth {
		next, err := at.OpenRoot(long[:250] + fmt.Sprintf("%05d", i))
		w.must(err)
		defer next.Close()
		at = next
	}
	if content, err := at.ReadFile("end"); err != nil || string(content) != "deep" {
		t.Errorf("at the end of %d directories: %q, %v", depth, content, err)
	}
	if content, err := os.ReadFile(filepath.Join(folder, long)); err != nil || string(content) != "long" {
		t.Errorf("the longest name: %q, %v", content, err)
	}
}
