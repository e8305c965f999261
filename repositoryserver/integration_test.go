// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	"github.com/kanister-kopia/kanister-kopia/repositoryserver"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// marker stands in files that are backed up: whoever finds it elsewhere has found plaintext.
const marker = "plaintext-marker-7f3a"

// host is the namespace that the tests' users are of, otherHost that of others.
const (
	host      = "5f0c3a52-9b7e-4a63-8a52-1d7f2f1c0a01"
	otherHost = "5f0c3a52-9b7e-4a63-8a52-1d7f2f1c0a02"
)

// world is one control plane with a bucket.
type world struct {
	*testing.T
	s3     *testenv.S3
	plane  *testenv.ControlPlane
	config repositoryserver.Config
	// passwords of all sessions that were opened.
	passwords []string
	// environment of the server and of maintenance, besides this process's.
	environment []string
	// clocks of the programs that have one of their own.
	clocks map[string]*testenv.Clock
	// plain programs have no race detector, as a trial of memory wants them.
	plain bool
}

// program is the path of one of ours.
func (w *world) program(name string) string {
	w.Helper()
	if clock := w.clocks[name]; clock != nil {
		return clock.Program(name)
	}
	if w.plain {
		return testenv.Plain(w, name)
	}
	return testenv.Program(w, name)
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldOn(t, testenv.StartS3(t))
}

func newWorldOn(t *testing.T, s3 *testenv.S3) *world {
	t.Helper()
	w := &world{T: t, s3: s3, plane: testenv.NewControlPlane(t)}
	w.config = repositoryserver.Config{
		RepositoryID: "shop-test", Password: "repository-password-1b2c", AllowCreate: true,
		Storage: repositoryserver.StorageConfig{
			Type: "s3", Bucket: w.s3.Bucket, Endpoint: w.s3.Endpoint, Prefix: "demo/", Region: "us-east-1",
			AccessKeyID: w.s3.AccessKey, SecretAccessKey: w.s3.SecretKey, CABundle: string(w.s3.CA.PEM),
		},
	}
	return w
}

// server is a running repository server.
type server struct {
	*testenv.Process
	agent                 *client.Client
	url                   string
	ca                    string
	agentPort, healthPort int
}

// launch starts a repository server's process and returns without waiting.
func (w *world) launch(config repositoryserver.Config) (p *testenv.Process, listen, agent, health int) {
	w.Helper()
	dir := w.TempDir()
	raw, err := json.Marshal(config)
	w.must(err)
	file := filepath.Join(dir, "config.json")
	w.must(os.WriteFile(file, raw, 0o600))
	w.plane.CA.IssueTo(w, filepath.Join(dir, "tls"), testenv.Leaf{IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Usage: x509.ExtKeyUsageServerAuth, Age: testenv.Old})
	listen, agent, health = testenv.Port(w), testenv.Port(w), testenv.Port(w)
	loopback := func(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
	return testenv.Start(w, func(c *exec.Cmd) { c.Env = append(os.Environ(), w.environment...) }, w.program("repository-server"), "serve", "--config", file,
		"--tls-dir", filepath.Join(dir, "tls"), "--ca-dir", w.plane.CADir,
		"--state-dir", filepath.Join(dir, "state"),
		"--listen", loopback(listen), "--agent-listen", loopback(agent),
		"--kopia-listen", loopback(testenv.Port(w)), "--health-listen", loopback(health)), listen, agent, health
}

// serve starts a repository server and waits until it is ready.
func (w *world) serve() *server {
	w.Helper()
	p, listen, agent, health := w.launch(w.config)
	s := &server{
		Process: p, url: fmt.Sprintf("https://127.0.0.1:%d", listen), ca: string(w.plane.CA.PEM), agentPort: agent, healthPort: health,
	}
	w.ready(s)
	return s
}

// ready waits until a server is ready and connects to its agent.
func (w *world) ready(s *server) {
	w.Helper()
	testenv.Eventually(w, 3*time.Minute, "the repository server is ready", func() bool {
		select {
		case <-s.Done:
			w.Fatalf("it ended: %s", testenv.LastLine(s.Log()))
		default:
		}
		return testenv.Healthy(fmt.Sprintf("127.0.0.1:%d", s.healthPort), "/readyz")
	})
	s.agent = w.plane.Client(w, s.Process, s.agentPort)
}

// sidecar starts an agent that sees a folder named data, and those beside it, as its volumes.
func (w *world) sidecar(volume string, setup func(*exec.Cmd), args ...string) (*client.Client, *testenv.Process) {
	w.Helper()
	dir := w.TempDir()
	w.must(os.Chmod(dir, 0o777))
	w.must(os.Mkdir(filepath.Join(dir, "state"), 0o777))
	w.must(os.Chmod(filepath.Join(dir, "state"), 0o777))
	port := testenv.Port(w)
	p := testenv.Start(w, setup, w.program("agent"), append([]string{
		"serve",
		"-state-dir", filepath.Join(dir, "state"), "-ca-dir", w.plane.CADir, "-volumes-dir", filepath.Dir(volume),
		"-port", strconv.Itoa(port), "-health-listen", "",
	}, args...)...)
	return w.plane.Client(w, p, port), p
}

// volume makes a folder for a sidecar.
func (w *world) volume() string {
	w.Helper()
	dir := filepath.Join(w.TempDir(), "data")
	w.must(os.Mkdir(dir, 0o755))
	return dir
}

// reachable lets everybody walk to a folder.
func (w *world) reachable(dir string) {
	w.Helper()
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o005 != 0o005 {
			w.must(os.Chmod(dir, info.Mode().Perm()|0o005))
		}
	}
}

