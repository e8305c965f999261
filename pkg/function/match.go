// SPDX-License-Identifier: Apache-2.0

package function

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// side is a pod of one side of a restore: one that was backed up, with the claim
// that its backup is of, or one to restore to, with the claims it mounts.
type side struct {
	pod    string
	claims []string
}

func (s side) String() string {
	if len(s.claims) == 0 {
		return s.pod
	}
	return fmt.Sprintf("%s (claim %s)", s.pod, strings.Join(s.claims, ", "))
}

// match finds the backup of each pod: by the pod's name, which a StatefulSet keeps;
// by the volume, if exactly one backup is of a claim that exactly one pod mounts;
// by the ordinal, if the pods are a StatefulSet's; and one backup belongs to one
// pod. Where that leaves a choice, it is an error with both sides. The result maps
// pod to pod that was backed up; no backup is used twice.
func match(pods, backups []side, ordinals bool) (map[string]string, error) {
	found := map[string]string{}
	rest := func(all []side, taken func(string) bool) []side {
		return slices.DeleteFunc(slices.Clone(all), func(s side) bool { return taken(s.pod) })
	}
	step := func(pairs func(pods, backups []side) map[string]string) {
		used := map[string]bool{}
		for _, b := range found {
			used[b] = true
		}
		p := rest(pods, func(name string) bool { return found[name] != "" })
		b := rest(backups, func(name string) bool { return used[name] })
		for pod, backup := range pairs(p, b) {
			found[pod] = backup
		}
	}
	step(unique(func(p, b side) bool { return p.pod == b.pod }))
	step(unique(func(p, b side) bool {
		return slices.ContainsFunc(b.claims, func(c string) bool { return slices.Contains(p.claims, c) })
	}))
	if ordinals {
		step(unique(func(p, b side) bool { return ordinal(p.pod) >= 0 && ordinal(p.pod) == ordinal(b.pod) }))
	}
	if len(pods) == 1 && len(backups) == 1 {
		found[pods[0].pod] = backups[0].pod
	}
	lost := rest(pods, func(name string) bool { return found[name] != "" })
	if len(lost) == 0 {
		return found, nil
	}
	return nil, fmt.Errorf("which backup belongs to pod %s cannot be told, neither by name nor by volume: "+
		"the pods are %s; backupInfo has %s: use RestoreData for each, with volumes and the backup's id, "+
		"and <backupArtifactPrefix>/<backed-up pod> as its prefix",
		podList(lost), list(pods), list(backups))
}

// unique pairs those that fit each other and nobody else.
func unique(fits func(pod, backup side) bool) func(pods, backups []side) map[string]string {
	return func(pods, backups []side) map[string]string {
		pairs := map[string]string{}
		for _, p := range pods {
			mine := slices.DeleteFunc(slices.Clone(backups), func(b side) bool { return !fits(p, b) })
			if len(mine) != 1 {
				continue
			}
			rivals := slices.DeleteFunc(slices.Clone(pods), func(other side) bool { return !fits(other, mine[0]) })
			if len(rivals) == 1 {
				pairs[p.pod] = mine[0].pod
			}
		}
		return pairs
	}
}

// ordinal of a StatefulSet's pod, -1 if the name has none.
func ordinal(pod string) int {
	n, err := strconv.ParseUint(pod[strings.LastIndexByte(pod, '-')+1:], 10, 31)
	if err != nil {
		return -1
	}
	return int(n)
}

func list(sides []side) string {
	var texts []string
	for _, s := range sides {
		texts = append(texts, s.String())
	}
	return strings.Join(texts, ", ")
}

func podList(sides []side) string {
	var texts []string
	for _, s := range sides {
		texts = append(texts, s.pod)
	}
	return strings.Join(texts, ", ")
}
