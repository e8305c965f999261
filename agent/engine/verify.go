// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/snapshot"
	"golang.org/x/sync/errgroup"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// namedProblems is how many problems a verification tells one by one.
const namedProblems = 20

// verifyBackups looks whether backups could be restored: whether all that they are
// made of is in the repository and, of some files, whether the storage gives it back.
func verifyBackups(ctx context.Context, conn *connection, r api.VerifyRequest, p *progress, limit *throttle) (*api.Result, error) {
	if r.Percent < 0 || r.Percent > 100 {
		return nil, &api.Problem{Code: api.CodeBadRequest, Title: fmt.Sprintf("verify backups: %d percent are not 0 to 100", r.Percent)}
	}
	v := &verifier{rep: conn.rep, creds: conn.creds, percent: r.Percent, progress: p, limit: limit}
	if r.BackupID != "" || r.BackupTag != "" {
		record, err := findOne(ctx, conn, api.FindRequest{BackupID: r.BackupID, BackupTag: r.BackupTag, Prefix: r.Prefix, KeyID: r.KeyID})
		if err != nil {
			return nil, err
		}
		p.EstimatedDataSize(record.Snapshot.Files, record.Snapshot.Bytes)
		if err := v.backup(ctx, record); err != nil {
			return nil, err
		}
		return v.result(), nil
	}
	entries, err := recordsOf(ctx, conn, r.KeyID, r.Prefix)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		record, err := conn.readRecord(ctx, e.ID)
		if errors.Is(err, manifest.ErrNotFound) {
			continue // deleted meanwhile
		} else if err != nil {
			return nil, err
		}
		if err := v.backup(ctx, record); err != nil {
			return nil, err
		}
	}
	return v.result(), nil
}

// verifier checks backups one after the other, and what they share once.
type verifier struct {
	rep      repo.Repository
	creds    *api.Credentials
	percent  int
	progress *progress
	limit    *throttle
	// good are the objects that were found right, directories with all that is below them.
	good set

	backups, files, bytes, readFiles, readBytes atomic.Int64

	mu       sync.Mutex
	count    int64
	problems []string
}

func (v *verifier) result() *api.Result {
	return &api.Result{Verify: &api.VerifyResult{
		Backups: v.backups.Load(), Files: v.files.Load(), Bytes: v.bytes.Load(),
		ReadFiles: v.readFiles.Load(), ReadBytes: v.readBytes.Load(), ProblemCount: v.count, Problems: v.problems,
	}}
}

// branch is a directory of which some part is still being checked.
type branch struct {
	up   *branch
	key  string
	refs atomic.Int32
	bad  atomic.Bool // something below is
}

// release ends one part of a branch; the last one makes it known as good, if it is.
func (v *verifier) release(b *branch) {
	for ; b != nil && b.refs.Add(-1) == 0; b = b.up {
		switch {
		case !b.bad.Load():
			v.good.add(b.key)
		case b.up != nil:
			b.up.bad.Store(true)
		}
	}
}

