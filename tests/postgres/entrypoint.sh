#!/bin/sh
# Replaces the entry point of the official image, with its documented behavior and nothing more:
# POSTGRES_PASSWORD_FILE, POSTGRES_INITDB_ARGS, PGDATA, and scripts that run once against a server that answers on its
# socket only. INITDB_FOLDER is where /docker-entrypoint-initdb.d is here. HOLD, a file, prolongs the first start.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  mkdir -p "$PGDATA"
  # shellcheck disable=SC2086 # a list, split on purpose
  initdb -D "$PGDATA" -U postgres --pwfile="$POSTGRES_PASSWORD_FILE" $POSTGRES_INITDB_ARGS
  pg_ctl -D "$PGDATA" -w -o "-c listen_addresses='' -c unix_socket_directories='$PGHOST'" start
  for script in "$INITDB_FOLDER"/*; do "$script"; done
  while [ -e "$HOLD" ]; do sleep 0.1; done
  pg_ctl -D "$PGDATA" -w -m fast stop
fi
# Loopback only: it is a test.
exec "$@" -c listen_addresses=127.0.0.1 -c unix_socket_directories="$PGHOST"
