// SPDX-License-Identifier: Apache-2.0

package function

import (
	"context"
	"errors"
	"maps"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
)

func TestPodNames(t *testing.T) {
	set := &param.StatefulSetParams{Pods: []string{"db-0", "db-1"}}
	deployment := &param.DeploymentParams{Pods: []string{"web-a"}}
	for _, c := range []struct {
		name, list string
		params     param.TemplateParams
		want       []string
		workload   bool
	}{
		{"a list", " a\tb\n c  a ", param.TemplateParams{StatefulSet: set}, []string{"a", "b", "c"}, true},
		{"a StatefulSet's", "", param.TemplateParams{StatefulSet: set}, []string{"db-0", "db-1"}, true},
		{"a Deployment's first", " ", param.TemplateParams{StatefulSet: set, Deployment: deployment}, []string{"web-a"}, true},
		{"one without pods", "", param.TemplateParams{StatefulSet: &param.StatefulSetParams{}}, nil, true},
		{"none", "", param.TemplateParams{}, nil, false},
	} {
		if got, workload := podNames(c.list, c.params); !reflect.DeepEqual(got, c.want) || workload != c.workload {
			t.Errorf("%s: %q, %v; want %q, %v", c.name, got, workload, c.want, c.workload)
		}
	}
}

func TestPart(t *testing.T) {
	again := part("op", "db-0")
	if part("op", "db-0") != again || part("op", "db-0") == part("op", "db-1") || part("op", "db-0") == part("op2", "db-0") {
		t.Error("a part of an operation is not named by it and its name")
	}
	if id := part(strings.Repeat("x", 100), strings.Repeat("p", 253)) + "-recorded"; len(id) > 128 || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		t.Errorf("%q is no operation's id: %d characters", id, len(id))
	}
}

func TestEach(t *testing.T) {
	items := make([]int, 5*podsAtOnce)
	for i := range items {
		items[i] = i
	}
	var now, most atomic.Int32
	full, once := make(chan struct{}), sync.Once{}
	outcomes := each(t.Context(), items, func(i, item int) (int, error) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		if n == podsAtOnce {
			once.Do(func() { close(full) }) // nobody of the first ends before
		}
		<-full
		if item%2 == 1 {
			return 0, errors.New("odd")
		}
		return item, nil
	})
	if most.Load() != podsAtOnce {
		t.Errorf("%d at once, want %d", most.Load(), podsAtOnce)
	}
	for i, o := range outcomes {
		if (o.err != nil) != (i%2 == 1) || o.err == nil && o.value != i {
			t.Errorf("outcome %d: %+v", i, o)
		}
	}
	// A bug is one item's failure, and nobody else's end.
	for i, o := range each(t.Context(), []int{1, 0}, func(_, item int) (int, error) { return 1 / item, nil }) {
		if (o.err != nil) != (i == 1) {
			t.Errorf("one by %d: %+v", 1-i, o)
		}
	}
	// What did not begin does not begin after the end.
	why := errors.New("the end")
	ctx, cancel := context.WithCancelCause(t.Context())
	var begun atomic.Int32
	outcomes = each(ctx, items, func(int, int) (int, error) {
		if begun.Add(1) == podsAtOnce {
			cancel(why)
		}
		<-ctx.Done()
		return 0, context.Cause(ctx)
	})
	if begun.Load() != podsAtOnce {
		t.Errorf("%d began, want the first %d", begun.Load(), podsAtOnce)
	}
	for i, o := range outcomes {
		if !errors.Is(o.err, why) {
			t.Errorf("outcome %d: %v, want the context's cause", i, o.err)
		}
	}
}

func TestTotals(t *testing.T) {
	var last api.Progress
	totals := newTotals(2, func(p api.Progress) { last = p })
	totals.of(0)(api.Progress{Files: 1, Bytes: 10, UploadedBytes: 5, EstimatedBytes: 10, EstimatedFiles: 1})
	if want := (api.Progress{Files: 1, Bytes: 10, UploadedBytes: 5}); last != want {
		t.Errorf("%+v, want %+v: the whole is not known yet", last, want)
	}
	totals.of(1)(api.Progress{Files: 2, Bytes: 20, DownloadedBytes: 7, EstimatedBytes: 90, EstimatedFiles: 9})
	totals.of(1)(api.Progress{Files: 3, Bytes: 30, DownloadedBytes: 8, EstimatedBytes: 90, EstimatedFiles: 9})
	if want := (api.Progress{Files: 4, Bytes: 40, UploadedBytes: 5, DownloadedBytes: 8, EstimatedBytes: 100, EstimatedFiles: 10}); last != want {
		t.Errorf("%+v, want the sums %+v", last, want)
	}
}

