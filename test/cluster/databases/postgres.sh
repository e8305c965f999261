#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes a database on an empty volume and runs PostgreSQL on it.
set -eu
: "${PGDATA:=/var/lib/postgresql/data}"
export PGDATA
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  if [ -d "$PGDATA" ] && [ -n "$(ls -A "$PGDATA")" ]; then
    echo "$PGDATA is not empty and holds no database" >&2
    exit 1
  fi
  host=reject
  set --
  if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then
    host=scram-sha-256
    set -- "--pwfile=$POSTGRES_PASSWORD_FILE"
  fi
  initdb --username=postgres --encoding=UTF8 --locale=C.UTF-8 --auth-local=trust --auth-host="$host" "$@"
fi
exec postgres -c listen_addresses='*' -c unix_socket_directories=/var/run/postgresql
