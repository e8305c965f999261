// SPDX-License-Identifier: Apache-2.0

package kopia

import (
	"context"
	"log/slog"
	"slices"

	"github.com/kopia/kopia/repo/logging"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// logger passes what Kopia logs on to ours.
func logger(to *slog.Logger) logging.LoggerFactory {
	return func(module string) logging.Logger {
		return zap.New(&core{to: to.With("kopia", module)}).Sugar()
	}
}

// WithLog is a context in which the library logs to a logger.
func WithLog(ctx context.Context, to *slog.Logger) context.Context {
	return logging.WithLogger(ctx, logger(to))
}

type core struct {
	to     *slog.Logger
	fields []zapcore.Field
}

func level(l zapcore.Level) slog.Level {
	switch {
	case l < zapcore.InfoLevel:
		return slog.LevelDebug
	case l < zapcore.WarnLevel:
		return slog.LevelInfo
	case l < zapcore.ErrorLevel:
		return slog.LevelWarn
	default:
		return slog.LevelError
	}
}

// Enabled implements zapcore.LevelEnabler.
func (c *core) Enabled(l zapcore.Level) bool { return c.to.Enabled(context.Background(), level(l)) }

// With implements zapcore.Core.
func (c *core) With(fields []zapcore.Field) zapcore.Core {
	return &core{to: c.to, fields: append(slices.Clone(c.fields), fields...)}
}

// Check implements zapcore.Core.
func (c *core) Check(e zapcore.Entry, to *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return to.AddCore(e, c)
	}
	return to
}

// Write implements zapcore.Core.
func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	encoder := zapcore.NewMapObjectEncoder()
	for _, f := range append(slices.Clone(c.fields), fields...) {
		f.AddTo(encoder)
	}
	var attributes []any
	for k, v := range encoder.Fields {
		attributes = append(attributes, k, v)
	}
	c.to.Log(context.Background(), level(e.Level), e.Message, attributes...)
	return nil
}

// Sync implements zapcore.Core.
func (c *core) Sync() error { return nil }
