// SPDX-License-Identifier: Apache-2.0

package access

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/maintenance"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/policy"
)

// minEpoch is how long an index epoch lasts at least. Kopia's day lets small,
// frequent backups pile up thousands of index blobs before they are merged.
const minEpoch = 6 * time.Hour

const (
	ruleType   = "acl"
	canaryPath = "/canary"
	canaryText = "The repository server's probe looks for this snapshot. Leave it alone.\n"
)

// Seed makes the repository enforce Rules and nothing else, keep every snapshot
// until the administrator deletes it, compact its index in time, name the owner of
// maintenance, and hold the canary. It reads back what it wrote. Doing it again
// changes nothing. rep must be a direct session, with no server running on it.
func Seed(ctx context.Context, rep repo.DirectRepository, now time.Time, log *slog.Logger) error {
	if err := seedEpochs(ctx, rep); err != nil {
		return fmt.Errorf("set format parameters: %w", err)
	}
	if !settled(ctx, rep) {
		err := repo.WriteSession(ctx, rep, repo.WriteSessionOptions{Purpose: "seed"}, func(ctx context.Context, w repo.RepositoryWriter) error {
			return errors.Join(seedRules(ctx, w, log), seedPolicies(ctx, w, log), seedMaintenance(ctx, w), seedCanary(ctx, w, now))
		})
		if err != nil {
			return fmt.Errorf("seed repository: %w", err)
		}
	}
	if err := check(ctx, rep); err != nil {
		return fmt.Errorf("check seeded repository: %w", err)
	}
	return nil
}

// settled spares a server that starts again a write session.
func settled(ctx context.Context, rep repo.Repository) bool { return check(ctx, rep) == nil }

// check reads back all that Seed promises, but for the epochs, which are in force
// after the next open only.
func check(ctx context.Context, rep repo.Repository) error {
	rules, err := loadRules(ctx, rep)
	if err != nil {
		return err
	}
	if remove, add := plan(rules, Rules()); len(remove)+len(add) > 0 {
		return fmt.Errorf("access rules differ: %d too many, %d missing", len(remove), len(add))
	}
	policies, err := policy.ListPolicies(ctx, rep)
	if err != nil {
		return fmt.Errorf("list policies: %w", err)
	}
	global := false
	for _, p := range policies {
		isGlobal := p.Target() == policy.GlobalPolicySourceInfo
		global = global || isGlobal
		if !sameRetention(p.RetentionPolicy, retentionOf(isGlobal)) {
			return fmt.Errorf("the policy of %q deletes snapshots", p.Target())
		}
	}
	if !global {
		return errors.New("there is no global policy")
	}
	params, err := maintenance.GetParams(ctx, rep)
	if err != nil {
		return fmt.Errorf("read maintenance parameters: %w", err)
	}
	if params.Owner != Maintenance+"@"+Host {
		return fmt.Errorf("maintenance is owned by %q", params.Owner)
	}
	found, err := rep.FindManifests(ctx, CanaryLabels())
	if err != nil {
		return fmt.Errorf("find canary: %w", err)
	}
	if len(found) == 0 {
		return errors.New("there is no canary")
	}
	return nil
}

func loadRules(ctx context.Context, rep repo.Repository) ([]stored, error) {
	found, err := rep.FindManifests(ctx, map[string]string{manifest.TypeLabelKey: ruleType})
	if err != nil {
		return nil, fmt.Errorf("list access rules: %w", err)
	}
	var rules []stored
	for _, m := range found {
		var raw json.RawMessage
		if _, err := rep.GetManifest(ctx, m.ID, &raw); err != nil {
			return nil, fmt.Errorf("read access rule %s: %w", m.ID, err)
		}
		s := stored{id: string(m.ID), labels: m.Labels}
		// One that cannot be read is equal to none of ours, and goes.
		_ = json.Unmarshal(raw, &s.entry)
		rules = append(rules, s)
	}
	return rules, nil
}

func seedRules(ctx context.Context, w repo.RepositoryWriter, log *slog.Logger) error {
	have, err := loadRules(ctx, w)
	if err != nil {
		return err
	}
	remove, add := plan(have, Rules())
	for _, id := range remove {
		log.Warn("removed an access rule that is not ours", "manifest", id)
		if err := w.DeleteManifest(ctx, manifest.ID(id)); err != nil {
			return fmt.Errorf("remove access rule %s: %w", id, err)
		}
	}
	for _, e := range add {
		if _, err := w.PutManifest(ctx, map[string]string{manifest.TypeLabelKey: ruleType}, e); err != nil {
			return fmt.Errorf("add access rule: %w", err)
		}
	}
	return nil
}

