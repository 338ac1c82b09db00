#!/bin/sh
# Hands the settings of the DatabaseCluster to PostgreSQL. Its postgresql.conf includes two files beside the data:
#
#   $PGDATA.settings    what takes effect at a start: SETTINGS, from the Pod template
#   $PGDATA.parameters  what a running server reloads: from the ConfigMap
#
# A file that this version of PostgreSQL does not accept is never used: the one before it stays, so that the server
# always starts.
#
#   settings.sh start    before each start of the server
#   settings.sh reload   from time to time while it runs
#   settings.sh include  adds the two files to postgresql.conf
set -eu
umask 077
export LC_ALL=C
# Users of the database may have made functions and operators that go by the names of PostgreSQL's, and settings of the
# DatabaseCluster hold for every session.
export PGOPTIONS='-c search_path=pg_catalog -c statement_timeout=0 -c lock_timeout=0'
given=$PARAMETERS_DIR/parameters.conf
new=$PGDATA.new
why=

say() { printf '%s\n' "$*" >&2; }
refuse() { say "$*"; exit 1; }
# The value of a parameter in a file; of several, PostgreSQL takes the last one.
value_in() { sed -n "s/^$2 = '\(.*\)'\$/\1/p" "$1" | tail -n 1; }
control() { pg_controldata "$PGDATA" | sed -n "s/^$1: *//p"; }

include() {
  for file in parameters settings; do
    line="include_if_exists = '../${PGDATA##*/}.$file'"
    grep -qxF "$line" "$PGDATA/postgresql.conf" || printf '%s\n' "$line" >>"$PGDATA/postgresql.conf"
  done
}

# Others may change the ConfigMap: it must not run a command, load a library, or make the server lose data or serve
# elsewhere. What a DatabaseCluster may set is decided by the operator.
is_harmless() {
  other=$(grep -vE "^[a-z_0-9]+ = '[^'\\\\]*'\$" "$1" | head -n 1) || :
  [ -z "$other" ] || { why="it has a line that is no parameter"; return 1; }
  other=$(grep -E '^([a-z_0-9]*_(command|library|libraries|file|library_path|control_path|directory|directories|dir|provider|names)|(ssl|krb|gss|oauth|archive|recovery|primary|promote|include|unix|debug|allow|ignore|zero|default_transaction|transaction)[a-z_0-9]*|listen_addresses|port|fsync|full_page_writes|autovacuum|track_counts|hot_standby|logging_collector|log_destination|password_encryption|session_replication_role|max_wal_senders) =' \
    "$1" | head -n 1) || :
  [ -z "$other" ] || { why="${other%% *} is not for it to set"; return 1; }
}

# Whether this version of PostgreSQL accepts a file. It is read as the only one, so that no other file is to blame.
is_accepted() {
  empty=$(mktemp -d)
  said=$(postgres -D "$empty" -c config_file="$1" -C port 2>&1) && accepted=yes || accepted=
  rm -rf "$empty"
  [ -z "$accepted" ] || return 0
  why=$(printf '%s\n' "$said" | grep -v 'skipping missing configuration file' | sed -n 's/^.*LOG: *//p' | head -n 1 |
    sed "s| in file .*||")
  [ -n "$why" ] || why=$(printf '%s\n' "$said" | tail -n 1)
  return 1
}

# A standby does not follow with less than its primary has: with a value that is lowered, the primary goes first. Nor
# does a server start with less than what is in its data.
raise() {
  while read -r name default of; do
    [ "${POD_NAME##*-}" != 0 ] || continue
    has=$(control "$of")
    wanted=$(value_in "$new" "$name")
    raise_to "$name" "${wanted:-$default}" "${has:-0}" "what the primary had"
  done <<'END'
max_connections 100 max_connections setting
max_worker_processes 8 max_worker_processes setting
max_prepared_transactions 0 max_prepared_xacts setting
max_locks_per_transaction 64 max_locks_per_xact setting
END
  wanted=$(value_in "$new" max_replication_slots)
  slots=$(find "$PGDATA/pg_replslot" -mindepth 1 -maxdepth 1 | wc -l)
  raise_to max_replication_slots "${wanted:-10}" "$slots" 'the slots that exist'
  wanted=$(value_in "$new" max_prepared_transactions)
  prepared=$(find "$PGDATA/pg_twophase" -mindepth 1 -maxdepth 1 | wc -l)
  raise_to max_prepared_transactions "${wanted:-0}" "$prepared" 'the transactions that are prepared'
  # Logical replication slots need it, and nothing here distinguishes them from others.
  if [ "$slots" -gt 0 ] && [ "$(value_in "$new" wal_level)" != logical ] && [ "$(control 'wal_level setting')" = logical ]; then
    say "wal_level stays at logical while there are replication slots"
    echo "wal_level = 'logical'" >>"$new" || exit 1
  fi
}

