// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kopia/kopia/repo"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	"github.com/kanister-kopia/kanister-kopia/repositoryserver"
)

// Fewer operations work at once in little memory; the others wait.
func TestIntegrationLittleMemory(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.environment = []string{"GOMEMLIMIT=200MiB"}
	s := w.serve()
	w.session(s, "one", "pvc.data")
	w.session(s, "two", "pvc.data")
	if _, err := s.agent.StartSession(w.context(), api.SessionRequest{ID: "three", Username: "pvc.data", Hostname: host}); code(err) != api.CodeBusy {
		t.Errorf("a third operation: %v, want that it waits", err)
	}
}

// A server that is in use does not drain; one that drains lets nobody in, and says so.
func TestIntegrationDrain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	ctx := w.context()
	credentials := w.session(s, "one", "pvc.data")
	rep := w.kopia(credentials)
	_, writer, err := rep.NewWriter(ctx, repo.WriteSessionOptions{Purpose: "test"})
	w.must(err)
	if a, err := s.agent.Drain(ctx, 0); err != nil || a.Draining || a.Sessions != 1 || a.Streams == 0 || a.Users != 1 {
		t.Errorf("in use: %+v, %v", a, err)
	}
	w.metric(s, "kanister_kopia_repository_sessions 1")
	w.metric(s, "kanister_kopia_repository_users 1")
	w.metric(s, "kanister_kopia_repository_queue 0")
	for i := 2; i <= 16; i++ {
		w.session(s, fmt.Sprint("more-", i), "pvc.more")
	}
	if _, err := s.agent.StartSession(ctx, api.SessionRequest{ID: "waits", Username: "pvc.more", Hostname: host}); code(err) != api.CodeBusy {
		t.Errorf("one session too many: %v", err)
	}
	w.metric(s, "kanister_kopia_repository_sessions 16")
	w.metric(s, "kanister_kopia_repository_users 2")
	w.metric(s, "kanister_kopia_repository_queue 1")
	if body := w.get(s, "/healthz"); body != "kopia answers\n" {
		t.Errorf("/healthz says %q", body)
	}
	for i := 2; i <= 16; i++ {
		w.must(s.agent.EndSession(ctx, fmt.Sprint("more-", i)))
	}
	w.must(s.agent.EndSession(ctx, "waits"))
	w.must(writer.Close(ctx))
	w.must(rep.Close(ctx))
	w.must(s.agent.EndSession(ctx, "one"))
	if a, err := s.agent.Drain(ctx, time.Hour); err != nil || a.Draining || a.Sessions != 0 {
		t.Errorf("used a moment ago: %+v, %v", a, err)
	}
	var a api.Activity
	testenv.Eventually(t, 3*time.Minute, "the idle server drains", func() bool {
		a, err = s.agent.Drain(ctx, 0)
		return err == nil && a.Draining
	})
	if _, err := s.agent.StartSession(ctx, api.SessionRequest{ID: "two", Username: "pvc.data", Hostname: host}); code(err) != api.CodeDraining {
		t.Errorf("a session of a server that is about to stop: %v", err)
	}
	if _, err := w.find(s, "find", api.FindRequest{BackupID: "x", Prefix: prefix, KeyID: "default"}); code(err) != api.CodeDraining {
		t.Errorf("an operation of a server that is about to stop: %v", err)
	}
}

// metric looks for a line of /metrics.
func (w *world) metric(s *server, line string) {
	w.Helper()
	if !strings.Contains(w.get(s, "/metrics"), line+"\n") {
		w.Errorf("/metrics has no %q", line)
	}
}