// retentionOf is what a policy may say of retention: the global one keeps
// everything (all zero means that to Kopia), any other says nothing.
func retentionOf(global bool) policy.RetentionPolicy {
	if !global {
		return policy.RetentionPolicy{}
	}
	zero := func() *policy.OptionalInt { return new(policy.OptionalInt) }
	return policy.RetentionPolicy{
		KeepLatest: zero(), KeepHourly: zero(), KeepDaily: zero(),
		KeepWeekly: zero(), KeepMonthly: zero(), KeepAnnual: zero(),
	}
}

func sameRetention(a, b policy.RetentionPolicy) bool {
	same := func(x, y *policy.OptionalInt) bool {
		return (x == nil) == (y == nil) && (x == nil || *x == *y)
	}
	return same(a.KeepLatest, b.KeepLatest) && same(a.KeepHourly, b.KeepHourly) && same(a.KeepDaily, b.KeepDaily) &&
		same(a.KeepWeekly, b.KeepWeekly) && same(a.KeepMonthly, b.KeepMonthly) && same(a.KeepAnnual, b.KeepAnnual)
}

func seedPolicies(ctx context.Context, w repo.RepositoryWriter, log *slog.Logger) error {
	policies, err := policy.ListPolicies(ctx, w)
	if err != nil {
		return fmt.Errorf("list policies: %w", err)
	}
	global := &policy.Policy{}
	for _, p := range policies {
		if p.Target() == policy.GlobalPolicySourceInfo {
			global = p
			continue
		}
		if sameRetention(p.RetentionPolicy, retentionOf(false)) {
			continue
		}
		log.Warn("took retention out of a policy", "source", p.Target().String())
		p.RetentionPolicy = retentionOf(false)
		if err := policy.SetPolicy(ctx, w, p.Target(), p); err != nil {
			return fmt.Errorf("change policy of %q: %w", p.Target(), err)
		}
	}
	global.RetentionPolicy = retentionOf(true)
	if err := policy.SetPolicy(ctx, w, policy.GlobalPolicySourceInfo, global); err != nil {
		return fmt.Errorf("set global policy: %w", err)
	}
	return nil
}

func seedMaintenance(ctx context.Context, w repo.RepositoryWriter) error {
	params, err := maintenance.GetParams(ctx, w)
	if err != nil {
		return fmt.Errorf("read maintenance parameters: %w", err)
	}
	params.Owner = Maintenance + "@" + Host
	if err := maintenance.SetParams(ctx, w, params); err != nil {
		return fmt.Errorf("set maintenance parameters: %w", err)
	}
	return nil
}

// CanaryLabels find the canary.
func CanaryLabels() map[string]string {
	return map[string]string{
		manifest.TypeLabelKey: snapshot.ManifestType, snapshot.UsernameLabel: Canary, snapshot.HostnameLabel: Host,
	}
}

// seedCanary saves a whole snapshot: maintenance walks every root there is.
func seedCanary(ctx context.Context, w repo.RepositoryWriter, now time.Time) error {
	found, err := w.FindManifests(ctx, CanaryLabels())
	if err != nil {
		return fmt.Errorf("find canary: %w", err)
	}
	if len(found) > 0 {
		return nil
	}
	o := w.NewObjectWriter(ctx, object.WriterOptions{Description: "canary"})
	defer o.Close()
	if _, err := o.Write([]byte(canaryText)); err != nil {
		return fmt.Errorf("write canary: %w", err)
	}
	id, err := o.Result()
	if err != nil {
		return fmt.Errorf("write canary: %w", err)
	}
	at := fs.UTCTimestampFromTime(now)
	_, err = snapshot.SaveSnapshot(ctx, w, &snapshot.Manifest{
		Source:      snapshot.SourceInfo{Host: Host, UserName: Canary, Path: canaryPath},
		Description: "canary", StartTime: at, EndTime: at,
		RootEntry: &snapshot.DirEntry{
			Name: "canary", Type: snapshot.EntryTypeFile, Permissions: 0o444,
			FileSize: int64(len(canaryText)), ModTime: at, ObjectID: id,
		},
	})
	if err != nil {
		return fmt.Errorf("save canary: %w", err)
	}
	return nil
}

// seedEpochs shortens epochs; Kopia takes it up at the next open.
func seedEpochs(ctx context.Context, rep repo.DirectRepository) error {
	f := rep.FormatManager()
	params, err := f.GetMutableParameters(ctx)
	if err != nil {
		return err
	}
	if params.EpochParameters.MinEpochDuration == minEpoch {
		return nil
	}
	blobs, err := f.BlobCfgBlob(ctx)
	if err != nil {
		return err
	}
	features, err := f.RequiredFeatures(ctx)
	if err != nil {
		return err
	}
	params.EpochParameters.MinEpochDuration = minEpoch
	return f.SetParameters(ctx, params, blobs, features)
}
