// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Report is all that a run measured.
type Report struct {
	Scale float64 `json:"scale"`
	Cores int     `json:"cores"`
	// Load is the machine's load average before the run.
	Load  string `json:"load"`
	Peers []Peer `json:"peers"`
	// StartSeconds are the times from an agent's exec to its first answer.
	StartSeconds []float64 `json:"startSeconds"`
	// AgentBytes is the size of the programs that the agent's image is made of.
	AgentBytes int64    `json:"agentBytes"`
	Server     Server   `json:"server"`
	Data       []Data   `json:"data"`
	Budgets    []Budget `json:"budgets"`
}

// Peer is who is compared; the first is ours.
type Peer struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	How     string `json:"how"`
}

// Data are the figures of one data set.
type Data struct {
	Name       string      `json:"name"`
	About      string      `json:"about"`
	Files      int         `json:"files"`
	Bytes      int64       `json:"bytes"`
	Before     Memory      `json:"idleBefore"`
	After      Memory      `json:"idleAfter"`
	IdleCPU    float64     `json:"idleCPU"`
	Operations []Operation `json:"operations"`
}

// Operation holds the figures of all peers, in their order.
type Operation struct {
	Name  string `json:"name"`
	Peers []Use  `json:"peers"`
}

// Budget is a figure that DESIGN bounds.
type Budget struct {
	What string `json:"what"`
	Want string `json:"want"`
	Got  string `json:"got"`
	Met  bool   `json:"met"`
}

// The operations, in the order in which they run.
const (
	opFirst       = "first backup"
	opUnchanged   = "unchanged again"
	opChanged     = "1 % changed"
	opRestore     = "restore"
	opRestoreFile = "restore one file"
)

// The peers' names.
const (
	peerOurs        = "ours"
	peerKopia       = "kopia"
	peerKopiaServer = "kopia-server"
	peerRestic      = "restic"
)

// idleSeconds is how long an agent is left alone before it counts as idle.
const idleSeconds = 2

func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Scale %g, %d cores, load average before the run %s\n\n", r.Scale, r.Cores, r.Load)
	for _, p := range r.Peers {
		fmt.Fprintf(&b, "  %-14s %s, %s\n", p.Name, p.Version, p.How)
	}
	for _, d := range r.Data {
		b.WriteString("\n" + r.table(d))
	}
	b.WriteString("\nx: as a multiple of ours, more than 1 is slower or dearer. disk: seconds more until a restore is on disk;\n" +
		"ours waits for that itself. A server's memory includes the largest process that it starts.\n\n" + r.idle() + "\nBudgets\n")
	for _, g := range r.Budgets {
		met := "met   "
		if !g.Met {
			met = "MISSED"
		}
		fmt.Fprintf(&b, "  %s %-58s %10s, budget %s\n", met, g.What, g.Got, g.Want)
	}
	return b.String()
}

const (
	headings = "  %-14s %8s %6s %6s   %7s %7s %6s   %6s %6s   %8s"
	figures  = "  %-14s %8.2f %6s %6s   %7.2f %7s %6s   %6s %6s   %8s"
)

func (r Report) table(d Data) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %d %s, %s MiB\n\n", d.Name, d.Files, d.About, inMiB(d.Bytes))
	row := func(format string, cells ...any) {
		b.WriteString(strings.TrimRight(fmt.Sprintf(format, cells...), " ") + "\n")
	}
	row(headings, "", "seconds", "", "", "CPU s", "", "", "peak", "MiB", "stored")
	row(headings, "", "", "x", "disk", "client", "server", "x", "client", "server", "MiB")
	for _, o := range d.Operations {
		row("%s", o.Name)
		ours := o.Peers[0]
		for i, u := range o.Peers {
			disk, server, serverRSS, stored := "", "", "", ""
			if u.SyncSeconds > 0 {
				disk = fmt.Sprintf("+%.2f", u.SyncSeconds)
			}
			if u.ServerRSS > 0 {
				server, serverRSS = fmt.Sprintf("%.2f", u.ServerCPU), inMiB(u.ServerRSS)
			}
			if u.Stored > 0 {
				stored = fmt.Sprintf("%.1f", float64(u.Stored)/mib)
			}
			row(figures, r.Peers[i].Name, u.Seconds, ratio(u.Seconds, ours.Seconds), disk,
				u.ClientCPU, server, ratio(u.ClientCPU+u.ServerCPU, ours.ClientCPU+ours.ServerCPU), inMiB(u.ClientRSS), serverRSS, stored)
		}
	}
	return b.String()
}