// asNobody starts a process as a user that owns nothing, if there is a choice.
func asNobody(c *exec.Cmd) {
	if os.Getuid() == 0 {
		c.SysProcAttr.Credential = &syscall.Credential{Uid: 65532, Gid: 65532}
	}
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	w.Cleanup(cancel)
	return ctx
}

// session opens one for an operation.
func (w *world) session(s *server, id, user string) *api.Credentials {
	w.Helper()
	return w.sessionAt(s, id, user, host)
}

func (w *world) sessionAt(s *server, id, user, host string) *api.Credentials {
	w.Helper()
	return w.sessionOf(s, api.SessionRequest{ID: id, Username: user, Hostname: host})
}

// toRestore opens a session for an operation that restores.
func (w *world) toRestore(s *server, id string) *api.Credentials {
	w.Helper()
	return w.sessionOf(s, api.SessionRequest{ID: id, Username: "restore", Hostname: host, ReadOnly: true})
}

func (w *world) sessionOf(s *server, req api.SessionRequest) *api.Credentials {
	w.Helper()
	session, err := s.agent.StartSession(w.context(), req)
	w.must(err)
	w.passwords = append(w.passwords, session.Password)
	return &api.Credentials{URL: s.url, CA: s.ca, Username: req.Username, Hostname: req.Hostname, Password: session.Password}
}

const prefix = "backups/shop/db"

func snapshotRequest(id string, c *api.Credentials, path string) api.StartRequest {
	return api.StartRequest{ID: id, Kind: api.KindSnapshot, Credentials: c, Snapshot: &api.SnapshotRequest{Volume: "data", Path: path, SourcePath: path}}
}

// backup takes a snapshot and records it, as BackupData does.
func (w *world) backup(s *server, agent *client.Client, id, path string) api.Record {
	w.Helper()
	ctx := w.context()
	result, err := agent.Run(ctx, snapshotRequest(id, w.sessionOf(s, api.SessionRequest{ID: id, Username: "pvc.data", Hostname: host, SourcePath: path}), path), func(api.Progress) {})
	w.must(err)
	w.must(s.agent.EndSession(ctx, id))
	return w.record(s, id, prefix, path, *result.Snapshot)
}

// record makes a snapshot of a path a backup under a prefix.
func (w *world) record(s *server, id, prefix, sourcePath string, snapshot api.SnapshotResult) api.Record {
	w.Helper()
	recorded, err := s.agent.Run(w.context(), api.StartRequest{ID: id + "-record", Kind: api.KindRecord, Record: &api.RecordRequest{
		Username: "pvc.data", Hostname: host, SourcePath: sourcePath,
		Record: api.Record{
			BackupID: "shop-" + id, BackupTag: "tag-" + id, Prefix: prefix, KeyID: "default", AbsolutePath: filepath.Join("/var/lib/db", sourcePath),
			NamespaceUID: host, Volume: "data", Snapshot: snapshot, Created: snapshot.End,
		},
	}}, func(api.Progress) {})
	w.must(err)
	return recorded.Records[0]
}

// restore writes a backup, or what is below it, into an empty folder and returns the folder.
func (w *world) restore(s *server, id string, record api.Record, subPath, to string) (string, *api.RestoreResult) {
	w.Helper()
	volume := w.volume()
	agent, _ := w.sidecar(volume, nil)
	result, err := agent.Run(w.context(), api.StartRequest{ID: id, Kind: api.KindRestore, Credentials: w.toRestore(s, id), Restore: &api.RestoreRequest{
		RootObject: record.Snapshot.RootObject, Root: record.Snapshot.Root, SubPath: subPath, Volume: "data", Path: to,
	}}, func(api.Progress) {})
	w.must(err)
	return filepath.Join(volume, to), result.Restore
}

func (w *world) find(s *server, id string, req api.FindRequest) (*api.Result, error) {
	return s.agent.Run(w.context(), api.StartRequest{ID: id, Kind: api.KindFind, Find: &req}, func(api.Progress) {})
}

