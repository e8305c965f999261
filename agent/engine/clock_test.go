// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kopia/kopia/repo"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// A node whose clock jumps, ahead and then behind, takes backups like any other: the next
// one sends nothing that is known, and each is restored as it was.
func TestClockJumps(t *testing.T) {
	base := t.TempDir()
	volumes := filepath.Join(base, "volumes")
	in := func(name string) string { return filepath.Join(volumes, name) }
	for _, name := range []string{"data", "restored-0", "restored-1", "restored-2"} {
		must(t, os.MkdirAll(in(name), 0o755))
	}
	must(t, os.WriteFile(in("data/kept"), []byte("kept"), 0o644))
	must(t, os.WriteFile(in("data/changes"), []byte("0"), 0o644))
	open := aRepository(t)
	creds := &api.Credentials{Username: "pvc.data", Hostname: "ns"}
	for i, shift := range []time.Duration{0, 24 * 365 * time.Hour, -24 * 365 * time.Hour} {
		now := func() time.Time { return time.Now().Add(shift) }
		rep := open(now)
		conn := &connection{rep: rep, objects: rep, creds: creds}
		env := Env{VolumesDir: volumes, Now: now}
		none := newThrottle(t.Context(), 0)
		content := string(rune('0' + i))
		must(t, os.WriteFile(in("data/changes"), []byte(content), 0o644))
		must(t, os.Chtimes(in("data/changes"), time.Time{}, now()))

		req := api.StartRequest{Snapshot: &api.SnapshotRequest{Volume: "data", Path: "/", SourcePath: "/"}}
		taken, err := snapshotVolume(t.Context(), conn, req, env, newProgress(now, func(api.Progress) {}), none)
		must(t, err)
		s := taken.Snapshot
		if known := int64(min(i, 1)); s.Files != 2 || s.CachedFiles != known || s.End.Before(s.Start) {
			t.Errorf("by a clock off by %s: %+v, want 2 files of which %d are known", shift, s, known)
		}
		to := "restored-" + content
		req = api.StartRequest{Restore: &api.RestoreRequest{RootObject: s.RootObject, Root: s.Root, Volume: to, Path: "/", Verify: api.VerifyAfter}}
		_, err = restoreVolume(t.Context(), conn, req, env, newProgress(now, func(api.Progress) {}), none)
		must(t, err)
		for name, want := range map[string]string{"kept": "kept", "changes": content} {
			got, err := os.ReadFile(in(to + "/" + name))
			must(t, err)
			had, err := os.Stat(in("data/" + name))
			must(t, err)
			has, err := os.Stat(in(to + "/" + name))
			must(t, err)
			if string(got) != want || !has.ModTime().Equal(had.ModTime()) {
				t.Errorf("by a clock off by %s: %s is %q of %s, want %q of %s", shift, name, got, has.ModTime(), want, had.ModTime())
			}
		}
	}
}

// A backup that was taken by a clock that was ahead is deleted, or it is said that it is
// not, and when it can be.
func TestDeleteAfterClockJump(t *testing.T) {
	open := aRepository(t)
	write := func(clock func() time.Time) api.Record {
		r := api.Record{BackupID: "b", BackupTag: "t", Prefix: "p", KeyID: "default", Snapshot: api.SnapshotResult{ID: "none"}}
		must(t, repo.WriteSession(t.Context(), open(clock), repo.WriteSessionOptions{}, func(ctx context.Context, w repo.RepositoryWriter) error {
			_, err := w.PutManifest(ctx, recordLabels(r), r)
			return err
		}))
		return r
	}
	later := func() time.Time { return time.Now().Add(6 * time.Hour) }
	write(later)
	request := api.DeleteRequest{BackupID: "b", Prefix: "p", KeyID: "default"}
	try := func(clock func() time.Time) error {
		_, err := deleteRecord(t.Context(), &connection{rep: open(clock)}, request)
		return err
	}
	left := func() int {
		found, err := find(t.Context(), &connection{rep: open(time.Now)}, request)
		must(t, err)
		return len(found)
	}
	var p *api.Problem
	if err := try(time.Now); !errors.As(err, &p) || p.Code != api.CodeConflict || !strings.Contains(p.Hint, "clock") || left() != 1 {
		t.Errorf("while it is younger than now: %v, %d left", err, left())
	}
	if err := try(func() time.Time { return later().Add(time.Minute) }); err != nil || left() != 0 {
		t.Errorf("afterwards: %v, %d left", err, left())
	}
}
