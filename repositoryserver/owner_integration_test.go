// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/maintenance"
	"github.com/kopia/kopia/snapshot/snapshotmaintenance"
)

// A repository is one RepositoryServer's, whatever its bucket is called: another one neither
// serves nor maintains it, until somebody says that it replaces the first.
func TestIntegrationOwner(t *testing.T) {
	t.Parallel()
	f := newFolder(t, Format{})
	rep := f.open()
	first, second := f.Config, f.Config
	first.RepositoryID, second.RepositoryID = "first", "second"
	maintains := func(c Config) error {
		t.Helper()
		_, err := Maintain(f.ctx, MaintainOptions{Config: c, StateDir: f.TempDir(), Log: slog.New(slog.DiscardHandler), Now: f.now})
		return err
	}
	refused := func(what string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "RepositoryServer first") || !strings.Contains(err.Error(), "kopia.kanister.io/replaces=first") {
			t.Errorf("%s: %v", what, err)
		}
	}
	for range 2 {
		f.must(own(f.ctx, rep, first))
	}
	f.must(seed(f.ctx, rep, f.now()))
	refused("another one", own(f.ctx, rep, second))
	refused("its maintenance", maintains(second))
	f.must(maintains(first))
	_, stranger, err := openRepository(f.ctx, first, "stranger", f.TempDir(), f.now)
	f.must(err)
	defer stranger.Close(f.ctx)
	err = repo.DirectWriteSession(f.ctx, stranger, repo.WriteSessionOptions{}, func(ctx context.Context, w repo.DirectRepositoryWriter) error {
		return snapshotmaintenance.Run(ctx, w, maintenance.ModeQuick, false, maintenance.SafetyFull)
	})
	if !errors.As(err, new(maintenance.NotOwnedError)) {
		t.Errorf("maintenance by another user: %v, want that it is not his", err)
	}
	second.Replaces = "another"
	refused("one that replaces another", own(f.ctx, rep, second))
	second.Replaces = "first"
	if err := maintains(second); err == nil || !strings.Contains(err.Error(), "takes it over when it starts next") {
		t.Errorf("maintenance before its server has taken the repository over: %v", err)
	}
	f.must(own(f.ctx, rep, second))
	f.must(maintains(second))
	if err := own(f.ctx, rep, first); err == nil || !strings.Contains(err.Error(), "RepositoryServer second") {
		t.Errorf("the one that was replaced: %v", err)
	}
}