func code(err error) api.Code {
	var p *api.Problem
	if errors.As(err, &p) {
		return p.Code
	}
	return ""
}

// same compares two trees, entry by entry, in all that a restore must give back.
func (w *world) same(want, got map[string]testenv.Entry) {
	w.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		had, have := want[name], got[name]
		if _, ok := got[name]; !ok {
			w.Errorf("%q is missing", name)
			continue
		}
		if had.ModTime.Equal(have.ModTime) {
			have.ModTime = had.ModTime // the zones may differ
		}
		if had != have {
			w.Errorf("%q differs:\n had %+v\nhave %+v", name, had, have)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			w.Errorf("%q is new", name)
		}
	}
}

// A tree comes back as it was, entry by entry; the second backup sends only what is
// new; a part and a single file can be restored alone; an old backup survives a
// restart of the server.
func TestIntegrationBackupRestore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	source := w.volume()
	tree := filepath.Join(source, "tree")
	w.must(os.Mkdir(tree, 0o700))
	testenv.MakeTree(w, tree)
	big := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(big)
	w.must(os.WriteFile(filepath.Join(tree, "big"), append(big, marker...), 0o600))
	s := w.serve()
	agent, process := w.sidecar(source, nil)

	first := w.backup(s, agent, "op-1", "/tree")
	want := testenv.Tree(w, tree)
	files := int64(0)
	for _, e := range want {
		if e.Mode.IsRegular() {
			files++
		}
	}
	if first.Snapshot.Files != files || first.Snapshot.NewBytes < 3<<20 {
		t.Errorf("first backup: %+v, want %d files and at least 3 MiB sent", first.Snapshot, files)
	}
	folder, result := w.restore(s, "op-2", first, "", "/here/it/is")
	w.same(want, testenv.Tree(w, folder))
	if result.Files != files || len(result.NotKept) > 0 {
		t.Errorf("restore %+v, want %d files and everything kept", result, files)
	}
	if stat := sys(w, filepath.Join(folder, "sparse")); stat.Blocks*512 > 1<<20 {
		t.Errorf("the hole of 3 MiB takes %d bytes on disk", stat.Blocks*512)
	}

	w.must(os.WriteFile(filepath.Join(tree, "new"), []byte("one more"), 0o600))
	// Whoever takes it: a temporary pod knows the same claim by another name.
	claim := filepath.Join(filepath.Dir(source), "claim-0")
	w.must(os.Rename(source, claim))
	mover, _ := w.sidecar(claim, nil)
	request := snapshotRequest("op-3", w.session(s, "op-3", "pvc.data"), "/tree")
	request.Snapshot.Volume = "claim-0"
	second, err := mover.Run(w.context(), request, func(api.Progress) {})
	w.must(err)
	w.must(s.agent.EndSession(w.context(), "op-3"))
	w.must(os.Rename(claim, source))
	if got := second.Snapshot; got.Files != files+1 || got.NewBytes > 100<<10 || got.CachedFiles < files-1 {
		t.Errorf("second backup: %+v, want %d files of which almost all are unchanged", got, files+1)
	}

	folder, _ = w.restore(s, "op-4", first, "dir/deep", "/part")
	w.same(below(want, "dir/deep"), testenv.Tree(w, folder))

	single := w.backup(s, agent, "op-5", "/tree/plain.txt")
	folder, _ = w.restore(s, "op-6", single, "", "/single")
	got := testenv.Tree(w, folder)
	delete(got, ".") // made by the restore
	alone := want["plain.txt"]
	alone.SameAs = "" // its other names were not backed up with it
	w.same(map[string]testenv.Entry{"plain.txt": alone}, got)

	agentLog := process.Log()
	s.Kill()
	again := w.serve()
	found, err := w.find(again, "find-1", api.FindRequest{BackupTag: "tag-op-1", Prefix: prefix, KeyID: "default"})
	w.must(err)
	folder, _ = w.restore(again, "op-7", found.Records[0], "", "/after")
	w.same(want, testenv.Tree(w, folder))

	w.noSecrets("the agent's log", []byte(agentLog))
	w.noSecrets("the server's log", []byte(s.Log()+again.Log()))
	w.noSecrets("the server's arguments", cmdline(w, again.Process))
	w.noSecrets("the agent's arguments", cmdline(w, process))
	w.noPlaintext()
}

// noSecrets looks for the storage's key, the repository's password and those of sessions.
func (w *world) noSecrets(where string, text []byte) {
	w.Helper()
	for _, secret := range append(w.passwords, w.config.Password, w.s3.SecretKey) {
		// An external server's repository has no password of ours.
		if secret != "" && bytes.Contains(text, []byte(secret)) {
			w.Errorf("%s holds a secret", where)
		}
	}
}

