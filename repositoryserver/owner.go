// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/manifest"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// Two RepositoryServers of one repository destroy it: each maintains it, and knows nothing of
// the other's Lease. The controller refuses a second one at a location, but a bucket has many
// names, of which it cannot know that they are one's. So the repository itself says whose it is.

// ownerType is of the manifest that says so. No user may write or read it.
const ownerType = "kanister-repository"

// owner is which RepositoryServer works with a repository.
type owner struct {
	RepositoryID string `json:"repositoryID"`
}

// ownerOf reads it: of several, which began at the same moment, the first; "" if there is none.
func ownerOf(ctx context.Context, rep repo.Repository) (id string, entries []*manifest.EntryMetadata, err error) {
	entries, err = rep.FindManifests(ctx, map[string]string{manifest.TypeLabelKey: ownerType})
	if err != nil || len(entries) == 0 {
		return "", nil, wrapOwner(err)
	}
	slices.SortFunc(entries, func(a, b *manifest.EntryMetadata) int {
		return cmp.Or(a.ModTime.Compare(b.ModTime), cmp.Compare(a.ID, b.ID))
	})
	var o owner
	_, err = rep.GetManifest(ctx, entries[0].ID, &o)
	return o.RepositoryID, entries, wrapOwner(err)
}

func wrapOwner(err error) error {
	if err != nil {
		return fmt.Errorf("read whose repository it is: %w", err)
	}
	return nil
}

// own makes a repository the configuration's, unless it is another's that it does not replace.
func own(ctx context.Context, rep repo.Repository, c Config) error {
	has, before, err := ownerOf(ctx, rep)
	switch {
	case err != nil:
		return err
	case has == c.RepositoryID:
		return nil
	case has != "" && has != c.Replaces:
		return c.isAnothers(has)
	}
	err = repo.WriteSession(ctx, rep, repo.WriteSessionOptions{Purpose: "own"}, func(ctx context.Context, w repo.RepositoryWriter) error {
		for _, e := range before {
			if err := w.DeleteManifest(ctx, e.ID); err != nil {
				return err
			}
		}
		_, err := w.PutManifest(ctx, map[string]string{manifest.TypeLabelKey: ownerType}, owner{c.RepositoryID})
		return err
	})
	if err != nil {
		return fmt.Errorf("write whose repository it is: %w", err)
	}
	// Another one may have begun at the same moment.
	if err := rep.Refresh(ctx); err != nil {
		return wrapOwner(err)
	}
	return checkOwner(ctx, rep, c)
}

// checkOwner fails if a repository is another's. One that is nobody's yet is not.
func checkOwner(ctx context.Context, rep repo.Repository, c Config) error {
	has, _, err := ownerOf(ctx, rep)
	switch {
	case err != nil || has == "" || has == c.RepositoryID:
		return err
	case has == c.Replaces:
		return fmt.Errorf("the repository is still that of RepositoryServer %s: the server takes it over when it starts next: run an action that uses it, such as a backup", has)
	}
	return c.isAnothers(has)
}

func (c Config) isAnothers(has string) error {
	return fmt.Errorf("the storage holds the repository of RepositoryServer %s, and two that maintain one repository destroy it: use that one, whose spec.storage may name the storage otherwise; "+
		"if it is gone for ever, in all clusters, annotate RepositoryServer %s with %s=%s", has, c.RepositoryID, names.ReplacesAnnotation, has)
}
