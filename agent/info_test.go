// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// What the agent's user cannot read is known before the first backup: in the answer to
// who asks, in the metrics and, once, in the log, also if it comes after the agent began.
func TestUnreadable(t *testing.T) {
	if os.Getuid() == 0 { // who reads everything
		self, err := os.Open(os.Args[0]) // in a folder that is root's
		if err != nil {
			t.Fatal(err)
		}
		defer self.Close()
		again := exec.Command("/proc/self/fd/3", "-test.run=^TestUnreadable$")
		again.ExtraFiles = []*os.File{self}
		again.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
		again.Dir = "/"
		again.Env = append(os.Environ(), "TMPDIR=/tmp")
		if out, err := again.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	volumes := t.TempDir()
	for _, dir := range []string{"closed", "early", "good", "good/lost+found", "late"} {
		must(os.Mkdir(filepath.Join(volumes, dir), 0o700))
	}
	must(os.WriteFile(filepath.Join(volumes, "good", "f"), nil, 0o400))
	must(os.WriteFile(filepath.Join(volumes, "early", "f"), nil, 0))
	must(os.Chmod(filepath.Join(volumes, "good", "lost+found"), 0))
	must(os.Chmod(filepath.Join(volumes, "closed"), 0))
	defer os.Chmod(filepath.Join(volumes, "closed"), 0o700)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var log testenv.Buffer // a tick comes without a word from who has read it
		seen := Watch(ctx, (&Volumes{Dir: volumes, Devices: volumes + "-none"}).Info, slog.New(slog.NewTextHandler(&log, nil)))
		want := map[string]string{"closed": "permission denied", "early": "(the agent runs as uid ", "good": "", "late": ""}
		check := func() {
			t.Helper()
			synctest.Wait()
			last := seen.Last()
			for _, v := range last.Volumes {
				problem := want[v.Name]
				if v.Readable != (problem == "") || v.Readable != (v.Problem == "") || !strings.Contains(v.Problem, problem) {
					t.Errorf("%+v, want problem %q", v, problem)
				}
				logged := strings.Count(log.String(), "volume="+v.Name+" ")
				if told := map[bool]int{true: 0, false: 1}[v.Readable]; logged != told {
					t.Errorf("%s is in the log %d times, want %d:\n%s", v.Name, logged, told, &log)
				}
			}
			if text := metrics(last, nil, nil); len(last.Volumes) != len(want) || !strings.Contains(text, `kopia_agent_volume_readable{volume="early"} 0`) {
				t.Errorf("%+v\n%s", last, text)
			}
		}
		check()
		must(os.WriteFile(filepath.Join(volumes, "late", "f"), nil, 0))
		want["late"] = "late/f: permission denied"
		<-time.After(lookEvery)
		check()
	})
}

// A volume that does not answer keeps nobody from hearing of the others: who asks is answered
// in time, with what is wrong, and however often he asks, the volume is asked once.
func TestVolumeHangs(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "good"), 0o700); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		v := &Volumes{Dir: dir}
		where := filepath.Join(dir, "hangs")
		if err := os.Mkdir(where, 0o700); err != nil {
			t.Fatal(err)
		}
		asked, answer := 0, make(chan string)
		hangs := func(string) string { asked++; return <-answer }
		v.look(where, hangs)
		began := time.Now()
		seen := Watch(ctx, v.Info, slog.New(slog.DiscardHandler))
		check := func(took time.Duration, info api.Info, problem string) {
			t.Helper()
			if got := time.Since(began); got != took {
				t.Errorf("the answer takes %s, want %s", got, took)
			}
			want := []api.VolumeInfo{{Name: "good", Readable: true}, {Name: "hangs", Readable: problem == "", Problem: problem}}
			if !slices.Equal(info.Volumes, want) {
				t.Errorf("%+v, want %+v", info.Volumes, want)
			}
		}
		const silent = "it does not answer within 5s: look at the storage that the volume is on"
		check(answerWithin, seen.Last(), silent)
		for range 3 { // it is known by now
			v.look(where, hangs)
			check(answerWithin, v.Info(), silent)
		}
		if synctest.Wait(); asked != 1 {
			t.Errorf("the volume is asked %d times at once", asked)
		}
		answer <- "an error of the past"
		synctest.Wait()
		check(answerWithin, v.Info(), "")
	})
}

// What is put in the place of a file between its listing and its opening is neither
// waited for nor followed.
func TestSampleReplaced(t *testing.T) {
	dir := t.TempDir()
	for what, put := range map[string]func(string) error{
		"pipe":    func(where string) error { return syscall.Mkfifo(where, 0o600) },
		"link":    func(where string) error { return os.Symlink(strings.Repeat("x", 300), where) }, // cannot be followed
		"socket":  func(where string) error { return syscall.Mknod(where, syscall.S_IFSOCK|0o600, 0) },
		"nothing": func(string) error { return nil },
	} {
		where := filepath.Join(dir, what)
		if err := put(where); err != nil {
			t.Fatal(err)
		}
		entry, volume := make(chan error, 1), make(chan string, 1)
		go func() { entry <- sampleEntry(where); volume <- sample(where) }()
		for range 2 {
			select {
			case err := <-entry:
				if err != nil {
					t.Errorf("%s in the place of a file: %v", what, err)
				}
			case problem := <-volume:
				if problem == "" {
					t.Errorf("%s in the place of a volume is no problem", what)
				}
			case <-time.After(30 * time.Second):
				t.Fatalf("to open a %s does not end", what)
			}
		}
	}
}

// Nothing that an application's pod runs speaks to a cloud's storage: the keys are
// elsewhere, and so is the code.
func TestNoCloudStorage(t *testing.T) {
	linked, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "../cmd/agent", "../cmd/operation").Output()
	if err != nil {
		t.Fatal(err)
	}
	const blob = "github.com/kopia/kopia/repo/blob/"
	local := []string{"beforeop", "filesystem", "logging", "readonly", "sharded", "storagemetrics", "throttling"}
	for _, p := range strings.Fields(string(linked)) {
		storage, ok := strings.CutPrefix(p, blob)
		if ok && !slices.Contains(local, storage) {
			t.Errorf("an operation links %s", p)
		}
		for _, sdk := range []string{"github.com/minio/minio-go", "cloud.google.com/go", "google.golang.org/api", "github.com/aws/", "github.com/Azure/azure-sdk-for-go/sdk/azidentity"} {
			if strings.HasPrefix(p, sdk) {
				t.Errorf("an operation links %s", p)
			}
		}
	}
}

// An agent tells which Kopia its operations use, and links none of it: what sits in the
// application's pod is small.
func TestKopia(t *testing.T) {
	raw, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	required := regexp.MustCompile(`(?m)^\s*github\.com/kopia/kopia (\S+)`).FindSubmatch(raw)
	if required == nil || string(required[1]) != new(Volumes).Info().KopiaVersion {
		t.Errorf("agents tell that they use Kopia %s, go.mod says %q", kopiaVersion, required)
	}
	linked, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "../cmd/agent").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range strings.Fields(string(linked)) {
		if strings.HasPrefix(p, "github.com/kopia/") || strings.HasPrefix(p, "k8s.io/") {
			t.Errorf("the agent links %s", p)
		}
	}
}