// get is what a server says to whom it shows nothing secret.
func (w *world) get(s *server, path string) string {
	w.Helper()
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", s.healthPort, path))
	w.must(err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	w.must(err)
	w.noSecrets(path, raw)
	return string(raw)
}

// maintain runs one maintenance as its pod does.
func (w *world) maintain(args ...string) (repositoryserver.MaintenanceResult, string) {
	w.Helper()
	dir := w.TempDir()
	raw, err := json.Marshal(w.config)
	w.must(err)
	config, result := filepath.Join(dir, "config.json"), filepath.Join(dir, "result")
	w.must(os.WriteFile(config, raw, 0o600))
	cmd := exec.CommandContext(w.context(), w.program("repository-server"), append([]string{
		"maintain", "--config", config, "--state-dir", filepath.Join(dir, "state"), "--result", result,
	}, args...)...)
	cmd.Env = append(os.Environ(), w.environment...)
	out, err := cmd.CombinedOutput()
	w.noSecrets("the maintenance's log", out)
	var done repositoryserver.MaintenanceResult
	if err != nil {
		return done, testenv.LastLine(string(out))
	}
	raw, err = os.ReadFile(result)
	w.must(err)
	if len(raw) > 4096 {
		t := w.T
		t.Errorf("the result has %d bytes: the kubelet takes 4096", len(raw))
	}
	w.noSecrets("the result", raw)
	w.must(json.Unmarshal(raw, &done))
	return done, ""
}

// Maintenance runs beside the server, loses no backup, verifies, and tells what it
// found; nobody but its owner runs one, and it makes no repository.
func TestIntegrationMaintenance(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, message := w.maintain("--mode", "quick"); !strings.Contains(message, "not made anew") {
		t.Errorf("of no repository: %q", message)
	}
	source := w.volume()
	const files = 400
	for i := range files {
		w.must(os.WriteFile(filepath.Join(source, fmt.Sprint("f", i)), []byte(strings.Repeat(fmt.Sprint(i), 1000)), 0o600))
	}
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	record := w.backup(s, agent, "op-1", "/")
	w.backup(s, agent, "op-2", "/")
	quick, message := w.maintain("--mode", "quick")
	if message != "" || quick.Contents < files || quick.Sources != 1 || quick.IndexBlobs == 0 || quick.StoredBytes == 0 || quick.VerifiedFiles != 0 {
		t.Errorf("quick: %+v %s", quick, message)
	}
	full, message := w.maintain("--mode", "full", "--verify-percent", "100")
	if message != "" || full.VerifiedSnapshots != 1 || full.VerifiedFiles < files {
		t.Errorf("full: %+v %s", full, message)
	}
	// Chance chooses them: a hundred, give or take a few.
	part, message := w.maintain("--mode", "full", "--verify-percent", "25")
	if message != "" || part.VerifiedSnapshots != 1 || part.VerifiedFiles < files/8 || part.VerifiedFiles > files/2 {
		t.Errorf("a quarter: %+v %s", part, message)
	}
	folder, _ := w.restore(s, "op-3", record, "", "/after")
	metrics := w.get(s, "/metrics")
	for _, from := range []string{"memory", "storage"} {
		if counted := regexp.MustCompile(`(?m)^kanister_kopia_repository_pack_reads_total\{from="` + from + `"\} [1-9]`); !counted.MatchString(metrics) {
			t.Errorf("after a restore of %d files no pack was read from %s", files, from)
		}
	}
	w.same(testenv.Tree(w, source), testenv.Tree(w, folder))

	// A pack that the storage lost is found out, before somebody needs the backup.
	w.losePacks()
	if _, message := w.maintain("--mode", "full", "--verify-percent", "100"); !strings.Contains(message, "damaged") || !strings.Contains(message, "backup shop-op-2 (of data in namespace "+host) {
		t.Errorf("of a damaged repository: %q", message)
	}
	right := w.config.Password
	w.config.Password = "another"
	if _, message := w.maintain("--mode", "quick"); !strings.Contains(message, "password is wrong") {
		t.Errorf("with a wrong password: %q", message)
	}
	w.config.Password = right
}

// losePacks empties the packs of file data.
func (w *world) losePacks() {
	w.Helper()
	n := 0
	w.must(filepath.WalkDir(w.s3.Dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.HasPrefix(d.Name(), "p") {
			n++
			return os.Remove(path)
		}
		return err
	}))
	if n == 0 {
		w.Fatal("the bucket has no packs")
	}
}

// stock starts Kopia's own server with a user, with its own access control or with rules.
func (w *world) stock(rules ...[2]string) (external *repositoryserver.External, repository string, run func(args ...string) string) {
	w.Helper()
	k := testenv.StartKopiaServer(w, w.plane.CA, rules...)
	w.passwords = append(w.passwords, k.Password)
	return &repositoryserver.External{
		URL: k.URL, CA: string(w.plane.CA.PEM), Username: k.Username, Hostname: k.Hostname, Password: k.Password,
	}, k.Repository, k.Run
}

