// SPDX-License-Identifier: Apache-2.0

package operation

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

func TestChild(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		want   api.Code
		text   string
		stall  time.Duration // default: longer than a start takes
	}{
		"succeeds":            {script: `echo '{"progress":{"files":3}}'; echo '{"result":{"snapshot":{"id":"x"}}}'`},
		"noise":               {script: `echo noise; echo '{"result":{"snapshot":{"id":"x"}}}'; echo more >&2`},
		"fails":               {script: `echo '{"problem":{"code":"unreadable","title":"no"}}'`, want: api.CodeUnreadable, text: "no"},
		"dies":                {script: `echo boom >&2; exit 3`, want: api.CodeInternal, text: "boom"},
		"dies after a result": {script: `echo '{"result":{"snapshot":{"id":"x"}}}'; exit 3`, want: api.CodeInternal, text: "exit status 3"},
		"says nothing":        {script: `true`, want: api.CodeInternal, text: "child ended"},
		"is killed":           {script: `kill -9 $$`, want: api.CodeOutOfMemory, text: "most likely"},
		"stalls":              {script: `echo '{"progress":{"files":3}}'; exec sleep 60`, want: api.CodeStalled, text: "no data moved", stall: 3 * time.Second},
		"stalls and is deaf":  {script: `trap '' TERM; while :; do sleep 0.05; done`, want: api.CodeStalled, text: "no data moved", stall: 3 * time.Second},
		// Not each step of a restore moves data, and the end of one waits for the volume's storage.
		"works without data": {script: `for i in 1 2 3 4 5 6 7 8; do echo '{"progress":{"files":3,"entries":'$i'}}'; sleep 0.5; done; echo '{"result":{"snapshot":{"id":"x"}}}'`, stall: 3 * time.Second},
		"syncs for long":     {script: `echo '{"progress":{"files":3,"syncing":true}}'; sleep 4; echo '{"result":{"snapshot":{"id":"x"}}}'`, stall: 3 * time.Second},
		"syncs for ever":     {script: `echo '{"progress":{"files":3,"syncing":true}}'; exec sleep 60`, want: api.CodeStalled, text: "the volume's storage has not taken it within 8s", stall: 3 * time.Second},
		"stalls after it":    {script: `echo '{"progress":{"files":3,"syncing":true}}'; echo '{"progress":{"files":3}}'; exec sleep 60`, want: api.CodeStalled, text: "no data moved for 3s", stall: 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			child := Child{Command: []string{"/bin/sh", "-c", c.script}, StateDir: dir, Env: []string{"PATH=" + os.Getenv("PATH")}, Grace: 200 * time.Millisecond, Stall: cmp.Or(c.stall, 20*time.Second), Sync: 8 * time.Second, ProcFS: "/nonexistent"}
			var files int64
			result, problem := child.Run(t.Context(), backup("a", "/", "p"), nil, func(p api.Progress) { files = p.Files })
			switch {
			case c.want == "":
				if problem != nil || result == nil || result.Snapshot.ID != "x" {
					t.Errorf("result %+v, problem %v", result, problem)
				}
			case problem == nil || problem.Code != c.want || !strings.Contains(problem.Error(), c.text):
				t.Errorf("problem %v, want %s with %q", problem, c.want, c.text)
			}
			if strings.Contains(c.script, "progress") && files != 3 {
				t.Errorf("progress of %d files, want 3", files)
			}
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("it leaves %v", left)
			}
		})
	}
}

// Who killed a child is told by what the kernel counts, in whichever form it does.
func TestChildIsKilled(t *testing.T) {
	const v1, v2 = "memory/memory.oom_control", "memory.events"
	for name, c := range map[string]struct {
		groups, file string
		text         string // of the file before
		more         bool   // one more is counted
		want         api.Code
		say          string
	}{
		"version 2":                     {"0::/\n", v2, "low 0\noom 3\noom_kill 3\n", true, api.CodeOutOfMemory, "the kernel killed"},
		"version 2, by somebody":        {"0::/\n", v2, "low 0\noom 3\noom_kill 3\n", false, api.CodeKilled, "not for want of memory"},
		"version 2, a group of its own": {"0::/kubepods/pod1\n", "kubepods/pod1/" + v2, "oom_kill 0\n", true, api.CodeOutOfMemory, "the kernel killed"},
		"version 2, the node's path":    {"0::/kubepods/pod1\n", v2, "oom_kill 0\n", true, api.CodeOutOfMemory, "the kernel killed"},
		"version 1":                     {"9:cpu:/\n4:memory:/pod1\n0::/\n", v1, "under_oom 0\noom_kill 0\n", true, api.CodeOutOfMemory, "the kernel killed"},
		"version 1, by somebody":        {"9:cpu:/\n4:memory:/pod1\n0::/\n", v1, "under_oom 0\noom_kill 7\n", false, api.CodeKilled, "not for want of memory"},
		"an old kernel":                 {"4:memory:/pod1\n", v1, "under_oom 0\n", true, api.CodeOutOfMemory, "most likely"},
		"nothing to read":               {"", v2, "oom_kill 0\n", true, api.CodeOutOfMemory, "most likely"},
	} {
		t.Run(name, func(t *testing.T) {
			proc, cgroups := t.TempDir(), t.TempDir()
			file := filepath.Join(cgroups, c.file)
			must(t, os.MkdirAll(filepath.Join(proc, "self"), 0o755))
			must(t, os.WriteFile(filepath.Join(proc, "self", "cgroup"), []byte(c.groups), 0o644))
			must(t, os.MkdirAll(filepath.Dir(file), 0o755))
			must(t, os.WriteFile(file, []byte(c.text), 0o644))
			script := "kill -9 $$"
			if c.more {
				script = fmt.Sprintf("sed -i 's/oom_kill [0-9]*/oom_kill 8/' %s; %s", file, script)
			}
			child := Child{
				Command: []string{"/bin/sh", "-c", script}, StateDir: t.TempDir(), Env: []string{"PATH=" + os.Getenv("PATH")},
				ProcFS: proc, CgroupFS: cgroups,
			}
			_, problem := child.Run(t.Context(), backup("a", "/", "p"), nil, func(api.Progress) {})
			if problem == nil || problem.Code != c.want || !strings.Contains(problem.Title, c.say) {
				t.Fatalf("%v, want %s with %q", problem, c.want, c.say)
			}
			if named := strings.Contains(problem.Hint, "kopia.kanister.io/memory-limit"); named != (c.want == api.CodeOutOfMemory) {
				t.Errorf("hint %q", problem.Hint)
			}
		})
	}
}

