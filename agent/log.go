// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"io"
	"log/slog"
	"sync"
	"time"
)

// Log is where an agent's log goes. Callers find the agent's identity in it, but a kubelet
// shows only the newest of the files that it cuts a log into. So the identity is repeated:
// among much else that is logged, and to whoever comes, who may have found none.
type Log struct {
	out io.Writer
	now func() time.Time

	mu     sync.Mutex // protects the following, and is held while out is written to
	spki   string     // "" before it is known
	said   time.Time  // when it was last logged
	behind int        // bytes logged since
}

const (
	// identityEvery is well below the 1 MiB that callers read of a file from its beginning.
	identityEvery = 256 << 10
	// identityPause bounds what somebody in the pod who comes again and again can have
	// logged. It is well below the time that a caller tries for.
	identityPause = 5 * time.Second
)

// NewLog returns a log that goes to out.
func NewLog(out io.Writer, now func() time.Time) *Log { return &Log{out: out, now: now} }

// Write implements io.Writer; it is called with whole lines.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, err := l.out.Write(p)
	if l.behind += n; l.behind >= identityEvery {
		l.identify()
	}
	return n, err
}

// introduce logs the identity, from now on again and again.
func (l *Log) introduce(spki string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spki = spki
	l.identify()
}

// met logs the identity to somebody who comes, unless it was logged just now.
func (l *Log) met() {
	l.mu.Lock()
	defer l.mu.Unlock()
	// A clock that was set back makes no pause longer.
	if since := l.now().Sub(l.said); since < 0 || since >= identityPause {
		l.identify()
	}
}

// identify logs the identity. The lock is held.
func (l *Log) identify() {
	if l.spki == "" {
		return
	}
	l.said, l.behind = l.now(), 0
	slog.New(slog.NewJSONHandler(l.out, nil)).Info(IdentityMessage, IdentityAttribute, l.spki)
}
