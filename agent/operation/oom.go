// SPDX-License-Identifier: Apache-2.0

package operation

import (
	"cmp"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// oomKills is how many processes of our control group the kernel has killed for want
// of memory, the group's own limit or the node's. It is not known everywhere.
func (c *Child) oomKills() (n int64, known bool) {
	groups, err := os.ReadFile(filepath.Join(cmp.Or(c.ProcFS, "/proc"), "self", "cgroup"))
	if err != nil {
		return 0, false
	}
	cgroups := cmp.Or(c.CgroupFS, "/sys/fs/cgroup")
	for _, file := range oomFiles(string(groups)) {
		raw, err := os.ReadFile(filepath.Join(cgroups, file))
		if err != nil {
			continue
		}
		if n, known = oomKillsIn(string(raw)); known {
			return n, true
		}
	}
	return 0, false
}

// oomFiles are where the count may be, by /proc/self/cgroup. A container sees its own
// group as the root, or by a path that is only the node's.
func oomFiles(groups string) (files []string) {
	for line := range strings.Lines(groups) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		switch {
		case parts[1] == "memory": // version 1
			files = append(files, filepath.Join("memory", parts[2], "memory.oom_control"), "memory/memory.oom_control")
		case parts[0] == "0": // version 2
			files = append(files, filepath.Join(parts[2], "memory.events"), "memory.events")
		}
	}
	return files
}

func oomKillsIn(file string) (n int64, ok bool) {
	for line := range strings.Lines(file) {
		if name, value, _ := strings.Cut(strings.TrimSpace(line), " "); name == "oom_kill" {
			n, err := strconv.ParseInt(value, 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}
