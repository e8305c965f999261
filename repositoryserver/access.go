// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/maintenance"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/policy"
)

// The users that are not applications'. No session can be minted for them.
const (
	adminUser, adminHost   = "controller", "system"
	probeUser, probeHost   = "probe", "system"
	canaryUser, canaryHost = "canary", "system"
)

// systemHost is the host of all users that are ours.
const systemHost = "system"

// rule is one entry of Kopia's access control. The highest match wins; there is
// no denial.
type rule struct {
	User   string            `json:"user"`
	Target map[string]string `json:"target"`
	Access string            `json:"access"`
}

const (
	aclType = "acl"
	// recordType is what the agent beside the storage's keys calls its records of backups.
	recordType = "kanister-backup"
)

// rules is the whole access control: an application adds and reads its own
// snapshots and contents, and nothing else. It never deletes, and it knows no
// policy, user or rule. Contents are not separated by user: a repository is a
// trust domain.
func rules() []rule {
	all := []rule{
		{"*@*", map[string]string{"type": "content"}, "APPEND"},
		{"*@*", map[string]string{"type": snapshot.ManifestType, "username": "OWN_USER", "hostname": "OWN_HOST"}, "APPEND"},
		// Only rules in force let the probe see the canary: without any, Kopia falls
		// back to every user's own snapshots.
		{probeUser + "@" + probeHost, map[string]string{"type": snapshot.ManifestType, "username": canaryUser, "hostname": canaryHost}, "READ"},
	}
	for _, t := range []string{"content", snapshot.ManifestType, policy.ManifestType, "user", aclType, recordType} {
		all = append(all, rule{adminUser + "@" + adminHost, map[string]string{"type": t}, "FULL"})
	}
	return all
}

// seedManifests writes rules, retention, maintenance owner and canary, and removes
// every rule and account that is not ours, and all notification profiles.
func seedManifests(ctx context.Context, w repo.RepositoryWriter, now time.Time) error {
	if err := seedRules(ctx, w); err != nil {
		return err
	}
	// Accounts would be another way in than our front's.
	if err := deleteAll(ctx, w, "user"); err != nil {
		return err
	}
	// Whom the owner told his news to is nobody for applications to speak to.
	if err := deleteAll(ctx, w, "notificationProfile"); err != nil {
		return err
	}
	if err := seedRetention(ctx, w); err != nil {
		return err
	}
	if err := seedMaintenance(ctx, w); err != nil {
		return err
	}
	return seedCanary(ctx, w, now)
}

// seedMaintenance sets the owner: whoever else runs maintenance is refused, this
// server first of all. Locks of an object store are extended where there are any.
func seedMaintenance(ctx context.Context, w repo.RepositoryWriter) error {
	want := maintenance.DefaultParams()
	want.Owner = maintenanceUser + "@" + serverHost
	if d, ok := w.(repo.DirectRepositoryWriter); ok {
		blobs, err := d.FormatManager().BlobCfgBlob(ctx)
		if err != nil {
			return fmt.Errorf("read format: %w", err)
		}
		want.ExtendObjectLocks = blobs.IsRetentionEnabled()
	}
	if there, err := maintenance.HasParams(ctx, w); err != nil {
		return fmt.Errorf("read maintenance parameters: %w", err)
	} else if there {
		have, err := maintenance.GetParams(ctx, w)
		if err != nil {
			return fmt.Errorf("read maintenance parameters: %w", err)
		}
		if reflect.DeepEqual(*have, want) {
			return nil
		}
	}
	if err := maintenance.SetParams(ctx, w, &want); err != nil {
		return fmt.Errorf("set maintenance owner: %w", err)
	}
	return nil
}

func seedRules(ctx context.Context, w repo.RepositoryWriter) error {
	found, err := loadRules(ctx, w)
	if err != nil {
		return err
	}
	missing := map[int]bool{}
	for i := range rules() {
		missing[i] = true
	}
	for id, r := range found {
		wanted := false
		for i, want := range rules() {
			if missing[i] && reflect.DeepEqual(r, want) {
				wanted, missing[i] = true, false
				break
			}
		}
		if !wanted {
			if err := w.DeleteManifest(ctx, id); err != nil {
				return fmt.Errorf("remove a rule that is not ours: %w", err)
			}
		}
	}
	for i, r := range rules() {
		if missing[i] {
			if _, err := w.PutManifest(ctx, map[string]string{"type": aclType}, r); err != nil {
				return fmt.Errorf("write access rule: %w", err)
			}
		}
	}
	return nil
}

