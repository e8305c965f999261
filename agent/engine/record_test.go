// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"strings"
	"testing"
	"time"

	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// A record vouches for no snapshot whose root cannot be read.
func TestRecordChecksRoot(t *testing.T) {
	const directory, file, link = snapshot.EntryTypeDirectory, snapshot.EntryTypeFile, snapshot.EntryTypeSymlink
	for name, c := range map[string]struct {
		kind  snapshot.EntryType
		size  int64
		holds string
		want  string
	}{
		"directory":       {directory, 0, `{"stream":"kopia:directory","entries":[`, ""},
		"file":            {file, 4, "text", ""},
		"empty file":      {file, 0, "", ""},
		"link":            {link, 4, "text", ""},
		"not there":       {directory, 0, "-", "object not found"},
		"file, not there": {file, 0, "-", "object not found"},
		"empty directory": {directory, 0, "", "unexpected EOF"},
		"cut directory":   {directory, 0, `{"stream":`, "unexpected EOF"},
		"no directory":    {directory, 0, `{"stream":"kopia:indirect"}`, "no directory"},
		"noise":           {directory, 0, "noise", "invalid character"},
		"cut file":        {file, 4, "", "unexpected EOF"},
		"masked":          {file, 4, `{"stream":"kopia:directory","entries":[`, "is a directory"},
		"unknown":         {"", 0, "text", "unknown kind"},
	} {
		rep, called := &stored{objects: map[string][]byte{}}, storedID(1)
		if c.kind != directory && name != "masked" {
			called = strings.TrimPrefix(called, "k")
		}
		if c.holds != "-" {
			rep.objects[called] = []byte(c.holds)
		}
		id, err := object.ParseID(called)
		if err != nil {
			t.Fatal(err)
		}
		err = checkRoot(t.Context(), rep, &snapshot.DirEntry{Type: c.kind, ObjectID: id, FileSize: c.size})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err != nil && !damage(t.Context(), err, "") {
			t.Errorf("%s: %v is taken for a server that cannot be reached", name, err)
		}
	}
}

// What maintenance may collect becomes no backup any more.
func TestRecordInTime(t *testing.T) {
	if err := recordable(api.RecordWithin); err != nil {
		t.Errorf("in time: %v", err)
	}
	if err := recordable(api.RecordWithin + time.Minute); code(err) != api.CodeConflict || !strings.Contains(err.Error(), "back up again") {
		t.Errorf("too late: %v", err)
	}
}
