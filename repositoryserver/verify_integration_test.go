// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// run runs an operation of a repository server's own agent.
func (w *world) run(s *server, req api.StartRequest) (*api.Result, error) {
	w.Helper()
	return s.agent.Run(w.context(), req, func(api.Progress) {})
}

// list asks for all pages of a list.
func (w *world) list(s *server, id string, req api.ListRequest) (ids []string, pages int) {
	w.Helper()
	for {
		pages++
		result, err := w.run(s, api.StartRequest{ID: fmt.Sprintf("%s-%d", id, pages), Kind: api.KindList, List: &req})
		w.must(err)
		for _, r := range result.Records {
			ids = append(ids, r.BackupID)
		}
		if result.Next == "" {
			return ids, pages
		}
		req.After = result.Next
	}
}

// Backups are listed in the order in which they were recorded, page by page, those of
// one prefix and one key; what changes between two pages disturbs no other.
func TestIntegrationList(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	source := w.volume()
	w.must(os.WriteFile(filepath.Join(source, "f"), []byte("x"), 0o600))
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	first := w.backup(s, agent, "op-1", "/")
	w.backup(s, agent, "op-2", "/")
	w.record(s, "op-3", prefix+"/deeper", "/", first.Snapshot)
	w.backup(s, agent, "op-4", "/")

	for name, c := range map[string]struct {
		req   api.ListRequest
		want  []string
		pages int
	}{
		"all":             {api.ListRequest{KeyID: "default"}, []string{"shop-op-1", "shop-op-2", "shop-op-3", "shop-op-4"}, 1},
		"page-by-page":    {api.ListRequest{KeyID: "default", Limit: 3}, []string{"shop-op-1", "shop-op-2", "shop-op-3", "shop-op-4"}, 2},
		"one-by-one":      {api.ListRequest{KeyID: "default", Limit: 1, Prefix: prefix}, []string{"shop-op-1", "shop-op-2", "shop-op-4"}, 3},
		"exactly-prefix":  {api.ListRequest{KeyID: "default", Prefix: prefix + "/deeper"}, []string{"shop-op-3"}, 1},
		"not-its-parents": {api.ListRequest{KeyID: "default", Prefix: "backups/shop"}, nil, 1},
		"another-key":     {api.ListRequest{KeyID: "other"}, nil, 1},
	} {
		if got, pages := w.list(s, name, c.req); !slices.Equal(got, c.want) || pages != c.pages {
			t.Errorf("%s: %v in %d pages, want %v in %d", name, got, pages, c.want, c.pages)
		}
	}
	for _, limit := range []int{-1, api.MaxListed + 1} {
		if _, err := w.run(s, api.StartRequest{ID: fmt.Sprintf("limit%d", limit), Kind: api.KindList, List: &api.ListRequest{KeyID: "default", Limit: limit}}); code(err) != api.CodeBadRequest {
			t.Errorf("limit %d: %v, want %s", limit, err, api.CodeBadRequest)
		}
	}

	// The record at which a page ended goes, and a new one comes.
	page, err := w.run(s, api.StartRequest{ID: "page-1", Kind: api.KindList, List: &api.ListRequest{KeyID: "default", Limit: 2}})
	w.must(err)
	_, err = w.run(s, api.StartRequest{ID: "delete", Kind: api.KindDelete, Delete: &api.DeleteRequest{BackupID: "shop-op-2", Prefix: prefix, KeyID: "default"}})
	w.must(err)
	w.backup(s, agent, "op-5", "/")
	if got, _ := w.list(s, "rest", api.ListRequest{KeyID: "default", After: page.Next}); !slices.Equal(got, []string{"shop-op-3", "shop-op-4", "shop-op-5"}) {
		t.Errorf("after the first two: %v", got)
	}
}

