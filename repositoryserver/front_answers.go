// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"
)

// mostUntaken is far more than any operation leaves of Kopia's answers, in bytes.
const mostUntaken = 8 << 20

// answers are what Kopia says, taken from it at once, for a client who takes it when he
// likes. untaken counts what the streams of his session have of it; when that is too much,
// over is called and there is no more.
type answers struct {
	body    io.ReadCloser
	untaken *atomic.Int64
	// unanswered is told of each request's last answer.
	unanswered *unanswered
	over       func()

	mu   sync.Mutex // protects the following
	more sync.Cond
	kept bytes.Buffer
	err  error // behind what is kept
}

func newAnswers(body io.ReadCloser, untaken *atomic.Int64, unanswered *unanswered, over func()) *answers {
	a := &answers{body: body, untaken: untaken, unanswered: unanswered, over: over}
	a.more.L = &a.mu
	go a.take() // ends with the body
	return a
}

var errUntaken = errors.New("the client does not take its answers")

func (a *answers) take() {
	in := bufio.NewReaderSize(io.TeeReader(a.body, writer(a.keep)), 32<<10)
	var err error
	for err == nil {
		err = a.answer(in)
	}
	a.mu.Lock()
	if a.err == nil {
		a.err = err
	}
	a.more.Broadcast()
	a.mu.Unlock()
	if errors.Is(err, errUntaken) {
		a.over()
	}
}

// moreFollows says in an answer that another one to the same request does.
const moreFollows = 3

// answer reads one, which is kept meanwhile.
func (a *answers) answer(in *bufio.Reader) error {
	m, err := nextMessage(in)
	if err != nil {
		return err
	}
	last := true
	for m.left > 0 {
		tag, n, err := m.field()
		if err != nil {
			return err
		}
		if tag&7 != protoVarint {
			if _, err := io.CopyN(io.Discard, m, int64(n)); err != nil {
				return err
			}
		} else if tag>>3 == moreFollows {
			last = n == 0
		}
	}
	if last {
		a.unanswered.done()
	}
	return nil
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// keep keeps what Kopia says until the client takes it.
func (a *answers) keep(p []byte) (int, error) {
	if a.untaken.Add(int64(len(p))) > mostUntaken {
		a.drop(len(p))
		return 0, errUntaken
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil { // it was closed
		a.drop(len(p))
		return 0, a.err
	}
	a.kept.Write(p)
	a.more.Broadcast()
	return len(p), nil
}

// drop gives up n bytes.
func (a *answers) drop(n int) { a.untaken.Add(-int64(n)) }

func (a *answers) Read(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.kept.Len() == 0 && a.err == nil {
		a.more.Wait()
	}
	if a.kept.Len() == 0 {
		return 0, a.err
	}
	n, _ := a.kept.Read(p)
	a.untaken.Add(-int64(n))
	if a.kept.Len() == 0 {
		a.kept = bytes.Buffer{} // one that was large stays so
	}
	return n, nil
}

func (a *answers) Close() error {
	a.mu.Lock()
	if a.err == nil {
		a.err = io.ErrClosedPipe
	}
	a.drop(a.kept.Len())
	a.kept = bytes.Buffer{}
	a.more.Broadcast()
	a.mu.Unlock()
	return a.body.Close()
}

// mostUnanswered requests of one session are on their way. Kopia works on few at once, of all
// sessions, and its library keeps in memory whatever comes before it does.
const mostUnanswered = 8

// unanswered are the requests of one stream that Kopia has heard and not answered.
type unanswered struct {
	room *semaphore.Weighted // of the session

	mu    sync.Mutex // protects the following
	n     int64
	ended bool
}

// add waits until one more may be.
func (u *unanswered) add(ctx context.Context) error {
	if err := u.room.Acquire(ctx, 1); err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ended {
		u.room.Release(1)
		return net.ErrClosed
	}
	u.n++
	return nil
}

func (u *unanswered) done() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.n > 0 {
		u.n--
		u.room.Release(1)
	}
}

// end gives up those that no answer will come to.
func (u *unanswered) end() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.room.Release(u.n)
	u.n, u.ended = 0, true
}