func (v *verifier) backup(ctx context.Context, record api.Record) error {
	v.backups.Add(1)
	c := &check{verifier: v, backup: record.BackupID}
	var man snapshot.Manifest
	_, err := v.rep.GetManifest(ctx, manifest.ID(record.Snapshot.ID), &man)
	switch {
	case errors.Is(err, manifest.ErrNotFound):
		return c.problem(ctx, nil, record.AbsolutePath, errors.New("its snapshot is gone"))
	case err != nil:
		return fmt.Errorf("verify backup %s: %w", record.BackupID, err)
	}
	root, err := storedRoot(record.Snapshot.RootObject, record.Snapshot.Root)
	if err == nil && (man.RootEntry == nil || man.RootEntry.ObjectID != root.ObjectID) {
		err = errors.New("its snapshot has another root")
	}
	if err != nil {
		return c.problem(ctx, nil, record.AbsolutePath, err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(askParallel)
	walkErr := c.entry(ctx, group, nil, record.AbsolutePath, root)
	if err := cmp.Or(group.Wait(), walkErr); err != nil {
		return fmt.Errorf("verify backup %s: %w", record.BackupID, err)
	}
	return nil
}

// check is the verification of one backup.
type check struct {
	*verifier
	backup string
}

// entry checks one entry; files beside each other.
func (c *check) entry(ctx context.Context, group *errgroup.Group, up *branch, where string, e *snapshot.DirEntry) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	key := fmt.Sprint(e.Type, e.ObjectID, e.FileSize)
	if c.good.has(key) {
		return nil
	}
	if up != nil {
		up.refs.Add(1)
	}
	switch e.Type {
	case snapshot.EntryTypeDirectory:
		return c.directory(ctx, group, &branch{up: up, key: key}, where, e)
	case snapshot.EntryTypeFile, snapshot.EntryTypeSymlink:
		group.Go(func() error {
			defer c.release(up)
			read, err := c.object(ctx, e)
			if err != nil {
				return c.problem(ctx, up, where, err)
			}
			if isNew, _ := c.good.add(key); isNew { // not by another of its names meanwhile
				c.counted(e, read)
			}
			return nil
		})
		return nil
	default:
		defer c.release(up)
		return c.problem(ctx, up, where, fmt.Errorf("entry of unknown kind %q", e.Type))
	}
}

func (c *check) directory(ctx context.Context, group *errgroup.Group, b *branch, where string, e *snapshot.DirEntry) error {
	b.refs.Store(1)
	defer c.release(b)
	for up := b.up; up != nil; up = up.up {
		if up.key == b.key {
			return c.problem(ctx, b, where, untrusted("the snapshot's %s holds itself", where))
		}
	}
	entries, _, err := readEntries(ctx, c.rep, e)
	if err != nil {
		return c.problem(ctx, b, where, err)
	}
	names := map[string]bool{}
	for _, child := range entries {
		name, err := decodeName(child.Name)
		if err == nil && names[name] {
			err = untrusted("the snapshot holds the name %q twice in %s", name, where)
		}
		names[name] = true
		if err != nil {
			err = c.problem(ctx, b, where, err)
		} else {
			err = c.entry(ctx, group, b, path.Join(where, name), child)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// counted counts an object that was found right.
func (c *check) counted(e *snapshot.DirEntry, read bool) {
	if read {
		c.readFiles.Add(1)
	}
	if e.Type == snapshot.EntryTypeFile {
		c.files.Add(1)
		c.bytes.Add(e.FileSize)
		c.progress.files.Add(1)
		c.progress.bytes.Add(e.FileSize)
	}
}

// object looks for the contents of a file or link, and reads some to the end.
func (c *check) object(ctx context.Context, e *snapshot.DirEntry) (read bool, err error) {
	if _, err := c.rep.VerifyObject(ctx, e.ObjectID); err != nil {
		return false, err
	}
	if rand.IntN(100) >= c.percent {
		return false, nil
	}
	return true, c.read(ctx, e)
}

func (c *check) read(ctx context.Context, e *snapshot.DirEntry) error {
	reader, err := c.rep.OpenObject(ctx, e.ObjectID)
	if err != nil {
		return err
	}
	defer reader.Close()
	buffer := pieceBuffers.Get().(*[pieceBytes]byte)
	defer pieceBuffers.Put(buffer)
	var size int64
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := reader.Read(buffer[:])
		size += int64(n)
		c.readBytes.Add(int64(n))
		c.progress.downloaded.Add(int64(n))
		if err := c.limit.wait(n); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if e.Type == snapshot.EntryTypeFile && size != e.FileSize {
		return fmt.Errorf("the repository holds %d bytes of %d", size, e.FileSize)
	}
	return nil
}

// problem notes what is wrong with a backup. What says nothing about the backup, but
// that it could not be looked at, is returned.
func (c *check) problem(ctx context.Context, b *branch, where string, err error) error {
	if !damage(ctx, err, c.creds.URL) {
		return fmt.Errorf("%s: %w", where, err)
	}
	if b != nil {
		b.bad.Store(true)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count++
	if len(c.problems) < namedProblems {
		c.problems = append(c.problems, scrub(fmt.Sprintf("backup %s: %s: %v", c.backup, where, err), c.creds.Password))
	}
	return nil
}

// damage says whether an error is of the data, not of the way to it.
func damage(ctx context.Context, err error, server string) bool {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return true // what was read has an end too early
	}
	switch code, _ := classify(ctx, err, server); code {
	case api.CodeCancelled, api.CodeServerUnreachable, api.CodeServerUntrusted, api.CodeAccessDenied:
		return false
	case api.CodeStorage:
		text := strings.ToLower(err.Error())
		return strings.Contains(text, "not found") || strings.Contains(text, "invalid blob offset")
	default:
		return true
	}
}