// idle tells what an agent takes while nothing runs.
func (r Report) idle() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Agent: exec to the first answer %.0f ms (median of %d)\n", 1000*median(r.StartSeconds), len(r.StartSeconds))
	for _, d := range r.Data {
		fmt.Fprintf(&b, "  %-8s idle before: %.1f MiB, %.1f of it anonymous; an operation's process: up to %s MiB; idle afterwards: %.1f and %.1f MiB, %.2f s of CPU in %d s\n", d.Name,
			float64(d.Before.Resident)/mib, float64(d.Before.Anonymous)/mib, inMiB(d.peak()),
			float64(d.After.Resident)/mib, float64(d.After.Anonymous)/mib, d.IdleCPU, idleSeconds)
	}
	if len(r.Server.ReadySeconds) > 0 {
		fmt.Fprintf(&b, "Repository server, empty repository: ready after %.2f s, a first small backup stored after %.2f s (medians of %d); %.1f MiB when ready, %.1f of it anonymous\n",
			median(r.Server.ReadySeconds), median(r.Server.FirstSeconds), len(r.Server.ReadySeconds),
			float64(r.Server.Ready.Resident)/mib, float64(r.Server.Ready.Anonymous)/mib)
	}
	for _, c := range r.Server.Crowds {
		fmt.Fprintf(&b, "  %2d agents at once, %s MiB in all: %.1f s, at most %s MiB\n", c.Agents, inMiB(c.Bytes), c.Seconds, inMiB(c.Peak))
	}
	return b.String()
}

// peak is the most memory that an operation of ours took.
func (d Data) peak() (most int64) {
	for _, o := range d.Operations {
		most = max(most, o.Peers[0].ClientRSS)
	}
	return most
}

// budgets are those of DESIGN that a run measures.
func (r Report) budgets() (all []Budget) {
	below := func(what string, limit, got float64, unit string) {
		all = append(all, Budget{What: what, Want: fmt.Sprintf("at most %g %s", limit, unit), Got: fmt.Sprintf("%.3g %s", got, unit), Met: got <= limit})
	}
	if len(r.StartSeconds) > 0 {
		below("agent: exec to the first answer of /v1/info", 100, 1000*median(r.StartSeconds), "ms")
	}
	if r.AgentBytes > 0 {
		below("agent: image", 45, float64(r.AgentBytes)/1e6, "MB")
	}
	if len(r.Server.ReadySeconds) > 0 {
		below("server: start to readiness, empty repository", 2, median(r.Server.ReadySeconds), "s")
	}
	for _, c := range r.Server.Crowds {
		limit := 768.0
		if c.Agents == 1 {
			limit = 256
		}
		below(fmt.Sprintf("server: memory with %d agents at once", c.Agents), limit, float64(c.Peak)/mib, "MiB")
	}
	if len(r.Data) == 0 {
		return all
	}
	var idle Memory
	var idleCPU float64
	var server int64
	for _, d := range r.Data {
		idle.Resident = max(idle.Resident, d.Before.Resident, d.After.Resident)
		idle.Anonymous = max(idle.Anonymous, d.Before.Anonymous, d.After.Anonymous)
		idleCPU = max(idleCPU, d.IdleCPU)
		for _, o := range d.Operations {
			server = max(server, o.Peers[0].ServerRSS)
		}
	}
	below("agent idle: anonymous memory", 10, float64(idle.Anonymous)/mib, "MiB")
	below("agent idle: memory", 20, float64(idle.Resident)/mib, "MiB")
	below(fmt.Sprintf("agent idle: CPU in %d s", idleSeconds), 0, idleCPU, "s")
	below("server: memory with one agent", 256, float64(server)/mib, "MiB")
	for _, d := range r.Data {
		limit := 128.0
		if d.Name == "small" || d.Name == "many" {
			limit = 64
		}
		below(d.Name+": memory of one operation", limit, float64(d.peak())/mib, "MiB")
		all = append(all, r.speeds(d)...)
	}
	return all
}

// speeds are the budgets of one data set that are ratios.
func (r Report) speeds(d Data) (all []Budget) {
	for _, want := range []struct {
		op, peer string
		least    float64
		only     string
	}{
		{opFirst, peerKopiaServer, 1.2, ""},
		{opChanged, peerKopiaServer, 1.2, ""},
		{opFirst, peerRestic, 1, ""},
		{opChanged, peerRestic, 1, ""},
		{opRestore, peerRestic, 1, "small"},
	} {
		peer := slices.IndexFunc(r.Peers, func(p Peer) bool { return p.Name == want.peer })
		op := slices.IndexFunc(d.Operations, func(o Operation) bool { return o.Name == want.op })
		if peer < 0 || op < 0 || cmp.Or(want.only, d.Name) != d.Name {
			continue
		}
		uses := d.Operations[op].Peers
		got := uses[peer].Seconds / uses[0].Seconds
		all = append(all, Budget{
			What: fmt.Sprintf("%s: %s, speed against %s", d.Name, want.op, want.peer),
			Want: fmt.Sprintf("at least %g x", want.least), Got: fmt.Sprintf("%.2f x", got), Met: got >= want.least,
		})
	}
	return all
}

func ratio(a, b float64) string {
	if b == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", a/b)
}

func inMiB(bytes int64) string { return fmt.Sprintf("%.0f", float64(bytes)/mib) }

func median(list []float64) float64 {
	if len(list) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(list))
	return sorted[len(sorted)/2]
}
