#!/bin/sh
# Whether clients may be sent here. Over TCP: the server of the first start answers on its socket too.
#
# A replica is ready once it has followed its primary since its start, and as long as it does; while the primary is
# away it stays ready with what it has.
set -eu
# Users of the database may have made functions and operators that go by the names of PostgreSQL's, and settings of the
# DatabaseCluster hold for every session.
export PGOPTIONS='-c search_path=pg_catalog -c statement_timeout=0 -c lock_timeout=0'
pg_isready -q -h 127.0.0.1 -U postgres
# Nothing else runs from time to time in this container. What comes of it is no part of the answer.
timeout 2 sh "$(dirname "$0")/settings.sh" reload >/dev/null 2>&1 || :
if [ "${POD_NAME##*-}" = 0 ]; then
  [ -s "$PGDATA.roles" ] || { echo "its first start was interrupted: delete the Pod, and the next one ends it"; exit 1; }
  exit 0
fi

# The server's start, so that a container that was restarted has to follow again, also within the same second.
query="SELECT extract(epoch FROM pg_postmaster_start_time()), count(*)"
query="$query FROM pg_stat_wal_receiver WHERE status = 'streaming'"
answer=$(psql -XAtq -F ' ' -U postgres -d postgres -c "$query")
start=${answer% *}
marks=${TMPDIR:-/tmp}
if [ "${answer##* }" = 1 ]; then
  : >"$marks/followed-$start"
  rm -f "$marks/lost-$start"
  exit 0
fi
followed=
[ ! -e "$marks/followed-$start" ] || followed=yes
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/primary.sh"
# The probe has five seconds in all, and so has an answer of DNS that does not come.
if ! timeout 3 pg_isready -q -t 2 -h "$PRIMARY_HOST" -p "${PRIMARY_PORT:-5432}" -U replicator; then
  [ -z "$followed" ] || exit 0
  echo "it has not followed its primary yet, which does not answer"
  exit 1
fi
[ -e "$marks/lost-$start" ] || : >"$marks/lost-$start"
if [ -n "$(find "$marks/lost-$start" -mmin +1)" ]; then
  echo "it does not follow its primary: delete the Pod, and the next one compares both, and copies the primary again if it has to"
  exit 1
fi
[ -n "$followed" ] || { echo "it has not followed its primary yet"; exit 1; }
