// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver

import (
	"context"
	"testing"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/policy"
)

// Whatever rules, accounts and policies a repository has when its server starts, ours are left:
// users add and read, nobody else is known, and no retention deletes.
func TestIntegrationSeed(t *testing.T) {
	t.Parallel()
	f := newFolder(t, Format{})
	rep := f.open()
	source := snapshot.SourceInfo{UserName: "pvc.data", Host: namespace, Path: "/data"}
	one := policy.OptionalInt(1)
	theirs := &policy.Policy{RetentionPolicy: policy.RetentionPolicy{KeepLatest: &one}}
	f.must(seed(f.ctx, rep, f.now()))
	f.must(repo.WriteSession(f.ctx, rep, repo.WriteSessionOptions{}, func(ctx context.Context, w repo.RepositoryWriter) error {
		for kind, payload := range map[string]any{
			aclType: rule{"*@*", map[string]string{"type": snapshot.ManifestType}, "FULL"},
			"user":  map[string]string{"username": "admin@laptop"},
		} {
			if _, err := w.PutManifest(ctx, map[string]string{"type": kind, "username": "admin@laptop"}, payload); err != nil {
				return err
			}
		}
		for _, of := range []snapshot.SourceInfo{source, policy.GlobalPolicySourceInfo} {
			if err := policy.SetPolicy(ctx, w, of, theirs); err != nil {
				return err
			}
		}
		return nil
	}))
	if err := checkSeed(f.ctx, rep); err == nil {
		t.Error("a rule of somebody else's is not noticed")
	}
	f.must(seed(f.ctx, rep, f.now()))
	found, err := loadRules(f.ctx, rep)
	f.must(err)
	for _, r := range found {
		if r.Access == "FULL" && r.User != "controller@system" {
			t.Errorf("%s may delete: %+v", r.User, r)
		}
	}
	if accounts, err := rep.FindManifests(f.ctx, map[string]string{"type": "user"}); err != nil || len(accounts) > 0 {
		t.Errorf("%d accounts are left, %v", len(accounts), err)
	}
	effective, _, _, err := policy.GetEffectivePolicy(f.ctx, rep, source)
	f.must(err)
	keep := effective.RetentionPolicy
	for what, n := range map[string]*policy.OptionalInt{
		"latest": keep.KeepLatest, "hourly": keep.KeepHourly, "daily": keep.KeepDaily,
		"weekly": keep.KeepWeekly, "monthly": keep.KeepMonthly, "annual": keep.KeepAnnual,
	} {
		if n == nil || *n != 0 {
			t.Errorf("retention keeps %v %s snapshots, and so deletes others", n, what)
		}
	}
	// Kopia takes no numbers at all for none to be deleted.
	var all []*snapshot.Manifest
	for range 20 {
		all = append(all, &snapshot.Manifest{Source: source})
	}
	keep.ComputeRetentionReasons(all)
	for i, man := range all {
		if len(man.RetentionReasons) == 0 {
			t.Errorf("snapshot %d of %d goes by retention", i, len(all))
			break
		}
	}
}