// The modes of stats count what they say.
func TestIntegrationStats(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	source := w.volume()
	testenv.MakeTree(w, source)
	noise := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{9}).Read(noise)
	for _, name := range []string{"noise", "dir/the-same-noise"} {
		w.must(os.WriteFile(filepath.Join(source, name), noise, 0o600))
	}
	const zeros = 40 << 20 // many contents, all equal
	w.must(os.WriteFile(filepath.Join(source, "zeros"), nil, 0o600))
	w.must(os.Truncate(filepath.Join(source, "zeros"), zeros))
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	record := w.backup(s, agent, "op-1", "/")

	restored, byContents := api.StatsResult{Mode: api.StatsRestoreSize}, api.StatsResult{Mode: api.StatsFilesByContents}
	contents, empty := map[string]bool{}, int64(0)
	for name, e := range testenv.Tree(w, source) {
		if !e.Mode.IsRegular() {
			continue
		}
		restored.Files++
		if e.SameAs == "" || e.SameAs == name {
			restored.Bytes += e.Size
		}
		if contents[e.SHA256] {
			continue
		}
		contents[e.SHA256] = true
		byContents.Files++
		byContents.Bytes += e.Size
		if e.Size == 0 {
			empty++
		}
	}
	stats := func(id string, mode api.StatsMode) (api.StatsResult, error) {
		result, err := w.run(s, api.StartRequest{ID: id, Kind: api.KindStats, Stats: &api.StatsRequest{
			BackupID: record.BackupID, Prefix: prefix, KeyID: "default", Mode: mode,
		}})
		if err != nil {
			return api.StatsResult{}, err
		}
		return *result.Stats, nil
	}
	for _, c := range []struct {
		id   string
		mode api.StatsMode
		want api.StatsResult
	}{{"default", "", restored}, {"restore-size", api.StatsRestoreSize, restored}, {"files-by-contents", api.StatsFilesByContents, byContents}} {
		if got, err := stats(c.id, c.mode); err != nil || got != c.want {
			t.Errorf("%s: %+v, %v, want %+v", c.id, got, err, c.want)
		}
	}
	blobs, err := stats("blobs-per-file", api.StatsBlobsPerFile)
	w.must(err)
	// The contents of two files repeat but for the last of them: the zeros, and the hole of
	// MakeTree's.
	hole, err := os.Stat(filepath.Join(source, "sparse"))
	w.must(err)
	repeats := zeros + hole.Size()
	if least, most := byContents.Bytes-repeats, byContents.Bytes-repeats/2; blobs.Files != byContents.Files-empty || blobs.Bytes <= least || blobs.Bytes >= most {
		t.Errorf("blobs-per-file: %+v, want %d files and %d to %d bytes", blobs, byContents.Files-empty, least, most)
	}
	raw, err := stats("raw-data", api.StatsRawData)
	w.must(err)
	if raw.Files <= blobs.Files || raw.Bytes < int64(len(noise)) || raw.Bytes > 2*int64(len(noise)) {
		t.Errorf("raw-data: %+v, want more than %d contents, and the noise once", raw, blobs.Files)
	}
	if _, err := stats("unknown", "size"); code(err) != api.CodeBadRequest || !strings.Contains(err.Error(), "files-by-contents") {
		t.Errorf("an unknown mode: %v, want a refusal that names the known ones", err)
	}
	if _, err := w.run(s, api.StartRequest{ID: "lost", Kind: api.KindStats, Stats: &api.StatsRequest{BackupID: record.BackupID, Prefix: "backups", KeyID: "default"}}); code(err) != api.CodeNotFound {
		t.Errorf("under another prefix: %v, want %s", err, api.CodeNotFound)
	}
	single := w.backup(s, agent, "op-2", "/noise")
	got, err := w.run(s, api.StartRequest{ID: "single", Kind: api.KindStats, Stats: &api.StatsRequest{BackupTag: single.BackupTag, Prefix: prefix, KeyID: "default"}})
	w.must(err)
	if want := (api.StatsResult{Mode: api.StatsRestoreSize, Files: 1, Bytes: int64(len(noise))}); *got.Stats != want {
		t.Errorf("a single file: %+v, want %+v", *got.Stats, want)
	}
}

// packs are the objects of the bucket that hold files' contents.
func (w *world) packs() []string {
	w.Helper()
	found, err := filepath.Glob(filepath.Join(w.s3.Dir, w.config.Storage.Prefix, "p*"))
	w.must(err)
	return found
}

