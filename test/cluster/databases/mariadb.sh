#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes a database on an empty volume and runs MariaDB on it. Its superuser is the
# system's user mysql, over the socket: there is no password.
set -eu
: "${MARIADB_DATA:=/var/lib/mysql/data}"
if [ ! -d "$MARIADB_DATA/mysql" ]; then
  if [ -d "$MARIADB_DATA" ] && [ -n "$(ls -A "$MARIADB_DATA")" ]; then
    echo "$MARIADB_DATA is not empty and holds no database" >&2
    exit 1
  fi
  # In one step: half a database would be taken for one.
  rm -rf "$MARIADB_DATA.new"
  mariadb-install-db --no-defaults --datadir="$MARIADB_DATA.new" --auth-root-socket-user=mysql --skip-test-db >&2
  rm -rf "$MARIADB_DATA"
  mv "$MARIADB_DATA.new" "$MARIADB_DATA"
fi
exec mariadbd --no-defaults --datadir="$MARIADB_DATA" --socket=/run/mysqld/mysqld.sock --pid-file=/run/mysqld/mysqld.pid