// noPlaintext looks for the marker in the bucket, which must not be empty.
func (w *world) noPlaintext() {
	w.Helper()
	objects := 0
	w.must(filepath.WalkDir(w.s3.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		objects++
		content, err := os.ReadFile(path)
		if bytes.Contains(content, []byte(marker)) {
			w.Errorf("%s holds plaintext", path)
		}
		return err
	}))
	if objects == 0 {
		w.Error("the bucket is empty: nothing was checked")
	}
}

func cmdline(w *world, p *testenv.Process) []byte {
	w.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.Cmd.Process.Pid))
	w.must(err)
	return raw
}

func sys(w *world, file string) *syscall.Stat_t {
	w.Helper()
	info, err := os.Lstat(file)
	w.must(err)
	return info.Sys().(*syscall.Stat_t)
}

func below(tree map[string]testenv.Entry, dir string) map[string]testenv.Entry {
	out := map[string]testenv.Entry{}
	for name, e := range tree {
		if name == dir {
			out["."] = e
		} else if rest, ok := strings.CutPrefix(name, dir+"/"); ok {
			out[rest] = e
		}
	}
	return out
}

// A backup is found and deleted only under its own prefix and key, and then it is gone.
func TestIntegrationFindDelete(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	source := w.volume()
	w.must(os.WriteFile(filepath.Join(source, "f"), []byte("x"), 0o600))
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	record := w.backup(s, agent, "op-1", "/")

	right := api.FindRequest{BackupID: record.BackupID, Prefix: prefix, KeyID: "default"}
	otherPrefix, otherKey := right, right
	otherPrefix.Prefix, otherKey.KeyID = "backups/shop", "abc"
	for i, wrong := range []api.FindRequest{otherPrefix, otherKey, {BackupID: "shop-op-9", Prefix: prefix, KeyID: "default"}} {
		if found, err := w.find(s, fmt.Sprintf("wrong-%d", i), wrong); err != nil || len(found.Records) > 0 {
			t.Errorf("%+v finds %+v, %v", wrong, found, err)
		}
		deleted, err := s.agent.Run(w.context(), api.StartRequest{ID: fmt.Sprintf("wrong-delete-%d", i), Kind: api.KindDelete, Delete: &wrong}, func(api.Progress) {})
		if wrong == otherPrefix {
			// It is there: that is not the same as deleted.
			if code(err) != api.CodeNotFound || strings.Contains(err.Error(), prefix) {
				t.Errorf("%+v deletes %+v, %v; want not-found, and not where it is", wrong, deleted, err)
			}
		} else if err != nil || len(deleted.Records) > 0 {
			t.Errorf("%+v deletes %+v, %v", wrong, deleted, err)
		}
	}
	// One place, however it is written.
	written := right
	written.Prefix = "backups//shop/db/"
	if found, err := w.find(s, "written", written); err != nil || len(found.Records) != 1 {
		t.Errorf("%+v finds %+v, %v", written, found, err)
	}
	w.record(s, "op-2", written.Prefix, "/", record.Snapshot)
	if found, err := w.find(s, "written-2", api.FindRequest{BackupID: "shop-op-2", Prefix: prefix, KeyID: "default"}); err != nil || len(found.Records) != 1 {
		t.Errorf("%s finds %+v of %s, %v", prefix, found, written.Prefix, err)
	}
	if listed, _ := w.list(s, "list", api.ListRequest{KeyID: "default", Prefix: prefix}); len(listed) != 2 {
		t.Errorf("%s lists %v", prefix, listed)
	}
	_, err := s.agent.Run(w.context(), api.StartRequest{ID: "delete-written", Kind: api.KindDelete, Delete: &api.DeleteRequest{BackupTag: "tag-op-2", Prefix: prefix, KeyID: "default"}}, func(api.Progress) {})
	w.must(err) // and their one snapshot
	found, err := w.find(s, "find-1", right)
	w.must(err)
	if len(found.Records) != 1 || found.Records[0].Snapshot.ID != record.Snapshot.ID {
		t.Fatalf("found %+v", found.Records)
	}
	deleted, err := s.agent.Run(w.context(), api.StartRequest{ID: "delete-1", Kind: api.KindDelete, Delete: &right}, func(api.Progress) {})
	w.must(err)
	if len(deleted.Records) != 1 {
		t.Errorf("deleted %+v", deleted.Records)
	}
	if found, err := w.find(s, "find-2", right); err != nil || len(found.Records) > 0 {
		t.Errorf("a deleted backup is found: %+v, %v", found, err)
	}
	again, err := s.agent.Run(w.context(), api.StartRequest{ID: "delete-2", Kind: api.KindDelete, Delete: &right}, func(api.Progress) {})
	if err != nil || len(again.Records) > 0 {
		t.Errorf("deleted again: %+v, %v", again, err)
	}
	for id, kind := range w.manifests() {
		if string(id) == record.Snapshot.ID || kind == "kanister-backup" {
			t.Errorf("a manifest of type %s is left", kind)
		}
	}
}

