// SPDX-License-Identifier: Apache-2.0

package contents

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kopia/kopia/repo/content"
)

// Source is what contents are read from: Kopia's content.Reader.
type Source interface {
	GetContent(ctx context.Context, id content.ID) ([]byte, error)
}

const (
	// parallelReads of one stream.
	parallelReads = 4
	// writeTimeout is how long a client may leave an answer lying.
	writeTimeout = 2 * time.Minute
)

// Accept reads a stream's login.
func Accept(conn net.Conn) (Login, error) {
	defer deadline(conn)()
	l, err := readLogin(conn)
	if err != nil {
		return l, fmt.Errorf("read login: %w", err)
	}
	return l, nil
}

// Refuse answers a login that is not let in; ErrDenied and ErrBusy reach the client as
// such. The caller closes the connection.
func Refuse(conn net.Conn, why error) error {
	defer deadline(conn)()
	v := failed
	switch {
	case errors.Is(why, ErrDenied):
		v = denied
	case errors.Is(why, ErrBusy):
		v = busy
	}
	return answerLogin(conn, frame{verdict: v, body: text(why)})
}

func answerLogin(conn net.Conn, f frame) error {
	w := bufio.NewWriter(conn)
	if err := writeFrame(w, f); err != nil {
		return err
	}
	return w.Flush()
}

func text(err error) []byte {
	t := err.Error()
	return []byte(t[:min(len(t), maxText)])
}

// Serve lets a login in and answers the stream's requests until ctx or the connection
// ends, and closes it. slots bound the reads under way of all streams together; a stream
// that does not take its answers waits with a few of them, and keeps no other waiting.
func Serve(ctx context.Context, conn net.Conn, source Source, slots chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	defer conn.Close()
	var workers, writer sync.WaitGroup
	var ready atomic.Int64 // answers that are not written yet
	defer writer.Wait()
	answers := make(chan frame)
	defer close(answers)
	defer workers.Wait()
	defer cancel()

	if err := answerLogin(conn, frame{}); err != nil {
		return err
	}
	writer.Go(func() {
		w := bufio.NewWriterSize(conn, 64<<10)
		var err error
		for f := range answers { // to the end, whatever happens: readers wait for it
			if err != nil {
				continue
			}
			_ = conn.SetWriteDeadline(time.Now().Add(writeTimeout))
			// The last one of those that are ready sends them all.
			if err = writeFrame(w, f); err == nil && ready.Add(-1) == 0 {
				err = w.Flush()
			}
			if err != nil {
				cancel()
			}
		}
	})
	own := make(chan struct{}, parallelReads)
	r := bufio.NewReader(conn)
	for number := uint32(0); ; number++ {
		id, err := readID(r)
		if err != nil {
			return err
		}
		select {
		case own <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		workers.Go(func() {
			f := read(ctx, source, number, id)
			<-slots
			ready.Add(1)
			answers <- f
			<-own
		})
	}
}

func read(ctx context.Context, source Source, number uint32, id content.ID) frame {
	data, err := source.GetContent(ctx, id)
	switch {
	case err == nil:
		return frame{number: number, body: data}
	case errors.Is(err, content.ErrContentNotFound):
		return frame{number: number, verdict: notFound}
	default:
		return frame{number: number, verdict: failed, body: text(err)}
	}
}
