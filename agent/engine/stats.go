// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/snapshot"
	"golang.org/x/sync/errgroup"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// askParallel questions about contents are under way at once: each is a short way
// to the server and back.
const askParallel = 8

// indexPrefix begins the ids of contents that only list a large object's others.
const indexPrefix = "x"

// statsOf measures a backup.
func statsOf(ctx context.Context, conn *connection, r api.StatsRequest, p *progress) (*api.Result, error) {
	mode := cmp.Or(r.Mode, api.StatsRestoreSize)
	if !slices.Contains(api.StatsModes, mode) {
		return nil, &api.Problem{Code: api.CodeBadRequest, Title: fmt.Sprintf("measure backup: mode %q is not one of %v", mode, api.StatsModes)}
	}
	record, err := findOne(ctx, conn, api.FindRequest{BackupID: r.BackupID, BackupTag: r.BackupTag, Prefix: r.Prefix, KeyID: r.KeyID})
	if err != nil {
		return nil, err
	}
	root, err := storedRoot(record.Snapshot.RootObject, record.Snapshot.Root)
	if err != nil {
		return nil, err
	}
	p.EstimatedDataSize(record.Snapshot.Files, record.Snapshot.Bytes)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(askParallel)
	m := &measure{rep: conn.rep, mode: mode, progress: p}
	walkErr := m.walk(ctx, group, root)
	if err := cmp.Or(group.Wait(), walkErr); err != nil {
		return nil, fmt.Errorf("measure backup %s: %w", record.BackupID, err)
	}
	return &api.Result{Stats: &api.StatsResult{Mode: mode, Files: m.files.Load(), Bytes: m.bytes.Load()}}, nil
}

// measure counts one tree in one mode.
type measure struct {
	rep      repo.Repository
	mode     api.StatsMode
	progress *progress

	files, bytes atomic.Int64
	// objects (or inodes) and contents that were counted.
	objects, contents set
}

var errTooMany = &api.Problem{
	Code:  api.CodeUnsupported,
	Title: fmt.Sprintf("measure backup: it has more than %d distinct files or contents", maxDistinct),
	Hint:  "ask for the mode restore-size",
}

func (m *measure) walk(ctx context.Context, group *errgroup.Group, root *snapshot.DirEntry) error {
	return walk(ctx, m.rep, root, "/", extra{}, func(_ string, e *snapshot.DirEntry, x extra) (bool, error) {
		isFile := e.Type == snapshot.EntryTypeFile && e.Name != extrasName
		if isFile {
			m.progress.files.Add(1)
			m.progress.bytes.Add(e.FileSize)
		}
		if m.mode == api.StatsRestoreSize {
			m.restored(isFile, e, x)
			return true, nil
		}
		// What is below a directory that was met before was counted there.
		isNew, full := m.objects.add(e.ObjectID.String())
		switch {
		case full:
			return false, errTooMany
		case !isNew:
			return false, nil
		case isFile && m.mode == api.StatsFilesByContents:
			m.files.Add(1)
			m.bytes.Add(e.FileSize)
		case isFile && m.mode == api.StatsBlobsPerFile, m.mode == api.StatsRawData:
			group.Go(func() error { return m.count(ctx, e) })
		}
		return true, nil
	})
}

// restored counts an entry as a restore writes it. Of more names than a set holds,
// some count twice.
func (m *measure) restored(isFile bool, e *snapshot.DirEntry, x extra) {
	if !isFile {
		return
	}
	m.files.Add(1)
	if file := x.file(e); file != "" {
		if isNew, _ := m.objects.add(file); !isNew {
			return
		}
	}
	m.bytes.Add(e.FileSize)
}

// count counts the contents of one object.
func (m *measure) count(ctx context.Context, e *snapshot.DirEntry) error {
	ids, err := m.rep.VerifyObject(ctx, e.ObjectID)
	if err != nil {
		return fmt.Errorf("look for the contents of %s: %w", e.ObjectID, err)
	}
	own, size := map[content.ID]bool{}, int64(0)
	for _, id := range ids {
		switch {
		case own[id], m.mode == api.StatsBlobsPerFile && id.Prefix() == indexPrefix:
			continue
		}
		own[id] = true
		if m.mode == api.StatsRawData {
			isNew, full := m.contents.add(id.String())
			if full {
				return errTooMany
			}
			if !isNew {
				continue
			}
		}
		info, err := m.rep.ContentInfo(ctx, id)
		if err != nil {
			return fmt.Errorf("look for content %s: %w", id, err)
		}
		if m.mode == api.StatsRawData {
			m.files.Add(1)
			m.bytes.Add(int64(info.PackedLength))
		}
		size += int64(info.OriginalLength)
	}
	if m.mode == api.StatsBlobsPerFile && size > 0 { // an empty file has no content
		m.files.Add(1)
		m.bytes.Add(size)
	}
	return nil
}
