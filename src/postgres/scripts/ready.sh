#!/bin/sh
# Whether clients may be sent here. Over TCP: the server of the first start answers on its socket too.
#
# A replica is ready once it has followed its primary since its start, and as long as it does; while the primary is
# away it stays ready with what it has.
set -eu
pg_isready -q -h 127.0.0.1 -U postgres
if [ "${POD_NAME##*-}" = 0 ]; then
  [ -s "$PGDATA.roles" ] || { echo "its first start was interrupted: delete the Pod, and the next one ends it"; exit 1; }
  exit 0
fi

# PostgreSQL's start, so that a container that was restarted has to follow anew.
start=$(sed -n 3p "$PGDATA/postmaster.pid")
marks=${TMPDIR:-/tmp}
if [ "$(psql -XAtq -U postgres -d postgres -c "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'")" = 1 ]; then
  : >"$marks/followed-$start"
  rm -f "$marks/lost"
  exit 0
fi
[ -e "$marks/followed-$start" ] || { echo "it has not followed its primary yet"; exit 1; }
pg_isready -q -t 2 -h "$PRIMARY_HOST" -p "${PRIMARY_PORT:-5432}" -U replicator || exit 0
[ -e "$marks/lost" ] || : >"$marks/lost"
[ -z "$(find "$marks/lost" -mmin +1)" ] || { echo "it does not follow its primary any more: delete the Pod, and it is copied anew"; exit 1; }