func loadRules(ctx context.Context, rep repo.Repository) (map[manifest.ID]rule, error) {
	entries, err := rep.FindManifests(ctx, map[string]string{"type": aclType})
	if err != nil {
		return nil, fmt.Errorf("read access rules: %w", err)
	}
	found := map[manifest.ID]rule{}
	for _, e := range entries {
		var r rule
		if _, err := rep.GetManifest(ctx, e.ID, &r); err != nil {
			return nil, fmt.Errorf("read access rule: %w", err)
		}
		found[e.ID] = r
	}
	return found, nil
}

func deleteAll(ctx context.Context, w repo.RepositoryWriter, manifestType string) error {
	entries, err := w.FindManifests(ctx, map[string]string{"type": manifestType})
	if err != nil {
		return fmt.Errorf("list %s manifests: %w", manifestType, err)
	}
	for _, e := range entries {
		if err := w.DeleteManifest(ctx, e.ID); err != nil {
			return fmt.Errorf("remove %s manifest: %w", manifestType, err)
		}
	}
	return nil
}

// seedRetention switches retention off, for everybody: backups go when the
// control plane says so, never by a rule that a client can trigger.
func seedRetention(ctx context.Context, w repo.RepositoryWriter) error {
	zero := policy.OptionalInt(0)
	want := &policy.Policy{RetentionPolicy: policy.RetentionPolicy{
		KeepLatest: &zero, KeepHourly: &zero, KeepDaily: &zero, KeepWeekly: &zero, KeepMonthly: &zero, KeepAnnual: &zero,
	}}
	entries, err := w.FindManifests(ctx, map[string]string{"type": policy.ManifestType})
	if err != nil {
		return fmt.Errorf("read policies: %w", err)
	}
	if len(entries) == 1 {
		var now policy.Policy
		if _, err := w.GetManifest(ctx, entries[0].ID, &now); err == nil && entries[0].Labels[policy.PolicyTypeLabel] == policy.PolicyTypeGlobal &&
			reflect.DeepEqual(now.RetentionPolicy, want.RetentionPolicy) {
			return nil
		}
	}
	if err := deleteAll(ctx, w, policy.ManifestType); err != nil {
		return err
	}
	if err := policy.SetPolicy(ctx, w, policy.GlobalPolicySourceInfo, want); err != nil {
		return fmt.Errorf("switch retention off: %w", err)
	}
	return nil
}

func canarySource() snapshot.SourceInfo {
	return snapshot.SourceInfo{UserName: canaryUser, Host: canaryHost, Path: "/canary"}
}

func seedCanary(ctx context.Context, w repo.RepositoryWriter, now time.Time) error {
	source := canarySource()
	ids, err := snapshot.ListSnapshotManifests(ctx, w, &source, nil)
	if err != nil {
		return fmt.Errorf("look for the canary: %w", err)
	}
	if len(ids) > 0 {
		return nil
	}
	id, err := writeObject(ctx, w, "tweet")
	if err != nil {
		return fmt.Errorf("write the canary: %w", err)
	}
	at := fs.UTCTimestampFromTime(now)
	if _, err := snapshot.SaveSnapshot(ctx, w, &snapshot.Manifest{
		Source: source, StartTime: at, EndTime: at,
		RootEntry: &snapshot.DirEntry{Name: "canary", Type: snapshot.EntryTypeFile, ObjectID: id, FileSize: 5},
	}); err != nil {
		return fmt.Errorf("write the canary: %w", err)
	}
	return nil
}

// checkSeed reads the rules back: exactly ours, or nobody is let in.
func checkSeed(ctx context.Context, rep repo.Repository) error {
	if err := rep.Refresh(ctx); err != nil {
		return fmt.Errorf("read access rules: %w", err)
	}
	found, err := loadRules(ctx, rep)
	if err != nil {
		return err
	}
	left := rules()
	for _, r := range found {
		for i, want := range left {
			if reflect.DeepEqual(r, want) {
				left = append(left[:i:i], left[i+1:]...)
				break
			}
		}
	}
	if len(left) > 0 || len(found) != len(rules()) {
		return errors.New("check access rules: what was read back is not what was written")
	}
	return nil
}
