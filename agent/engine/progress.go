// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kopia/kopia/snapshot/upload"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// progress counts what Kopia tells and reports it once a second: its callbacks
// come for every chunk, far too often for a pipe.
type progress struct {
	upload.NullUploadProgress
	now func() time.Time

	telling sync.Mutex // report is called by one at a time
	report  func(api.Progress)

	files, bytes, uploaded, downloaded atomic.Int64
	cachedFiles, estFiles, estBytes    atomic.Int64
	verified, entries                  atomic.Int64
	syncing                            atomic.Bool

	vanished atomic.Int64 // of the errors that Kopia counted, those of entries that were gone

	// enough is called when as many paths are known to be unreadable as an error names;
	// nil: nobody minds them.
	enough func()
	gaveUp atomic.Bool // enough was called

	mu         sync.Mutex
	unreadable paths // of all others
	failed     paths // the same, with their errors
}

func newProgress(now func() time.Time, report func(api.Progress)) *progress {
	return &progress{now: now, report: report}
}

// run reports until stop, and once more then.
func (p *progress) run() (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				p.tell()
				return
			case <-ticker.C:
				p.tell()
			}
		}
	})
	return func() { close(done); wg.Wait() }
}

func (p *progress) tell() {
	p.telling.Lock()
	defer p.telling.Unlock()
	p.report(p.snapshot())
}

func (p *progress) snapshot() api.Progress {
	return api.Progress{
		Files: p.files.Load(), Bytes: p.bytes.Load(),
		UploadedBytes: p.uploaded.Load(), DownloadedBytes: p.downloaded.Load(),
		EstimatedFiles: p.estFiles.Load(), EstimatedBytes: p.estBytes.Load(), Verified: p.verified.Load(),
		Entries: p.entries.Load(), Syncing: p.syncing.Load(),
	}
}

// sync waits for a volume's storage, and says so meanwhile: nothing moves, and it is not
// the repository server that is waited for.
func (p *progress) sync(wait func() error) error {
	p.syncing.Store(true)
	defer p.syncing.Store(false)
	p.tell()
	return wait()
}

// What follows implements upload.Progress.

// Enabled is false: Kopia would walk the tree a second time to estimate it, even
// where the previous snapshot tells as much.
func (p *progress) Enabled() bool { return false }

func (p *progress) CachedFile(name string, size int64) {
	if path.Base(name) == extrasName {
		return
	}
	p.cachedFiles.Add(1)
	p.files.Add(1)
	p.bytes.Add(size)
}

func (p *progress) HashedBytes(n int64) { p.bytes.Add(n) }

func (p *progress) FinishedHashingFile(name string, _ int64) {
	if path.Base(name) != extrasName {
		p.files.Add(1)
	}
}

func (p *progress) EstimatedDataSize(files, bytes int64) {
	p.estFiles.Store(files)
	p.estBytes.Store(bytes)
}

// Error is told of each error that Kopia counts, once.
func (p *progress) Error(where string, err error, _ bool) {
	if errors.Is(err, errVanished) {
		p.vanished.Add(1)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unreadable.add(where)
	p.failed.add(where + ": " + err.Error())
	if p.unreadable.count == namedPaths && p.enough != nil {
		p.gaveUp.Store(true)
		p.enough()
	}
}
