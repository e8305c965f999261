// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// dataSet is what is backed up: the same bytes in every run of the same scale.
type dataSet struct {
	name, about string
	files, dirs int
	// size of one file, from and to.
	from, to int64
	text     bool
	// repeat is after how many bytes the content of a file begins anew; 0: never.
	repeat int64
	// extra sets are for memory, and take long: only their names choose them.
	extra bool
}

const mib = 1 << 20

// dataSets at a scale: the number of the small files and the size of the large ones.
func dataSets(scale float64) []dataSet {
	small := max(200, int(20000*scale))
	large := max(mib, int64(512*mib*scale))
	return []dataSet{
		{name: "small", about: "files of 1 to 16 KiB, incompressible", files: small, dirs: max(2, small/100), from: 1 << 10, to: 16 << 10},
		{name: "random", about: "large files, incompressible", files: 4, dirs: 1, from: large, to: large},
		{name: "text", about: "large files, lines of a log", files: 4, dirs: 1, from: large, to: large, text: true},
		{name: "many", about: "files of 1 KiB at most", files: 10 * small, dirs: max(2, small/50), from: 1, to: 1 << 10, extra: true},
		{name: "huge", about: "file whose content repeats every 64 MiB", files: 1, dirs: 1, from: 32 * large, to: 32 * large, repeat: 64 * mib, extra: true},
	}
}

// large says that it has few files and many bytes.
func (d dataSet) large() bool { return d.files < 100 }

func (d dataSet) file(i int) string {
	if d.dirs == 1 {
		return fmt.Sprintf("file-%d", i)
	}
	return filepath.Join(fmt.Sprintf("dir-%03d", i%d.dirs), fmt.Sprintf("file-%05d", i))
}

// noise is deterministic: the same for the same file and the same generation of it.
func (d dataSet) noise(i, generation int) (*rand.ChaCha8, *rand.Rand) {
	var seed [32]byte
	copy(seed[:], fmt.Sprintf("%s %d %d", d.name, i, generation))
	source := rand.NewChaCha8(seed)
	return source, rand.New(source)
}

// make writes the data set into an empty folder and returns its size.
func (d dataSet) make(root string) (total int64, err error) {
	for i := range d.dirs {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, d.file(i))), 0o755); err != nil {
			return 0, err
		}
	}
	for i := range d.files {
		size, err := d.write(filepath.Join(root, d.file(i)), i, 0)
		if err != nil {
			return 0, err
		}
		total += size
	}
	return total, nil
}

// write makes one file.
func (d dataSet) write(path string, i, generation int) (size int64, err error) {
	source, random := d.noise(i, 0)
	// The size is that of generation 0: a changed file stays as long as it was.
	size = d.from + random.Int64N(d.to-d.from+1)
	if generation > 0 {
		source, random = d.noise(i, generation)
	}
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return size, d.fill(f, size, source, random)
}

func (d dataSet) fill(w io.Writer, size int64, source io.Reader, random *rand.Rand) error {
	if d.text {
		source = &logLines{random: random}
	}
	if d.repeat > 0 {
		content := make([]byte, min(size, d.repeat))
		if _, err := io.ReadFull(source, content); err != nil {
			return err
		}
		source = &again{content: content}
	}
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, io.LimitReader(source, size), make([]byte, mib))
	return err
}

// change changes 1 %: every hundredth small file is written anew; in each large
// file, four pieces of a quarter of a percent.
func (d dataSet) change(root string) error {
	for i := range d.files {
		path := filepath.Join(root, d.file(i))
		if !d.large() {
			if i%100 == 0 {
				if _, err := d.write(path, i, 1); err != nil {
					return err
				}
			}
			continue
		}
		if err := d.changePieces(path, i); err != nil {
			return err
		}
	}
	return nil
}

func (d dataSet) changePieces(path string, i int) (err error) {
	const pieces = 4
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	source, random := d.noise(i, 1)
	for p := range int64(pieces) {
		length := d.to / (100 * pieces)
		at := d.to/pieces*p + random.Int64N(d.to/pieces-length)
		if err := d.fill(io.NewOffsetWriter(f, at), length, source, random); err != nil {
			return err
		}
	}
	return nil
}

// again reads the same again and again.
type again struct {
	content []byte
	at      int
}

