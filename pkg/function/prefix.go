// SPDX-License-Identifier: Apache-2.0

package function

import (
	"path"
	"strings"

	"github.com/kanister-kopia/kanister-kopia/pkg/param"
)

// resolvePrefix is Kanister's: a prefix begins with the Profile's bucket, which is
// put in front if it is not there. The Profile's own prefix has no part in it. What
// begins with the bucket stays as it is written, for outputs; where backups are looked
// up, a//b/ is a/b.
func resolvePrefix(profile *param.Profile, prefix string) string {
	bucket := profile.Location.Bucket
	if first, _, _ := strings.Cut(prefix, "/"); first == bucket {
		return prefix
	}
	return path.Join(bucket, prefix)
}
