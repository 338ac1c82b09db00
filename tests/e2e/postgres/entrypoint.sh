#!/bin/sh
# Replaces the entry point of the official image, with its documented behavior and nothing more: a first start
# creates the data, runs the scripts of /docker-entrypoint-initdb.d against a server that answers on its socket only, and
# lets other hosts in with passwords.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  mkdir -p "$PGDATA"
  # shellcheck disable=SC2086 # a list, split on purpose
  initdb -D "$PGDATA" -U postgres --pwfile="$POSTGRES_PASSWORD_FILE" ${POSTGRES_INITDB_ARGS:-}
  echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
  pg_ctl -D "$PGDATA" -w -o "-c listen_addresses=''" start
  for script in /docker-entrypoint-initdb.d/*; do "$script"; done
  pg_ctl -D "$PGDATA" -w -m fast stop
fi
exec "$@"
