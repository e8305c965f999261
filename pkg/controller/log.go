// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"io"
	"log/slog"
	"strings"
)

// newLog writes JSON lines as Kanister's: levels in lower case, and where a line was
// written as Function, File and Line. level is Kanister's LOG_LEVEL; what it does not
// know is info.
func newLog(w io.Writer, level string) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{
		AddSource: true,
		Level:     levelOf(level),
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) > 0 {
				return a
			}
			switch a.Key {
			case slog.LevelKey:
				if l, ok := a.Value.Any().(slog.Level); ok {
					return slog.String(slog.LevelKey, levelName(l))
				}
			case slog.SourceKey:
				if s, ok := a.Value.Any().(*slog.Source); ok {
					// A group without a name: its fields stand beside the others.
					return slog.Group("", "Function", s.Function, "File", s.File, "Line", s.Line)
				}
			}
			return a
		},
	}))
}

// levelOf knows the names that Kanister knows.
func levelOf(name string) slog.Level {
	switch strings.ToLower(name) {
	case "trace", "debug":
		return slog.LevelDebug
	case "warn", "warning":
		return slog.LevelWarn
	case "error", "fatal", "panic":
		return slog.LevelError
	default:
		return slog.LevelInfo
	}
}

func levelName(l slog.Level) string {
	if l == slog.LevelWarn {
		return "warning"
	}
	return strings.ToLower(l.String())
}
