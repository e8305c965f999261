// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"sync"

	"github.com/kopia/kopia/repo/logging"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// logTail keeps the last warnings and errors that Kopia logged: often the only
// place where it says what went wrong.
type logTail struct {
	secrets []string
	denied  func(error) // called when the server does not let us in any more
	mu      sync.Mutex
	lines   []string
}

const tailLines = 5

func newLogTail(secrets ...string) *logTail {
	return &logTail{secrets: secrets, denied: func(error) {}}
}

func (t *logTail) context(ctx context.Context) context.Context {
	encoder := zapcore.NewConsoleEncoder(zapcore.EncoderConfig{MessageKey: "m"})
	loud := zapcore.NewCore(encoder, t, zapcore.WarnLevel)
	all := zap.New(loud).Sugar()
	connection := zap.New(zapcore.NewTee(loud, zapcore.NewCore(encoder, denials{t}, zapcore.DebugLevel))).Sugar()
	return logging.WithLogger(ctx, func(module string) logging.Logger {
		if module == connectionModule {
			return connection
		}
		return all
	})
}

// connectionModule is Kopia's name of what speaks to a server, and streamEnded what
// it says, at its lowest level, when a stream has ended.
const (
	connectionModule = "kopia/repo"
	streamEnded      = "GRPC stream read loop terminated with "
)

// denials sees a server that does not let us in. To Kopia's reads it looks like one
// that went away, which is waited for.
type denials struct{ *logTail }

func (d denials) Write(p []byte) (int, error) {
	line := scrub(strings.TrimSpace(string(p)), d.secrets...)
	if reason, ok := strings.CutPrefix(line, streamEnded); ok && strings.Contains(reason, "code = Unauthenticated") {
		d.denied(errors.New(reason))
	}
	return len(p), nil
}

// Write implements zapcore.WriteSyncer: one line a call.
func (t *logTail) Write(p []byte) (int, error) {
	line := scrub(strings.TrimSpace(string(p)), t.secrets...)
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := len(t.lines); line != "" && (n == 0 || t.lines[n-1] != line) {
		t.lines = append(t.lines, line)
		t.lines = t.lines[max(0, len(t.lines)-tailLines):]
	}
	return len(p), nil
}

// Sync implements zapcore.WriteSyncer.
func (t *logTail) Sync() error { return nil }

func (t *logTail) tail() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]string(nil), t.lines...)
}

var (
	userInfo = regexp.MustCompile(`://[^/@\s]+@`)
	keyValue = regexp.MustCompile(`(?i)((?:password|secret|token)["']?\s*[:=]\s*)["']?[^\s"',}]+`)
)

// scrub takes the given secrets, and what looks like one, out of a text.
func scrub(text string, secrets ...string) string {
	for _, s := range secrets {
		if s != "" {
			text = strings.ReplaceAll(text, s, "[hidden]")
		}
	}
	text = userInfo.ReplaceAllString(text, "://[hidden]@")
	text = keyValue.ReplaceAllString(text, "${1}[hidden]")
	if const1k := 1000; len(text) > const1k {
		text = text[:const1k] + "…"
	}
	return text
}
