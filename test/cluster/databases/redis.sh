#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs Redis on /data. Its configuration comes over standard input: the password, which
# is in a file, stays out of the argument list.
set -eu
exec redis-server - <<CONFIGURATION
dir /data
bind * -::*
requirepass "$(cat "$REDIS_PASSWORD_FILE")"
CONFIGURATION