func TestBackupInfo(t *testing.T) {
	const text = `{"db-0":{"PodName":"db-0","BackupID":"i0","BackupTag":"t0"},"db-1":{"PodName":"db-1","BackupID":"i1","BackupTag":"t1"}}`
	backups := map[string]podBackup{"db-1": {"db-1", "i1", "t1"}, "db-0": {"db-0", "i0", "t0"}}
	if got, err := encodeBackupInfo(backups); err != nil || got != text {
		t.Errorf("%s, %v; want %s", got, err, text)
	}
	if got, err := decodeBackupInfo(text); err != nil || !maps.Equal(got, backups) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestMatch(t *testing.T) {
	pod := func(name string, claims ...string) side { return side{name, claims} }
	for _, c := range []struct {
		name          string
		pods, backups []side
		ordinals      bool
		want          map[string]string
		err           []string
	}{
		{
			name: "by name",
			pods: []side{pod("db-0"), pod("db-1")}, backups: []side{pod("db-1"), pod("db-0"), pod("db-2")},
			want: map[string]string{"db-0": "db-0", "db-1": "db-1"},
		}, {
			name: "a Deployment's only pod, by volume",
			pods: []side{pod("web-new", "data", "logs")}, backups: []side{pod("web-old", "data")},
			want: map[string]string{"web-new": "web-old"},
		}, {
			name: "by volume, each its own",
			pods: []side{pod("a2", "x"), pod("b2", "y")}, backups: []side{pod("b1", "y"), pod("a1", "x")},
			want: map[string]string{"a2": "a1", "b2": "b1"},
		}, {
			name: "the name counts before the volume",
			pods: []side{pod("a", "y"), pod("c", "x")}, backups: []side{pod("a", "x"), pod("b", "y")},
			err: []string{"pod c cannot", "a (claim y), c (claim x)", "a (claim x), b (claim y)"},
		}, {
			name: "several of one volume",
			pods: []side{pod("web-3", "data"), pod("web-4", "data")}, backups: []side{pod("web-1", "data"), pod("web-2", "data")},
			err: []string{"web-3, web-4", "web-1 (claim data), web-2 (claim data)", "use RestoreData"},
		}, {
			name: "one pod, two backups of its volume",
			pods: []side{pod("web-3", "data")}, backups: []side{pod("web-1", "data"), pod("web-2", "data")},
			err: []string{"web-3"},
		}, {
			name: "by ordinal", ordinals: true,
			pods: []side{pod("new-0", "d-new-0"), pod("new-1", "d-new-1")}, backups: []side{pod("old-0", "d-old-0"), pod("old-1", "d-old-1")},
			want: map[string]string{"new-0": "old-0", "new-1": "old-1"},
		}, {
			name: "no ordinals in a Deployment",
			pods: []side{pod("new-0", "a"), pod("new-1", "b")}, backups: []side{pod("old-0", "c"), pod("old-1", "d")},
			err: []string{"new-0, new-1"},
		}, {
			name: "an ordinal that two have", ordinals: true,
			pods: []side{pod("new-0"), pod("new-1")}, backups: []side{pod("x-0"), pod("y-0")},
			err: []string{"new-0, new-1"},
		}, {
			name: "one and one",
			pods: []side{pod("new", "fresh")}, backups: []side{pod("old", "lost")},
			want: map[string]string{"new": "old"},
		}, {
			name: "more pods than backups", ordinals: true,
			pods: []side{pod("db-0"), pod("db-1")}, backups: []side{pod("db-0")},
			err: []string{"pod db-1 cannot"},
		},
	} {
		got, err := match(c.pods, c.backups, c.ordinals)
		if len(c.err) == 0 {
			if err != nil || !maps.Equal(got, c.want) {
				t.Errorf("%s: %v, %v; want %v", c.name, got, err, c.want)
			}
			continue
		}
		for _, want := range c.err {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, error %v; want %q in it", c.name, got, err, want)
			}
		}
	}
}

// FuzzMatch: no backup is ever given to two pods.
func FuzzMatch(f *testing.F) {
	f.Add("a b", "b c", "x y", "y z", true)
	f.Add("db-0 db-1", "old-0 old-1", "", "", true)
	f.Fuzz(func(t *testing.T, pods, backups, claims, saved string, ordinals bool) {
		sides := func(names, claims string) []side {
			list, _ := podNames(names, param.TemplateParams{})
			c := strings.Fields(claims)
			var out []side
			for i, name := range list {
				s := side{pod: name}
				if i < len(c) {
					s.claims = c[i : i+1]
				}
				out = append(out, s)
			}
			return out
		}
		found, err := match(sides(pods, claims), sides(backups, saved), ordinals)
		used := map[string]bool{}
		for _, backup := range found {
			if used[backup] {
				t.Errorf("backup %s is given twice: %v", backup, found)
			}
			used[backup] = true
		}
		if err == nil && len(found) != len(sides(pods, claims)) {
			t.Errorf("%v for pods %q", found, pods)
		}
	})
}

func TestByClaim(t *testing.T) {
	restores := []podRestore{
		{pod: "a", restoration: restoration{claim: "x"}}, {pod: "b", restoration: restoration{claim: "y"}},
		{pod: "c", restoration: restoration{claim: "x"}},
	}
	if got := byClaim(restores); !reflect.DeepEqual(got, [][]int{{0, 2}, {1}}) {
		t.Errorf("%v: pods of one claim take turns", got)
	}
}