func (a *again) Read(p []byte) (int, error) {
	n := copy(p, a.content[a.at:])
	a.at = (a.at + n) % len(a.content)
	return n, nil
}

// logLines are endless lines as a web service writes them.
type logLines struct {
	random *rand.Rand
	at     time.Duration
	line   []byte
	left   []byte
}

var (
	levels = []string{"INFO", "INFO", "INFO", "INFO", "DEBUG", "DEBUG", "WARN", "ERROR"}
	routes = []string{"/api/v1/orders", "/api/v1/orders/items", "/api/v1/customers", "/healthz", "/login", "/static/app.js", "/api/v1/search", "/metrics"}
	logDay = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

func (l *logLines) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if len(l.left) == 0 {
			l.next()
		}
		c := copy(p[n:], l.left)
		l.left, n = l.left[c:], n+c
	}
	return n, nil
}

func (l *logLines) next() {
	r := l.random.Uint64()
	l.at += time.Duration(r % 5_000_000)
	b := logDay.Add(l.at).AppendFormat(l.line[:0], "2006-01-02T15:04:05.000000Z ")
	b = append(b, levels[r>>8%8]...)
	b = append(b, " request path="...)
	b = append(b, routes[r>>16%8]...)
	b = append(b, " client=10.2."...)
	b = strconv.AppendUint(b, r>>24%16, 10)
	b = append(b, '.')
	b = strconv.AppendUint(b, r>>28%256, 10)
	b = append(b, " took="...)
	b = strconv.AppendUint(b, r>>36%4096, 10)
	b = append(b, "us trace="...)
	b = strconv.AppendUint(b, l.random.Uint64()>>16, 16)
	l.line = append(b, '\n')
	l.left = l.line
}

// sameTree compares the entries and contents of two folders.
func sameTree(want, got string) error {
	var c comparer
	count := func(root string, visit func(rel string, d fs.DirEntry) error) (n int, err error) {
		err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			n++
			rel, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			return visit(rel, d)
		})
		return n, err
	}
	wanted, err := count(want, func(rel string, d fs.DirEntry) error {
		info, err := os.Lstat(filepath.Join(got, rel))
		if err != nil {
			return err
		}
		if info.Mode().Type() != d.Type() {
			return fmt.Errorf("%s is %s instead of %s", rel, info.Mode().Type(), d.Type())
		}
		if d.IsDir() {
			return nil
		}
		return c.sameFile(filepath.Join(want, rel), filepath.Join(got, rel))
	})
	if err != nil {
		return err
	}
	have, err := count(got, func(string, fs.DirEntry) error { return nil })
	if err == nil && have != wanted {
		err = fmt.Errorf("%d entries instead of %d", have, wanted)
	}
	return err
}

// onlyFile compares the one file below a folder with another file.
func onlyFile(want, root string) error {
	var found []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	if len(found) != 1 {
		return fmt.Errorf("%d files instead of one", len(found))
	}
	var c comparer
	return c.sameFile(want, found[0])
}

// comparer keeps its buffers from one file to the next.
type comparer struct{ want, got *bufio.Reader }

func (c *comparer) sameFile(want, got string) error {
	w, err := os.Open(want)
	if err != nil {
		return err
	}
	defer w.Close()
	g, err := os.Open(got)
	if err != nil {
		return err
	}
	defer g.Close()
	if c.want == nil {
		c.want, c.got = bufio.NewReaderSize(nil, mib), bufio.NewReaderSize(nil, mib)
	}
	c.want.Reset(w)
	c.got.Reset(g)
	for at := int64(0); ; {
		a, errA := c.want.Peek(mib)
		b, errB := c.got.Peek(mib)
		if !bytes.Equal(a, b) {
			return fmt.Errorf("%s differs from %s after byte %d", got, want, at)
		}
		if errA != nil || errB != nil {
			if errA == io.EOF && errB == io.EOF {
				return nil
			}
			return errors.Join(errA, errB)
		}
		at += int64(len(a))
		_, _ = c.want.Discard(len(a))
		_, _ = c.got.Discard(len(b))
	}
}

// sizeOf is the size of the files below a folder.
func sizeOf(root string) (total int64, err error) {
	err = filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	return total, err
}