// A record vouches for a snapshot of the named source only.
func TestIntegrationRecordChecksSource(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	source := w.volume()
	w.must(os.WriteFile(filepath.Join(source, "f"), []byte("x"), 0o600))
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	record := w.backup(s, agent, "op-1", "/")
	record.BackupID, record.BackupTag = "shop-forged", "tag-forged"
	for name, change := range map[string]func(*api.RecordRequest){
		"another user": func(r *api.RecordRequest) { r.Username = "pvc.other" },
		"another host": func(r *api.RecordRequest) { r.Hostname = otherHost },
		"another path": func(r *api.RecordRequest) { r.SourcePath = "/other" },
		"another root": func(r *api.RecordRequest) { r.Record.Snapshot.RootObject = "k" + strings.Repeat("0", 32) },
		"no snapshot":  func(r *api.RecordRequest) { r.Record.Snapshot.ID = strings.Repeat("0", 32) },
	} {
		req := api.RecordRequest{Username: "pvc.data", Hostname: host, SourcePath: "/", Record: record}
		change(&req)
		id := "record-" + strings.ReplaceAll(name, " ", "-")
		if _, err := s.agent.Run(w.context(), api.StartRequest{ID: id, Kind: api.KindRecord, Record: &req}, func(api.Progress) {}); code(err) == "" {
			t.Errorf("%s: error %v, want a refusal", name, err)
		}
	}
}

// The same id and body is the same operation, another body a conflict.
func TestIntegrationSameOperation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	source := w.volume()
	w.must(os.WriteFile(filepath.Join(source, "f"), []byte("x"), 0o600))
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	req := snapshotRequest("op-1", w.session(s, "op-1", "pvc.data"), "/")
	one, err := agent.Run(w.context(), req, func(api.Progress) {})
	w.must(err)
	two, err := agent.Run(w.context(), req, func(api.Progress) {})
	w.must(err)
	if one.Snapshot.ID != two.Snapshot.ID {
		t.Errorf("two snapshots of one operation: %s and %s", one.Snapshot.ID, two.Snapshot.ID)
	}
	other := snapshotRequest("op-1", req.Credentials, "/f")
	if _, err := agent.Start(w.context(), other); code(err) != api.CodeConflict {
		t.Errorf("another body: error %v, want a conflict", err)
	}
}

// A rate limit slows a running backup and a running restore down, and can be lifted, and
// set to one that runs without.
func TestIntegrationRateLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	source := w.volume()
	const size = 24 << 20
	content := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{4}).Read(content)
	w.must(os.WriteFile(filepath.Join(source, "noise"), content, 0o640))
	want := testenv.Tree(w, source)
	s := w.serve()
	agent, _ := w.sidecar(source, nil)

	// At this limit each would take 1,500 s; the test's context ends long before.
	const slow = api.LeastRateLimit
	limited := func(agent *client.Client, req api.StartRequest) *api.Result {
		w.Helper()
		req.RateLimit = slow
		ctx, cancel := context.WithTimeout(w.context(), 2*time.Minute)
		defer cancel()
		lifted := false
		result, err := agent.Run(ctx, req, func(p api.Progress) {
			if p.Bytes == 0 || lifted {
				return
			}
			lifted = true
			if p.Bytes > size/2 {
				w.Errorf("%s: %d bytes were moved under the limit, want few", req.Kind, p.Bytes)
			}
			op, err := agent.Limit(ctx, req.ID, 0)
			if err != nil || op.RateLimit != 0 || op.State != api.StateRunning {
				w.Errorf("%s: lift the limit: %+v, %v", req.Kind, op, err)
			}
		})
		w.must(err)
		if !lifted {
			w.Errorf("%s: it was over before its limit was lifted", req.Kind)
		}
		return result
	}
	snapshot := limited(agent, snapshotRequest("slow-backup", w.session(s, "slow-backup", "pvc.data"), "/")).Snapshot
	target := w.volume()
	to, _ := w.sidecar(target, nil)
	limited(to, api.StartRequest{ID: "slow-restore", Kind: api.KindRestore, Credentials: w.toRestore(s, "slow-restore"), Restore: &api.RestoreRequest{
		RootObject: snapshot.RootObject, Root: snapshot.Root, Volume: "data", Path: "/",
	}})
	w.same(want, testenv.Tree(w, target))

	// It stands still while it gets its limit, at which it would take 96 s.
	const tight = 256 << 10
	link := testenv.StartProxy(w, strings.TrimPrefix(s.url, "https://"))
	req := api.StartRequest{ID: "tightened", Kind: api.KindRestore, Credentials: w.session(s, "tightened", "restore"), Restore: &api.RestoreRequest{
		RootObject: snapshot.RootObject, Root: snapshot.Root, Volume: "data", Path: "/",
	}}
	req.Credentials.URL = "https://" + link.Address
	cut := link.CutAfter(size / 8)
	_, err := to.Start(w.context(), req)
	w.must(err)
	<-cut
	_, err = to.Limit(w.context(), req.ID, tight)
	w.must(err)
	link.Heal()
	steps, seen := 0, int64(0)
	testenv.Eventually(w, time.Minute, "it goes on under its limit", func() bool {
		op, err := to.Get(w.context(), req.ID)
		w.must(err)
		if op.State.Done() || op.Progress.Bytes > size/2 {
			w.Fatalf("it is %s with %d bytes under its limit of %d bytes a second", op.State, op.Progress.Bytes, tight)
		}
		if op.Progress.Bytes > seen {
			steps, seen = steps+1, op.Progress.Bytes
		}
		return steps == 4
	})
	_, err = to.Limit(w.context(), req.ID, 0)
	w.must(err)
	w.await(to, req.ID, api.StateSucceeded)
	w.same(want, testenv.Tree(w, target))
	if _, err := to.Limit(w.context(), "slow-restore", -1); code(err) != api.CodeBadRequest {
		t.Errorf("a limit of -1: %v, want a refusal", err)
	}
}