// A child is told of new limits while it runs, on its standard input, after the request.
func TestChildIsTold(t *testing.T) {
	limits := make(chan int64, 1)
	child := Child{
		Command:  []string{"/bin/sh", "-c", `read request; echo '{"progress":{"files":1}}'; read limit; echo '{"result":{"snapshot":{"id":"'$(echo "$limit" | tr -dc 0-9)'"}}}'`},
		StateDir: t.TempDir(), Env: []string{"PATH=" + os.Getenv("PATH")}, Stall: 10 * time.Second,
	}
	result, problem := child.Run(t.Context(), backup("a", "/", "p"), limits, func(api.Progress) { limits <- 65536 })
	if problem != nil || result.Snapshot.ID != "65536" {
		t.Errorf("the child was told %+v, %v, want 65536", result, problem)
	}
}

func TestChildIsCancelled(t *testing.T) {
	for name, script := range map[string]string{
		"obeys":    `trap 'exit 0' TERM; echo '{"progress":{"files":1}}'; while :; do sleep 0.05; done`,
		"says so":  `trap 'echo "{\"problem\":{\"code\":\"cancelled\",\"title\":\"cancelled, half done\"}}"; exit 0' TERM; echo '{"progress":{"files":1}}'; while :; do sleep 0.05; done`,
		"does not": `trap '' TERM; echo '{"progress":{"files":1}}'; while :; do sleep 0.05; done`,
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			child := Child{Command: []string{"/bin/sh", "-c", script}, StateDir: t.TempDir(), Env: []string{"PATH=" + os.Getenv("PATH")}, Grace: 20 * time.Second}
			if name == "does not" {
				child.Grace = 200 * time.Millisecond
			}
			begun := time.Now()
			_, problem := child.Run(ctx, backup("a", "/", "p"), nil, func(api.Progress) { cancel() })
			if problem == nil || problem.Code != api.CodeCancelled {
				t.Errorf("problem %v, want cancelled", problem)
			}
			if name == "says so" && !strings.Contains(problem.Title, "half done") {
				t.Errorf("problem %v does not say what the child said", problem)
			}
			if took := time.Since(begun); took > 30*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

// The child sees its request on standard input only, and trusts the operation's CA only.
func TestChildEnvironment(t *testing.T) {
	t.Setenv("PARENT_SECRET", "parent-secret")
	dir := t.TempDir()
	seen := filepath.Join(t.TempDir(), "seen")
	script := fmt.Sprintf(`read request; { env; cat "$SSL_CERT_FILE"; ls "$SSL_CERT_DIR" 2>&1; tr '\0' ' ' </proc/$$/cmdline; } >%s; echo '{"result":{}}'`, seen)
	child := Child{Command: []string{"/bin/sh", "-c", script}, StateDir: dir, Env: []string{"PATH=" + os.Getenv("PATH")}}
	req := backup("a", "/", "operation-password")
	req.Credentials.CA = "the CA"
	if _, problem := child.Run(t.Context(), req, nil, func(api.Progress) {}); problem != nil {
		t.Fatal(problem)
	}
	raw, err := os.ReadFile(seen)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"parent-secret", "operation-password"} {
		if strings.Contains(string(raw), secret) {
			t.Errorf("the child's environment holds %s", secret)
		}
	}
	if !strings.Contains(string(raw), "the CA") || !strings.Contains(string(raw), "SSL_CERT_DIR="+filepath.Join(dir, "none")) {
		t.Errorf("the child does not trust the operation's CA alone: %s", raw)
	}
}
