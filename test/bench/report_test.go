// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

// figuresOf is a report with one data set of ours and restic.
func figuresOf(name string, seconds, resticSeconds float64) Report {
	r := Report{
		Scale: 0.5, Cores: 2, Load: "1.50", StartSeconds: []float64{0.3, 0.02, 0.03},
		Peers: []Peer{{peerOurs, "Kopia v1", "agent"}, {peerRestic, "restic 0", "alone"}},
		Data: []Data{{
			Name: name, About: "files", Files: 7, Bytes: 3 * mib,
			Before: Memory{Resident: 12 * mib, Anonymous: 4 * mib}, After: Memory{Resident: 21 * mib, Anonymous: 5 * mib},
		}},
	}
	for _, op := range []string{opFirst, opUnchanged, opChanged, opRestore, opRestoreFile} {
		o := Operation{Name: op, Peers: []Use{
			{Seconds: seconds, ClientCPU: 1, ServerCPU: 2, ClientRSS: 30 * mib, ServerRSS: 300 * mib},
			{Seconds: resticSeconds, ClientCPU: 6, ClientRSS: 90 * mib},
		}}
		if op == opRestore {
			o.Peers[1].SyncSeconds = 0.25
		} else {
			o.Peers[0].Stored = 2 * mib
		}
		r.Data[0].Operations = append(r.Data[0].Operations, o)
	}
	r.Budgets = r.budgets()
	return r
}

// The text has each figure at its place, and nothing where nothing was measured.
func TestReportTable(t *testing.T) {
	text := figuresOf("small", 2, 3).String()
	for _, want := range []string{
		"Scale 0.5, 2 cores, load average before the run 1.50",
		"small: 7 files, 3 MiB",
		"ours               2.00   1.00             1.00    2.00   1.00       30    300        2.0\n",
		"restic             3.00   1.50             6.00           2.00       90\n",
		"restic             3.00   1.50  +0.25      6.00           2.00       90\n",
		"exec to the first answer 30 ms (median of 3)",
		"MISSED server: memory with one agent",
		"MISSED agent idle: memory  ",
		"met    agent idle: anonymous memory",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
}

func TestBudgets(t *testing.T) {
	for _, c := range []struct {
		name         string
		report       Report
		what         string
		got, want    string
		met, present bool
	}{
		{"as fast as it must be", figuresOf("small", 2, 2), "small: first backup, speed against restic", "1.00 x", "at least 1 x", true, true},
		{"slower", figuresOf("small", 2, 1), "small: restore, speed against restic", "0.50 x", "at least 1 x", false, true},
		{"bounded for small files only", figuresOf("text", 2, 1), "text: restore, speed against restic", "", "", false, false},
		{"who did not run", figuresOf("small", 2, 1), "small: first backup, speed against kopia-server", "", "", false, false},
		{"memory of small files", figuresOf("small", 2, 1), "small: memory of one operation", "30 MiB", "at most 64 MiB", true, true},
		{"memory of large files", figuresOf("random", 2, 1), "random: memory of one operation", "30 MiB", "at most 128 MiB", true, true},
		{"the worst of before and after", figuresOf("small", 2, 1), "agent idle: memory", "21 MiB", "at most 20 MiB", false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var found *Budget
			for _, b := range c.report.Budgets {
				if b.What == c.what {
					found = &b
				}
			}
			switch {
			case (found != nil) != c.present:
				t.Errorf("present: %v, expected %v", found != nil, c.present)
			case found != nil && *found != Budget{c.what, c.want, c.got, c.met}:
				t.Errorf("got %+v, expected got %s, want %s, met %v", *found, c.got, c.want, c.met)
			}
		})
	}
}