// What cannot be backed up is a failure that names it, and saves nothing.
func TestIntegrationBackupRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	source := w.volume()
	w.must(os.Chmod(source, 0o755))
	w.must(os.Mkdir(filepath.Join(source, "dir"), 0o755))
	w.must(os.WriteFile(filepath.Join(source, "dir", "readable"), []byte("x"), 0o644))
	w.must(os.WriteFile(filepath.Join(source, "dir", "hidden"), []byte("x"), 0o600))
	w.must(os.MkdirAll(filepath.Join(source, "parent", "closed"), 0o755))
	w.must(os.Chmod(filepath.Join(source, "parent", "closed"), 0o700))
	w.must(os.Symlink("/etc", filepath.Join(source, "out")))
	w.must(os.Mkdir(filepath.Join(source, "many"), 0o755))
	for i := range 100 {
		w.must(os.WriteFile(filepath.Join(source, "many", fmt.Sprintf("%02d", i)), nil, 0o600))
	}
	s := w.serve()
	w.reachable(source)
	agent, _ := w.sidecar(source, asNobody)
	reader := "uid 65532"
	if os.Getuid() != 0 {
		reader = fmt.Sprintf("uid %d", os.Getuid())
		for i := range 100 {
			w.must(os.Chmod(filepath.Join(source, "many", fmt.Sprintf("%02d", i)), 0))
		}
		w.must(os.Chmod(filepath.Join(source, "dir", "hidden"), 0))
		w.must(os.Chmod(filepath.Join(source, "parent", "closed"), 0))
	}
	for name, c := range map[string]struct {
		volume, path string
		want         api.Code
		text         string
	}{
		"unreadable file":  {"data", "/dir", api.CodeUnreadable, "hidden"},
		"just that file":   {"data", "/dir/hidden", api.CodeUnreadable, "hidden"},
		"many of them":     {"data", "/many", api.CodeUnreadable, "at least 1"},
		"closed directory": {"data", "/parent", api.CodeUnreadable, "closed"},
		"just that one":    {"data", "/parent/closed", api.CodeUnreadable, "closed"},
		"unknown volume":   {"other", "/", api.CodeUnknownVolume, "other"},
		"no such path":     {"data", "/lost", api.CodePathNotFound, "/lost"},
		"out of it":        {"data", "/../..", api.CodePathRefused, ".."},
		"through a link":   {"data", "/out", api.CodePathRefused, "link"},
		"not absolute":     {"data", "dir", api.CodePathRefused, "dir"},
		"below a link":     {"data", "/out/ssh", api.CodePathRefused, "link"},
		"a strange volume": {"../data", "/", api.CodeUnknownVolume, "data"},
	} {
		id := "op-" + strings.ReplaceAll(name, " ", "-")
		req := snapshotRequest(id, w.session(s, id, "pvc.data"), c.path)
		req.Snapshot.Volume = c.volume
		_, err := agent.Run(w.context(), req, func(api.Progress) {})
		if got := code(err); got != c.want && !(c.want == api.CodePathRefused && got == api.CodeBadRequest) && !(c.want == api.CodeUnknownVolume && got == api.CodeBadRequest) {
			t.Errorf("%s: error %v (%s), want code %s", name, err, got, c.want)
		} else if !strings.Contains(err.Error(), c.text) || c.want == api.CodeUnreadable && !strings.Contains(err.Error(), reader) {
			t.Errorf("%s: error %q does not name %q, or who could not read", name, err, c.text)
		}
	}

	allowed := snapshotRequest("allowed", w.session(s, "allowed", "pvc.data"), "/dir")
	allowed.Snapshot.AllowUnreadable = true
	result, err := agent.Run(w.context(), allowed, func(api.Progress) {})
	w.must(err)
	if got := result.Snapshot; got.Files != 1 || !slices.Equal(got.Unreadable, []string{"hidden"}) {
		t.Errorf("allowed to leave it out: %+v, want one file, and the other named", got)
	}
	w.must(os.Remove(filepath.Join(source, "dir", "readable")))
	w.must(os.Remove(filepath.Join(source, "dir", "hidden")))
	empty := snapshotRequest("empty", w.session(s, "empty", "pvc.data"), "/dir")
	if _, err := agent.Run(w.context(), empty, func(api.Progress) {}); code(err) != api.CodeEmpty {
		t.Errorf("nothing left: error %v, want %s", err, api.CodeEmpty)
	}
	empty.ID, empty.Snapshot.AllowEmpty = "empty-allowed", true
	if _, err := agent.Run(w.context(), empty, func(api.Progress) {}); err != nil {
		t.Errorf("nothing left, and allowed: %v", err)
	}
}

