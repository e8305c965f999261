// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	kopiafs "github.com/kopia/kopia/fs"
)

// A file with holes reads as any file, from any place, and nobody reads its holes.
func TestReadHoles(t *testing.T) {
	dir, s := testVolume(t)
	random := rand.New(rand.NewPCG(1, 2))
	noise := rand.NewChaCha8([32]byte{7})
	for range 20 {
		file := filepath.Join(dir, "f")
		f, err := os.Create(file)
		must(t, err)
		size := random.Int64N(4 << 20)
		written := int64(0)
		for range random.IntN(4) {
			part := make([]byte, random.IntN(200<<10))
			_, _ = noise.Read(part)
			_, err := f.WriteAt(part, random.Int64N(size+1))
			must(t, err)
			written += int64(len(part))
		}
		info, err := f.Stat()
		must(t, err)
		must(t, f.Truncate(max(size, info.Size()))) // a hole at its end, or not
		must(t, f.Close())
		want, err := os.ReadFile(file)
		must(t, err)

		e, err := s.entry("/f")
		must(t, err)
		reader, err := e.(kopiafs.File).Open(t.Context())
		must(t, err)
		for _, from := range []int64{0, random.Int64N(int64(len(want)) + 1), int64(len(want)), int64(len(want)) + 5} {
			_, err = reader.Seek(from, io.SeekStart)
			must(t, err)
			got, err := io.ReadAll(reader)
			must(t, err)
			if !bytes.Equal(got, want[min(from, int64(len(want))):]) {
				t.Fatalf("from %d of %d: %d bytes that differ", from, len(want), len(got))
			}
		}
		r := reader.(*sourceReader)
		if r.extents == nil {
			if int64(len(want)) > 2*written+1<<20 {
				t.Errorf("%d bytes of %d were written, and it is not taken for a file with holes", written, len(want))
			}
			must(t, reader.Close())
			continue
		}
		if at, err := reader.Seek(-3, io.SeekEnd); err != nil && len(want) >= 3 || err == nil && at != int64(len(want))-3 {
			t.Errorf("three before the end is %d, %v", at, err)
		}
		_, err = reader.Seek(0, io.SeekStart)
		must(t, err)
		fromDisk, buffer := int64(0), make([]byte, 64<<10)
		for {
			_, err := reader.Read(buffer)
			fromDisk += r.extents.read
			if err == io.EOF {
				break
			}
			must(t, err)
		}
		if most := written + 4*8192; fromDisk > most { // a file system rounds to its blocks
			t.Errorf("%d bytes were read of a file with %d", fromDisk, written)
		}
		must(t, reader.Close())
	}
}
