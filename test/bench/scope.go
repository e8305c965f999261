// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
)

// scope stands in for a test: what package testenv starts for it ends with it. It
// has the methods that testenv calls and no others.
type scope struct {
	testing.TB
	ctx      context.Context
	dir      string
	failed   bool
	cleanups []func()
}

// fatal is how a scope's Fatal reaches within.
type fatal struct{ error }

// within runs do with a new folder below dir and ends all that it started.
func within(ctx context.Context, dir string, do func(*scope) error) (err error) {
	s := &scope{ctx: ctx, dir: dir}
	defer func() {
		if r := recover(); r != nil {
			f, ok := r.(fatal)
			if !ok {
				s.end()
				panic(r)
			}
			err = f.error
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		s.failed = err != nil && ctx.Err() == nil
		s.end()
	}()
	return do(s)
}

func (s *scope) end() {
	for i := len(s.cleanups) - 1; i >= 0; i-- {
		s.cleanups[i]()
	}
	s.cleanups = nil
}

func (s *scope) Helper()                  {}
func (s *scope) Context() context.Context { return s.ctx }
func (s *scope) Cleanup(f func())         { s.cleanups = append(s.cleanups, f) }
func (s *scope) Failed() bool             { return s.failed }
func (s *scope) Log(args ...any)          { fmt.Fprintln(os.Stderr, args...) }
func (s *scope) Fatal(args ...any)        { panic(fatal{errors.New(fmt.Sprint(args...))}) }

func (s *scope) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func (s *scope) Fatalf(format string, args ...any) { panic(fatal{fmt.Errorf(format, args...)}) }

func (s *scope) TempDir() string {
	dir, err := os.MkdirTemp(s.dir, "run-")
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