// Only the holder of a session's password gets in, while the session lasts.
func TestIntegrationSessions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	source := w.volume()
	w.must(os.WriteFile(filepath.Join(source, "f"), []byte("x"), 0o600))
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	good := w.session(s, "op-1", "pvc.data")
	wrong := *good
	wrong.Password = "not-" + good.Password
	ended := w.session(s, "op-2", "pvc.data")
	w.must(s.agent.EndSession(w.context(), "op-2"))
	another := *good
	another.Username = "pvc.other"
	for name, c := range map[string]*api.Credentials{"wrong": &wrong, "ended": ended, "anothers": &another} {
		_, err := agent.Run(w.context(), snapshotRequest("try-"+name, c, "/"), func(api.Progress) {})
		if code(err) != api.CodeAccessDenied {
			t.Errorf("%s: error %v, want %s", name, err, api.CodeAccessDenied)
		} else if strings.Contains(err.Error(), c.Password) {
			t.Errorf("%s: the error shows the password: %v", name, err)
		}
	}
	impostor, misnamed := *good, *good
	impostor.CA = string(testenv.NewCA(t).PEM)
	misnamed.URL = strings.Replace(good.URL, "127.0.0.1", "localhost", 1)
	for name, c := range map[string]*api.Credentials{"impostor": &impostor, "misnamed": &misnamed} {
		if _, err := agent.Run(w.context(), snapshotRequest("try-"+name, c, "/"), func(api.Progress) {}); code(err) != api.CodeServerUntrusted {
			t.Errorf("%s: error %v, want %s", name, err, api.CodeServerUntrusted)
		}
	}
	// The end of one session of a user leaves the others alone.
	if _, err := agent.Run(w.context(), snapshotRequest("op-1", good, "/"), func(api.Progress) {}); err != nil {
		t.Errorf("the session that goes on: %v", err)
	}
	for _, bad := range []api.SessionRequest{
		{ID: "x", Username: "controller", Hostname: "system"}, {ID: "x", Username: "UPPER", Hostname: host},
		{ID: "", Username: "a", Hostname: host}, {ID: "x", Username: "a@b", Hostname: host},
	} {
		if _, err := s.agent.StartSession(w.context(), bad); code(err) != api.CodeBadRequest {
			t.Errorf("%+v: error %v, want a refusal", bad, err)
		}
	}
}

// listening are the addresses at which a process takes connections.
func listening(w *world, pid int) (addresses []string) {
	w.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	w.must(err)
	own := map[string]bool{}
	for _, file := range files {
		if to, err := os.Readlink(file); err == nil { // some are closed meanwhile
			own[to] = true
		}
	}
	for _, table := range []string{"tcp", "tcp6"} {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		w.must(err)
		for _, line := range strings.Split(string(raw), "\n") {
			fields := strings.Fields(line)
			const listen = "0A"
			if len(fields) < 10 || fields[3] != listen || !own["socket:["+fields[9]+"]"] {
				continue
			}
			host, port, _ := strings.Cut(fields[1], ":")
			number, err := strconv.ParseUint(port, 16, 16)
			w.must(err)
			bytes, err := hex.DecodeString(host)
			w.must(err)
			for word := range slices.Chunk(bytes, 4) { // each in the byte order of the machine
				binary.BigEndian.PutUint32(word, binary.NativeEndian.Uint32(word))
			}
			addresses = append(addresses, net.JoinHostPort(net.IP(bytes).String(), fmt.Sprint(number)))
		}
	}
	return addresses
}

