// SPDX-License-Identifier: Apache-2.0

package operation

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// spareChild writes its process id when it starts, and "unused" when nothing was asked
// of it. Its answer has its process id.
func spareChild(t *testing.T) (child *Child, started func() []string) {
	log := filepath.Join(t.TempDir(), "log")
	script := fmt.Sprintf(`echo $$ >>%[1]s; read request || { echo unused >>%[1]s; exit; }
		echo '{"result":{"snapshot":{"id":"'$$'","rootObject":"'$(cat "$SSL_CERT_FILE")'"}}}'`, log)
	child = &Child{Command: []string{"/bin/sh", "-c", script}, StateDir: t.TempDir(), Env: []string{"PATH=" + os.Getenv("PATH")}, Spare: time.Hour}
	t.Cleanup(func() {
		if p, err := child.take(); err == nil {
			p.discard()
		}
	})
	return child, func() []string {
		raw, _ := os.ReadFile(log)
		return strings.Fields(string(raw))
	}
}

func ran(t *testing.T, child *Child) string {
	t.Helper()
	req := backup("a", "/", "p")
	req.Credentials.CA = "the-CA"
	result, problem := child.Run(t.Context(), req, nil, func(api.Progress) {})
	if problem != nil {
		t.Fatal(problem)
	}
	if result.Snapshot.RootObject != "the-CA" {
		t.Errorf("it trusts %q, not the operation's CA", result.Snapshot.RootObject)
	}
	return result.Snapshot.ID
}

// A process that was started ahead does the next operation, and that one only.
func TestChildIsPrepared(t *testing.T) {
	child, started := spareChild(t)
	child.Prepare()
	child.Prepare()
	testenv.Eventually(t, time.Minute, "it has started", func() bool { return len(started()) > 0 })
	ahead := started()
	if len(ahead) != 1 {
		t.Fatalf("%d processes were started ahead", len(ahead))
	}
	if by := ran(t, child); by != ahead[0] {
		t.Errorf("process %s did it, not %s, which was ready", by, ahead[0])
	}
	if by := ran(t, child); by == ahead[0] {
		t.Error("a process did two operations")
	}
}

// Nobody waits for one that somebody killed.
func TestPreparedChildIsKilled(t *testing.T) {
	child, started := spareChild(t)
	child.Prepare()
	testenv.Eventually(t, time.Minute, "it has started", func() bool { return len(started()) > 0 })
	pid, err := strconv.Atoi(started()[0])
	must(t, err)
	must(t, unix.Kill(pid, unix.SIGKILL))
	must(t, unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil))
	if by := ran(t, child); by == started()[0] {
		t.Error("a dead process did it")
	}
}

// One that nothing is asked of ends by itself, and the next is another.
func TestPreparedChildIsNotUsed(t *testing.T) {
	child, started := spareChild(t)
	child.Spare = time.Millisecond
	child.Prepare()
	testenv.Eventually(t, time.Minute, "it has ended", func() bool { s := started(); return len(s) == 2 && s[1] == "unused" })
	if by := ran(t, child); by == started()[0] {
		t.Error("a process that has ended did it")
	}
	if left, _ := os.ReadDir(child.StateDir); len(left) != 0 {
		t.Errorf("it leaves %v", left)
	}
}

// Something is prepared only where the next operation need not wait for its turn.
func TestExpect(t *testing.T) {
	r := &fakeRunner{release: make(chan struct{})}
	defer close(r.release)
	m := newManager(t, t.TempDir(), r)
	prepared := 0
	m.opt.Prepare = func() { prepared++ }
	m.Expect()
	if prepared != 1 {
		t.Errorf("prepared %d times, want once", prepared)
	}
	start(t, m, backup("a", "/", "p")) // as many as run at once
	await(t, m, "a", api.StateRunning)
	m.Expect()
	if prepared != 1 {
		t.Error("something was prepared for an operation that has to wait")
	}
	must(t, m.Close(t.Context()))
	m.Expect()
	if prepared != 1 {
		t.Error("something was prepared by a manager that is closed")
	}
}