raise_to() {
  [ "$2" -lt "$3" ] || return 0
  say "$1 is $3 until the next start, for $4, not $2"
  printf "%s = '%s'\n" "$1" "$3" >>"$new" || exit 1
}

# Version 12 has other names for what is kept of the write-ahead log.
adapt() {
  version=$(postgres --version | sed -n 's/^[^0-9]*\([0-9][0-9]*\).*/\1/p')
  [ "${version:-13}" -lt 13 ] || return 0
  kept=$(value_in "$new" wal_keep_size)
  grep -vE '^(wal_keep_size|max_slot_wal_keep_size) ' "$new" >"$new.12" || :
  case $kept in
  *[!0-9MB]* | '') ;;
  *) printf "wal_keep_segments = '%s'\n" $((${kept%MB} / 16)) >>"$new.12" ;;
  esac
  mv "$new.12" "$new"
}

# What takes effect at a start. A standby with what its version refuses does not start, which ends a rollout before it
# comes to the primary; the primary starts with what it had.
take_settings() {
  why="the volume has no room for them"
  if { printf %s "$SETTINGS" >"$new"; } && { [ ! -s "$PGDATA/PG_VERSION" ] || raise; } && is_accepted "$new"; then
    mv "$new" "$PGDATA.settings"
    return 0
  fi
  rm -f "$new"
  if [ "${POD_NAME##*-}" != 0 ] || [ ! -s "$PGDATA/PG_VERSION" ]; then
    refuse "PostgreSQL of this image refuses spec.postgresql.parameters: $why"
  fi
  say "PostgreSQL of this image refuses spec.postgresql.parameters, and starts with those before: $why"
}

# What a running server reloads. That it was refused is no reason not to start, unless there is no data yet.
take_parameters() {
  [ -e "$given" ] || return 0
  why="the volume has no room for them"
  if cat "$given" >"$new" && adapt && is_harmless "$new" && is_accepted "$new"; then
    mv "$new" "$PGDATA.parameters"
    return 0
  fi
  rm -f "$new"
  return 1
}

case $1 in
include) include ;;
start)
  take_settings
  rm -f "$PGDATA.reload" "$PGDATA.given"
  if ! take_parameters; then
    [ -s "$PGDATA/PG_VERSION" ] || refuse "PostgreSQL of this image refuses spec.postgresql.parameters: $why"
    say "PostgreSQL of this image refuses spec.postgresql.parameters, and starts with those before: $why"
  fi
  [ ! -s "$PGDATA/postgresql.conf" ] || include
  ;;
reload)
  # What was refused is not tried again until it changes; what was interrupted is.
  if [ -e "$given" ] && ! cmp -s "$given" "$PGDATA.given"; then
    cat "$given" >"$PGDATA.given.new"
    if take_parameters; then
      : >"$PGDATA.reload"
    else
      # For the log of the server, which is that of the Pod.
      psql -Xq -U postgres -d postgres -v why="$why" >/dev/null <<'SQL' || :
SET log_min_messages = 'log';
SET log_min_error_statement = 'panic';
SET log_error_verbosity = 'terse';
SELECT format('DO %L', format('BEGIN RAISE LOG %L, %L; END',
  'PostgreSQL of this image refuses spec.postgresql.parameters, and keeps those before: %', :'why')) \gexec
SQL
    fi
    mv "$PGDATA.given.new" "$PGDATA.given"
  fi
  [ -e "$PGDATA.reload" ] || exit 0
  psql -XAtq -U postgres -d postgres -c 'SELECT pg_reload_conf()' >/dev/null
  rm -f "$PGDATA.reload"
  ;;
esac