// A certificate that is not the control plane's does not make an agent speak, and nobody
// reaches it but on loopback.
func TestIntegrationAgentAuthenticates(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	source := w.volume()
	w.must(os.WriteFile(filepath.Join(source, "f"), []byte("x"), 0o600))
	_, p := w.sidecar(source, nil)
	pin, err := client.PinFromLog(strings.NewReader(p.Log()))
	w.must(err)
	var address string
	testenv.Eventually(w, 2*time.Minute, "the agent serves", func() bool {
		for _, line := range strings.Split(p.Log(), "\n") {
			var l struct{ Msg, Listen string }
			if json.Unmarshal([]byte(line), &l) == nil && l.Msg == "agent serves" {
				address = l.Listen
			}
		}
		return address != ""
	})
	if got := listening(w, p.Cmd.Process.Pid); !slices.Equal(got, []string{address}) || !strings.HasPrefix(address, "127.0.0.1:") {
		t.Errorf("the agent listens at %q and says %s: want loopback alone", got, address)
	}
	name := []string{"controller.kanister-kopia.svc"}
	stranger := testenv.NewCA(t)
	for what, c := range map[string]client.Options{
		"nobody":       {Pin: pin, Certificate: func() (*tls.Certificate, error) { return &tls.Certificate{}, nil }},
		"another CA":   {Pin: pin, Certificate: stranger.Certificate(t, testenv.Leaf{DNS: name, Usage: x509.ExtKeyUsageClientAuth})},
		"another name": {Pin: pin, Certificate: w.plane.CA.Certificate(t, testenv.Leaf{DNS: []string{"webhook.kanister-kopia.svc"}, Usage: x509.ExtKeyUsageClientAuth})},
		"a server's":   {Pin: pin, Certificate: w.plane.CA.Certificate(t, testenv.Leaf{DNS: name, Usage: x509.ExtKeyUsageServerAuth})},
		"another pin":  {Pin: strings.Repeat("0", 64), Certificate: w.plane.Certificate},
	} {
		c.Dial = func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "tcp", address) }
		cl := client.New(c)
		if info, err := cl.Info(w.context()); err == nil {
			t.Errorf("%s: answered %+v", what, info)
		}
		cl.Close()
	}
	good := client.New(client.Options{Pin: pin, Certificate: w.plane.Certificate, Dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}})
	defer good.Close()
	if info, err := good.Info(w.context()); err != nil || len(info.Volumes) != 1 || !info.Volumes[0].Readable {
		t.Errorf("the controller's certificate: %+v, %v", info, err)
	}
}

// A server that cannot serve says why in its last line, without a secret.
func TestIntegrationServerRefusesToStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.serve()
	first.Kill()
	for name, c := range map[string]struct {
		change func(*repositoryserver.Config)
		want   string
	}{
		"wrong storage key":     {func(c *repositoryserver.Config) { c.Storage.SecretAccessKey = "wrong-secret-key-0123456789" }, "signature"},
		"unknown key id":        {func(c *repositoryserver.Config) { c.Storage.AccessKeyID = "nobody" }, "ccess"},
		"wrong password":        {func(c *repositoryserver.Config) { c.Password = "another-password-1b2c" }, "password"},
		"no bucket":             {func(c *repositoryserver.Config) { c.Storage.Bucket = "lost" }, "bucket lost"},
		"no repository":         {func(c *repositoryserver.Config) { c.Storage.Prefix, c.AllowCreate = "other/", false }, "repository"},
		"untrusted certificate": {func(c *repositoryserver.Config) { c.Storage.CABundle = string(testenv.NewCA(t).PEM) }, "certificate"},
		"nobody there":          {func(c *repositoryserver.Config) { c.Storage.Endpoint = fmt.Sprintf("127.0.0.1:%d", testenv.Port(t)) }, "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			w := &world{T: t, s3: w.s3, plane: w.plane, config: w.config}
			c.change(&w.config)
			p, _, _, _ := w.launch(w.config)
			select {
			case <-p.Done:
			case <-w.context().Done():
				t.Fatal("it goes on")
			}
			if last := testenv.LastLine(p.Log()); !strings.Contains(last, c.want) {
				t.Errorf("last line %q, want %q in it", last, c.want)
			} else {
				t.Log(last)
			}
			w.noSecrets("the log", []byte(p.Log()))
			for _, secret := range []string{w.config.Storage.SecretAccessKey} {
				if strings.Contains(p.Log(), secret) {
					t.Error("the log holds the key that was tried")
				}
			}
		})
	}
	if !w.Failed() {
		// The refusals changed nothing: the right configuration still serves.
		w.serve()
	}
}
