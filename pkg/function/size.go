// SPDX-License-Identifier: Apache-2.0

package function

import "fmt"

// sizeText is a size as restic prints it, which Kanister's outputs have.
func sizeText(bytes int64) string {
	const (
		kib = 1 << 10
		mib = 1 << 20
		gib = 1 << 30
		tib = 1 << 40
	)
	b := float64(bytes)
	switch {
	case bytes >= tib:
		return fmt.Sprintf("%.3f TiB", b/tib)
	case bytes >= gib:
		return fmt.Sprintf("%.3f GiB", b/gib)
	case bytes >= mib:
		return fmt.Sprintf("%.3f MiB", b/mib)
	case bytes >= kib:
		return fmt.Sprintf("%.3f KiB", b/kib)
	default:
		return fmt.Sprintf("%d B", bytes)
	}
}