// Healthy backups verify without a word. What the storage has lost or changed is told
// with the backup and the path that it was for, and of no other.
func TestIntegrationVerify(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	source := w.volume()
	testenv.MakeTree(w, source)
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	first := w.backup(s, agent, "op-1", "/")
	old := w.packs()
	w.must(os.Mkdir(filepath.Join(source, "new"), 0o755))
	random, noise := rand.NewChaCha8([32]byte{10}), make([]byte, 256<<10)
	for _, name := range []string{"new/one", "new/two"} {
		_, _ = random.Read(noise)
		w.must(os.WriteFile(filepath.Join(source, name), noise, 0o600))
	}
	second := w.backup(s, agent, "op-2", "/")
	w.must(os.Rename(filepath.Join(source, "new"), filepath.Join(source, "renamed")))
	third := w.backup(s, agent, "op-3", "/")
	verify := func(id string, req api.VerifyRequest) *api.VerifyResult {
		w.Helper()
		req.KeyID = "default"
		result, err := w.run(s, api.StartRequest{ID: id, Kind: api.KindVerify, Verify: &req})
		w.must(err)
		return result.Verify
	}
	distinct := map[string]bool{}
	links := int64(0)
	for _, e := range testenv.Tree(w, source) {
		if e.Mode.IsRegular() {
			distinct[e.SHA256] = true
		}
		if e.Link != "" {
			links++
		}
	}
	healthy := verify("healthy", api.VerifyRequest{Percent: 100})
	if healthy.ProblemCount != 0 || healthy.Backups != 3 || healthy.Files < int64(len(distinct)) || healthy.ReadFiles != healthy.Files+links {
		t.Errorf("healthy: %+v, want 3 backups, at least %d files, all of them and %d links read, no problem", healthy, len(distinct), links)
	}
	if got := verify("index", api.VerifyRequest{Prefix: prefix}); got.ProblemCount != 0 || got.Files != healthy.Files || got.ReadFiles != 0 {
		t.Errorf("nothing read: %+v, want %d files and no problem", got, healthy.Files)
	}
	if got := verify("one", api.VerifyRequest{BackupTag: first.BackupTag, Prefix: prefix, Percent: 100}); got.Backups != 1 || got.ProblemCount != 0 {
		t.Errorf("one backup: %+v", got)
	}
	if got := verify("other-prefix", api.VerifyRequest{Prefix: "backups/other"}); got.Backups != 0 {
		t.Errorf("another prefix: %+v, want nothing", got)
	}
	for _, percent := range []int{-1, 101} {
		if _, err := w.run(s, api.StartRequest{ID: fmt.Sprintf("percent%d", percent), Kind: api.KindVerify, Verify: &api.VerifyRequest{KeyID: "default", Percent: percent}}); code(err) != api.CodeBadRequest {
			t.Errorf("%d percent: %v, want %s", percent, err, api.CodeBadRequest)
		}
	}

	// One that reads slowly ends when it is told to.
	slow := api.StartRequest{ID: "slow", Kind: api.KindVerify, Verify: &api.VerifyRequest{KeyID: "default", Percent: 100}, RateLimit: api.LeastRateLimit}
	_, err := s.agent.Start(w.context(), slow)
	w.must(err)
	testenv.Eventually(w, 3*time.Minute, "the slow one reads", func() bool {
		op, err := s.agent.Get(w.context(), "slow")
		return err == nil && op.Progress.DownloadedBytes > 0
	})
	w.must(s.agent.Cancel(w.context(), "slow"))
	w.await(s.agent, "slow", api.StateCancelled)

	news := slices.DeleteFunc(w.packs(), func(p string) bool { return slices.Contains(old, p) })
	if len(news) == 0 {
		t.Fatal("the second backup wrote no pack of its own")
	}
	// again serves the repository without what the server had in its cache.
	again := func() {
		w.Helper()
		s.Kill()
		s = w.serve()
	}
	damaged := func(what string) {
		w.Helper()
		again()
		got := verify(strings.ReplaceAll(what, " ", "-"), api.VerifyRequest{Percent: 100})
		if got.Backups != 3 || got.ProblemCount != 4 || len(got.Problems) != 4 {
			t.Fatalf("%s: %+v, want two files of two backups", what, got)
		}
		slices.Sort(got.Problems)
		for i, want := range []string{
			second.BackupID + ": /var/lib/db/new/one: ", second.BackupID + ": /var/lib/db/new/two: ",
			third.BackupID + ": /var/lib/db/renamed/one: ", third.BackupID + ": /var/lib/db/renamed/two: ",
		} {
			if !strings.HasPrefix(got.Problems[i], "backup "+want) {
				t.Errorf("%s: %q, want that of %s", what, got.Problems[i], want)
			}
		}
		t.Log(got.Problems[0])
	}
	kept := map[string][]byte{}
	for _, pack := range news {
		content, err := os.ReadFile(pack)
		w.must(err)
		kept[pack] = content
		broken := slices.Clone(content)
		for i := range broken {
			broken[i] ^= 0x5a
		}
		w.must(os.WriteFile(pack, broken, 0o600))
	}
	damaged("a changed pack")
	for pack, content := range kept {
		w.must(os.WriteFile(pack, content[:len(content)/100], 0o600))
	}
	damaged("a short pack")
	for _, pack := range news {
		w.must(os.Remove(pack))
	}
	damaged("a lost pack")
	if got := verify("first-only", api.VerifyRequest{BackupID: first.BackupID, Prefix: prefix, Percent: 100}); got.ProblemCount != 0 {
		t.Errorf("the backup that lost nothing: %+v", got)
	}
	for pack, content := range kept {
		w.must(os.WriteFile(pack, content, 0o600))
	}
	again()
	if got := verify("healed", api.VerifyRequest{Percent: 100}); got.ProblemCount != 0 {
		t.Errorf("with its packs again: %+v", got)
	}

	// A storage that does not answer says nothing about the backups. A server that has
	// read them needs it no more.
	again()
	w.s3.Gateway.Kill()
	result, err := w.run(s, api.StartRequest{ID: "no-storage", Kind: api.KindVerify, Verify: &api.VerifyRequest{KeyID: "default", Percent: 100}})
	var p *api.Problem
	if !errors.As(err, &p) || p.Code != api.CodeStorage {
		t.Errorf("without the storage: %+v, %v, want %s", result, err, api.CodeStorage)
	}
}
