// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// childNice is how much the agent itself, and what else shares its control group,
	// goes before an operation.
	childNice = 10
	// childIOPriority is the last of the kernel's best-effort class: class 2, level 7.
	// Not the idle class: an operation must go on where the disk is never idle.
	childIOPriority = 2<<13 | 7
)

// LowerPriority puts this process behind others, as far as the kernel's schedulers
// look at it. Anybody may lower his own.
func LowerPriority() {
	// Both are of threads; one that is made later has them from the one that makes it.
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, thread := range threads {
		id, err := strconv.Atoi(thread.Name())
		if err != nil {
			continue
		}
		const whoThread = 1 // IOPRIO_WHO_PROCESS, which takes a thread
		_ = unix.Setpriority(unix.PRIO_PROCESS, id, childNice)
		_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, whoThread, uintptr(id), childIOPriority)
	}
}