// Somebody else's server: the same operations, as its one user. What its policies leave
// out is saved, and what it cannot keep is no backup.
func TestIntegrationExternalServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	external, repository, kopia := w.stock()
	w.config = repositoryserver.Config{RepositoryID: "theirs", External: external}
	source := w.volume()
	w.must(os.WriteFile(filepath.Join(source, "f"), []byte("x"), 0o600))
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	ctx := w.context()
	const sourcePath = "/" + host + "/pvc.data"
	session := func(id string) *api.Credentials {
		got, err := s.agent.StartSession(ctx, api.SessionRequest{ID: id, Username: "pvc.data", Hostname: host})
		w.must(err)
		return &api.Credentials{URL: external.URL, CA: external.CA, Username: got.Username, Hostname: got.Hostname, Password: got.Password}
	}
	request := snapshotRequest("op-1", session("op-1"), "/")
	request.Snapshot.SourcePath = sourcePath
	result, err := agent.Run(ctx, request, func(api.Progress) {})
	w.must(err)
	record := api.Record{
		BackupID: "theirs-1", BackupTag: "tag-1", Prefix: prefix, KeyID: "default", AbsolutePath: "/data",
		NamespaceUID: host, Volume: "data", Snapshot: *result.Snapshot, Created: result.Snapshot.End,
	}
	put := api.StartRequest{ID: "record-1", Kind: api.KindRecord, Record: &api.RecordRequest{
		Username: "pvc.data", Hostname: host, SourcePath: sourcePath, Record: record,
	}}
	_, err = s.agent.Run(ctx, put, func(api.Progress) {})
	w.must(err)

	found, err := w.find(s, "find-1", api.FindRequest{BackupTag: "tag-1", Prefix: prefix, KeyID: "default"})
	w.must(err)
	if len(found.Records) != 1 || found.Records[0].Snapshot.RootObject != result.Snapshot.RootObject {
		t.Fatalf("found %+v", found.Records)
	}
	for i, other := range []api.FindRequest{
		{BackupTag: "tag-1", Prefix: "elsewhere", KeyID: "default"}, {BackupTag: "tag-1", Prefix: prefix, KeyID: "other"}, {BackupID: "tag-1", Prefix: prefix, KeyID: "default"},
	} {
		if got, err := w.find(s, fmt.Sprint("find-other-", i), other); err != nil || len(got.Records) > 0 {
			t.Errorf("%+v finds %+v, %v", other, got, err)
		}
	}
	into := w.volume()
	restorer, _ := w.sidecar(into, nil)
	_, err = restorer.Run(ctx, api.StartRequest{ID: "op-2", Kind: api.KindRestore, Credentials: session("op-2"), Restore: &api.RestoreRequest{
		RootObject: found.Records[0].Snapshot.RootObject, Root: found.Records[0].Snapshot.Root, Volume: "data", Path: "/there",
	}}, func(api.Progress) {})
	w.must(err)
	if content, err := os.ReadFile(filepath.Join(into, "there", "f")); err != nil || string(content) != "x" {
		t.Errorf("restored %q, %v", content, err)
	}
	if listed, _ := w.list(s, "list", api.ListRequest{KeyID: "default"}); !slices.Equal(listed, []string{"theirs-1"}) {
		t.Errorf("listed %v, want the one backup", listed)
	}
	counted, err := w.run(s, api.StartRequest{ID: "stats", Kind: api.KindStats, Stats: &api.StatsRequest{BackupID: "theirs-1", Prefix: prefix, KeyID: "default"}})
	w.must(err)
	if counted.Stats.Files != 1 || counted.Stats.Bytes != 1 {
		t.Errorf("stats %+v", counted.Stats)
	}
	checked, err := w.run(s, api.StartRequest{ID: "verify", Kind: api.KindVerify, Verify: &api.VerifyRequest{KeyID: "default", Percent: 100}})
	w.must(err)
	if v := checked.Verify; v.Backups != 1 || v.ReadFiles != 1 || v.ProblemCount != 0 {
		t.Errorf("verified %+v", v)
	}
	// Kopia's default access control lets a user delete what is its own.
	deleted, err := s.agent.Run(ctx, api.StartRequest{ID: "delete-1", Kind: api.KindDelete, Delete: &api.DeleteRequest{BackupID: "theirs-1", Prefix: prefix, KeyID: "default"}}, func(api.Progress) {})
	if err != nil || len(deleted.Records) != 1 {
		t.Errorf("delete: %+v, %v", deleted, err)
	}
	if got, err := w.find(s, "find-2", api.FindRequest{BackupID: "theirs-1", Prefix: prefix, KeyID: "default"}); err != nil || len(got.Records) > 0 {
		t.Errorf("deleted, and found: %+v, %v", got, err)
	}
	w.noSecrets("the log", []byte(s.Log()))

	// The server takes contents until it has to write them: that it cannot is told at the end.
	saved := func() string { return kopia("snapshot", "list", "--all", "--incomplete", "--json") }
	before := saved()
	large := make([]byte, 4<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(large)
	w.must(os.WriteFile(filepath.Join(source, "large"), large, 0o600))
	again := func(id string) api.StartRequest {
		request := snapshotRequest(id, session(id), "/")
		request.Snapshot.SourcePath = sourcePath
		return request
	}
	broken := again("op-3")
	broken.RateLimit = 1 << 20
	_, err = agent.Start(ctx, broken)
	w.must(err)
	testenv.Eventually(w, 2*time.Minute, "the backup is under way", func() bool {
		op, err := agent.Get(ctx, broken.ID)
		w.must(err)
		return op.Progress.Bytes > 0 && !op.State.Done()
	})
	w.must(os.Rename(repository, repository+".away"))
	w.must(os.WriteFile(repository, nil, 0o600)) // or it would be made again
	if result, err := agent.Run(ctx, broken, func(api.Progress) {}); err == nil {
		t.Errorf("its storage broke, and it is a backup: %+v", result.Snapshot)
	}
	w.must(os.Remove(repository))
	w.must(os.Rename(repository+".away", repository))
	if after := saved(); after != before {
		t.Errorf("its storage broke, and there is a snapshot:\nbefore %s\nafter %s", before, after)
	}
	if result, err := agent.Run(ctx, again("op-4"), func(api.Progress) {}); err != nil || result.Snapshot.Files != 2 {
		t.Errorf("the next backup: %+v, %v, want both files", result, err)
	}

	wrong := *external
	wrong.Password = "wrong-password-7788"
	p, _, _, _ := w.launch(repositoryserver.Config{RepositoryID: "theirs", External: &wrong})
	<-p.Done
	if last := testenv.LastLine(p.Log()); !strings.Contains(last, external.URL) || strings.Contains(last, wrong.Password) {
		t.Errorf("a wrong password ends with %q", last)
	}
	if _, message := w.maintain("--mode", "quick"); !strings.Contains(message, "whoever runs it") {
		t.Errorf("maintenance of an external server: %q", message)
	}
}

// A server that lets its user add and nothing else keeps the backup, and who asks for its
// deletion hears whose word is missing.
func TestIntegrationExternalServerKeeps(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	external, _, _ := w.stock([2]string{"type=content", "APPEND"}, [2]string{"type=snapshot,username=OWN_USER,hostname=OWN_HOST", "APPEND"},
		[2]string{"type=policy,policyType=global", "READ"})
	w.config = repositoryserver.Config{RepositoryID: "theirs", External: external}
	source := w.volume()
	w.must(os.WriteFile(filepath.Join(source, "f"), []byte("x"), 0o600))
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	const sourcePath = "/" + host + "/pvc.data"
	request := snapshotRequest("op-1", &api.Credentials{
		URL: external.URL, CA: external.CA, Username: external.Username, Hostname: external.Hostname, Password: external.Password,
	}, "/")
	request.Snapshot.SourcePath = sourcePath
	result, err := agent.Run(w.context(), request, func(api.Progress) {})
	w.must(err)
	record := w.record(s, "op-1", prefix, sourcePath, *result.Snapshot)

	_, err = w.run(s, api.StartRequest{ID: "delete", Kind: api.KindDelete, Delete: &api.DeleteRequest{BackupID: record.BackupID, Prefix: prefix, KeyID: "default"}})
	var problem *api.Problem
	if !errors.As(err, &problem) || problem.Code != api.CodeAccessDenied || !strings.Contains(problem.Hint, "whoever runs it") {
		t.Errorf("delete: %v, want it denied, and whom to ask", err)
	}
	if found, err := w.find(s, "find", api.FindRequest{BackupID: record.BackupID, Prefix: prefix, KeyID: "default"}); err != nil || len(found.Records) != 1 {
		t.Errorf("what was not deleted: %+v, %v", found, err)
	}
}
