#!/bin/sh
# Runs before PostgreSQL in each Pod. Refuses whatever would harm data or serve stale data, has a primary with data
# take over the passwords of the Secret, and makes a replica a copy of its primary.
#
# Data is deleted only where it is a copy of what the primary has. What this script says last is what the
# DatabaseCluster reports. No message advises deleting a claim: whether another copy is good is not known here.
set -eu
umask 077
export LC_ALL=C
# Users of the database may have made functions and operators that go by the names of PostgreSQL's, and settings of the
# DatabaseCluster hold for every session.
export PGOPTIONS='-c search_path=pg_catalog -c statement_timeout=0 -c lock_timeout=0'
here=$(dirname "$0")
primary_port=${PRIMARY_PORT:-5432}
# Until then, the Secret of a DatabaseCluster that was deleted has been collected, another one created, and mounted here.
former_secret_seconds=120
# PostgreSQL looks for its lock file once a minute, and then needs up to five seconds to end.
former_server_seconds=75
# With two seconds between them, longer than a primary needs that waits for a former server and then recovers.
primary_tries_max=60
# No older one has standby.signal, or time-outs of connections.
oldest_version=12
running=
sockets=
trouble=

say() { printf '%s\n' "$*" >&2; }
refuse() { say "$*"; exit 1; }
has_data() { [ -s "$PGDATA/PG_VERSION" ]; }
is_empty() { [ -z "$(ls -A "$PGDATA" 2>/dev/null)" ]; }
is_initialized() { [ "$(cat "$CONFIG_DIR/initialized")" = true ]; }

# The first process of a container gets no signal that it does not ask for: without this a Pod that waits would use up
# its whole grace when it is deleted.
end() {
  trap - TERM INT
  [ -z "$running" ] || kill "$running" 2>/dev/null || :
  [ -z "$sockets" ] || pg_ctl -D "$PGDATA" -s -w -t 240 -m fast stop || :
  exit 143
}
trap end TERM INT

# Runs what may take long such that it can be ended.
run() {
  "$@" &
  running=$!
  ended=0
  wait "$running" || ended=$?
  running=
  return "$ended"
}

check_secret() {
  for key in username password dbname replication-password; do
    # Editors and shells add line ends, of Windows too: they are no part of the value.
    value=$(cat "$SECRET_DIR/$key" 2>/dev/null | tr '\r' '\n')
    [ -n "$value" ] || refuse "the Secret $SECRET_NAME has no key $key: add it"
    [ "$(printf '%s\n' "$value" | wc -l)" -eq 1 ] ||
      refuse "the key $key of the Secret $SECRET_NAME has more than one line: keep one"
  done
  check_name username postgres replicator public none 'pg_*'
  check_name dbname postgres template0 template1
  # Only a Secret that the operator made says whose it is.
  uid=$(cat "$SECRET_DIR/cluster-uid" 2>/dev/null || :)
  [ -z "$uid" ] || [ "$uid" = "$CLUSTER_UID" ] || accept_secret "$uid"
}

# A name of the Secret must be none that PostgreSQL or the operator has a use for; those may be patterns.
check_name() {
  key=$1
  name=$(tr -d '\r\n' <"$SECRET_DIR/$key")
  shift
  [ -n "$name" ] || refuse "the key $key of the Secret $SECRET_NAME is empty: set it to a name, for example app"
  [ "$(printf %s "$name" | wc -c)" -le 63 ] ||
    refuse "the key $key of the Secret $SECRET_NAME has more than 63 bytes, the most that PostgreSQL allows: set it to a shorter name"
  for reserved in "$@"; do
    # shellcheck disable=SC2254 # a pattern on purpose
    case $name in
    $reserved) refuse "the key $key of the Secret $SECRET_NAME must not be $name, which is reserved: set it to another name, for example app" ;;
    esac
  done
}

# The Secret of another DatabaseCluster of this name goes with that one. If it stays, it was restored from a backup, and
# its passwords are those that clients have.
accept_secret() {
  known=
  since=
  read -r known since 2>/dev/null <"$PGDATA.secret" || :
  now=$(date +%s)
  case $since in
  '' | *[!0-9]*) known= ;;
  *) [ "$since" -le "$now" ] || known= ;;
  esac
  if [ "$known" != "$1" ]; then
    since=$now
    printf '%s %s\n' "$1" "$since" >"$PGDATA.secret"
  fi
  [ $((now - since)) -ge "$former_secret_seconds" ] ||
    refuse "the Secret $SECRET_NAME was made for another DatabaseCluster of this name: waiting until it is replaced. If it was restored from a backup, it is taken over after $former_secret_seconds s"
}

# A Pod that was deleted by force may still run beside this one, and two servers on one volume destroy it. Their lock
# file does not distinguish them, as both are process 1 of their containers; but a server that finds it gone ends.
end_former_server() {
  [ -e "$PGDATA/postmaster.pid" ] || [ -e "$PGDATA.ending" ] || return 0
  say "the last server on this volume was not shut down: waiting $former_server_seconds s, so that it has surely ended"
  : >"$PGDATA.ending"
  rm -f "$PGDATA/postmaster.pid"
  run sleep "$former_server_seconds"
  rm -f "$PGDATA.ending"
}

check_version() {
  image=$(postgres --version | sed -n 's/^[^0-9]*\([0-9][0-9]*\).*/\1/p')
  [ -n "$image" ] || refuse "postgres --version of this image does not say its version: set spec.image to an image of PostgreSQL"
  [ "$image" -ge "$oldest_version" ] ||
    refuse "the image is PostgreSQL $image, and the oldest that works is $oldest_version: set spec.image to a newer one"
  has_data || return 0
  # What was mounted again may have got the group's rights, with which PostgreSQL does not start.
  chmod 0700 "$PGDATA"
  data=$(cat "$PGDATA/PG_VERSION")
  [ "$data" = "$image" ] ||
    refuse "the data is of PostgreSQL $data and the image is PostgreSQL $image: set spec.image to one of PostgreSQL $data"
}

# Indexes of text that were made with one C library are wrong with the other: they sort differently.
check_libc() {
  [ -s "$PGDATA/made_with_libc" ] || return 0
  data=$(cat "$PGDATA/made_with_libc")
  image=glibc
  ! ls /lib/ld-musl-* >/dev/null 2>&1 || image=musl
  [ "$data" = "$image" ] ||
    refuse "the data was made with $data and the image has $image (Alpine has musl, Debian glibc), with which its indexes would be wrong: set spec.image to one with $data"
}

# The password is for the primary's name only, and for programs that are given this file: without being asked to,
# pg_isready, too, would reveal it.
write_passfile() {
  rm -f "$PASSFILE"
  password=$(tr -d '\r\n' <"$SECRET_DIR/replication-password" | sed 's/[\\:]/\\&/g')
  printf '%s:*:*:replicator:%s\n' "$PRIMARY_HOST" "$password" >"$PASSFILE"
}

# Also ends a first start that was interrupted. The server answers on a socket of its own, so that no probe and no
# client sees it.
update_roles() {
  [ "$(cat "$PGDATA.roles" 2>/dev/null)" != "$(sh "$here/initdb.sh" digest)" ] || return 0
  sockets=$(mktemp -d)
  run pg_ctl -D "$PGDATA" -s -w -t 3600 -l "$sockets/log" \
    -o "-c listen_addresses='' -c unix_socket_directories='$sockets'" start ||
    trouble="PostgreSQL did not start to take over the passwords of the Secret $SECRET_NAME"
  if [ -z "$trouble" ]; then
    PGHOST=$sockets sh "$here/initdb.sh" 2>"$sockets/said" ||
      trouble="the names and passwords of the Secret $SECRET_NAME could not be taken over: $(sed -n 's/^.*ERROR: *//p' "$sockets/said" | head -n 1)"
    pg_ctl -D "$PGDATA" -s -w -t 3600 -m fast stop || trouble="PostgreSQL did not stop"
  else
    tail -n 5 "$sockets/log" >&2
    # It may only have taken too long.
    pg_ctl -D "$PGDATA" -s -w -t 240 -m fast stop 2>/dev/null || :
  fi
  rm -rf "$sockets"
  sockets=
  [ -z "$trouble" ]
}

# An initdb that was interrupted leaves what looks like data and is none. Nobody was let in before its end.
set_unfinished_aside() {
  say "the first start was interrupted: beginning again, what it left is in $PGDATA.unfinished"
  rm -rf "$PGDATA.unfinished"
  mv "$PGDATA" "$PGDATA.unfinished"
}

prepare_primary() {
  if has_data; then
    [ ! -e "$PGDATA/standby.signal" ] ||
      refuse "the volume of the primary has the data of a replica: restore the volume of the primary"
    sh "$here/settings.sh" start
    if update_roles; then
      rm -f "$PGDATA.begun"
      return 0
    fi
    if [ ! -e "$PGDATA.begun" ] || is_initialized; then refuse "$trouble"; fi
    set_unfinished_aside
  fi
  if is_initialized; then
    refuse "the volume of the primary has no data, though this cluster had some: nothing is created over it. Restore the volume, or take the data from a replica"
  fi
  if ! is_empty; then
    [ -e "$PGDATA.begun" ] ||
      refuse "the volume of the primary has files in $PGDATA that are no database: they are left alone. Restore the volume, or remove them"
    set_unfinished_aside
  fi
  : >"$PGDATA.begun"
}

# How the primary is reached.
connect() {
  # It sets PRIMARY_HOST.
  # shellcheck source-path=SCRIPTDIR
  . "$here/primary.sh"
  write_passfile
  # A connection whose other end has vanished ends within a minute, also while nothing is sent.
  remote="host=$PRIMARY_HOST port=$primary_port user=replicator passfile=$PASSFILE application_name=$POD_NAME connect_timeout=10 keepalives=1 keepalives_idle=30 keepalives_interval=10 keepalives_count=3 tcp_user_timeout=60000"
  # A server that poses as the primary gets no password, and is not believed, as it cannot prove that it knows it. libpq
  # can insist on that from version 16 on; images of older servers often have a newer libpq.
  scram=require_auth=scram-sha-256
  case $(psql -Xw -d "host=/nowhere $scram" -c '' 2>&1) in
  *'invalid connection option'*) say "libpq of this image cannot insist on SCRAM: use an image of PostgreSQL 16 or newer" ;;
  *) remote="$remote $scram" ;;
  esac
}

answers() { timeout 10 pg_isready -q -h "$PRIMARY_HOST" -p "$primary_port" -U replicator; }
ask() { timeout 60 psql -XAtqw -F ' ' -d "$remote $1" -c "$2"; }

# Whether the primary answers; not more often than so many times, if it is said.
wait_for_primary() {
  tries=0
  until answers; do
    tries=$((tries + 1))
    [ "$tries" != "${1:-}" ] || return 1
    say "waiting for the primary, $PRIMARY_HOST"
    sleep 2
  done
}

# A position in the write-ahead log as a number.
position() { echo $(((0x${1%/*} << 32) + 0x${1#*/})); }

# What pg_controldata says of the data. That it fails says nothing of the data.
read_control() {
  facts=$(pg_controldata "$PGDATA") || refuse "pg_controldata cannot read the data of $POD_NAME: nothing was changed"
  for fact in 'Database system identifier' "Latest checkpoint's TimeLineID" "Latest checkpoint's REDO location" \
    'Minimum recovery ending location' 'Bytes per WAL segment'; do
    [ -n "$(control "$fact")" ] || refuse "pg_controldata does not say \"$fact\": nothing was changed"
  done
}
control() { printf '%s\n' "$facts" | sed -n "s/^$1: *//p"; }

# Whether the data is an older copy of the primary's that can still catch up: 1 when it lacks what the primary no longer
# has, 2 when the primary does not say. Data that the primary does not have is never deleted.
can_follow() {
  # system identifier, timeline, position
  primary=$(ask replication=true IDENTIFY_SYSTEM) || return 2
  oldest=$(ask dbname=postgres \
    "SELECT min(substr(name, 9)) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}\$'") || return 2
  # Some shells run commands that they find in what they take for a number.
  printf '%s %s' "$primary" "$oldest" | tr '\n' '?' |
    grep -qxE '[0-9]+ [0-9]+ [0-9A-F]{1,8}/[0-9A-F]{1,8} +[0-9A-F]{16}' || return 2
  # shellcheck disable=SC2086 # split on purpose
  set -- $primary
  read_control
  kept="it is left alone, in the claim data-$POD_NAME. Compare it with the primary's before you decide which of them is good"
  [ "$(control 'Database system identifier')" = "$1" ] ||
    refuse "the volume of $POD_NAME has the data of another database than the primary's: $kept"
  if [ ! -e "$PGDATA/standby.signal" ] || [ "$(control "Latest checkpoint's TimeLineID")" != "$2" ]; then
    refuse "the volume of $POD_NAME has data of its own (it was promoted, or the primary was restored): $kept"
  fi
  redo=$(position "$(control "Latest checkpoint's REDO location")")
  replayed=$(position "$(control 'Minimum recovery ending location')")
  [ "$replayed" -gt "$redo" ] || replayed=$redo
  [ "$replayed" -le "$(position "$3")" ] ||
    refuse "the volume of $POD_NAME has data that the primary does not have: $kept"
  segment=$(control 'Bytes per WAL segment')
  needed=$(printf '%08X%08X' $((replayed >> 32)) $(((replayed & 0xFFFFFFFF) / segment)))
  case $(printf '%s\n' "$needed" "$oldest" | sort | head -n 1) in
  "$oldest") return 0 ;;
  "$needed") return 1 ;;
  *) refuse "sort does not run in this image: nothing was changed" ;;
  esac
}

# A standby follows the primary as is said here and runs no command for it, whatever settings came with the copy. With
# fewer WAL senders than its primary it does not start; of what else must not be less, settings.sh takes care.
set_standby() {
  settings=$1/postgresql.auto.conf
  {
    grep -viE '^[[:blank:]]*(primary_conninfo|(restore|archive_cleanup|recovery_end)_command|max_(wal_senders|connections|worker_processes|prepared_transactions|locks_per_transaction))([[:blank:]=]|$)' \
      "$settings" || :
    printf "primary_conninfo = '%s'\n" "$remote"
    printf "%s = ''\n" restore_command archive_cleanup_command recovery_end_command
    echo 'max_wal_senders = 200'
  } >"$settings.new"
  mv "$settings.new" "$settings"
  : >"$1/standby.signal"
}

copy_primary() {
  # Renamed first: half-deleted data must not look like data.
  rm -rf "$PGDATA.part" "$PGDATA.old"
  [ ! -e "$PGDATA" ] || mv "$PGDATA" "$PGDATA.old"
  rm -rf "$PGDATA.old"
  say "copying the primary, $PRIMARY_HOST"
  run pg_basebackup -D "$PGDATA.part" -d "$remote" -X stream -c fast -w
  set_standby "$PGDATA.part"
  mv "$PGDATA.part" "$PGDATA"
  check_libc
}

prepare_replica() {
  connect
  if ! has_data; then
    is_empty ||
      refuse "the volume of $POD_NAME has files in $PGDATA that are no database: they are left alone, in the claim data-$POD_NAME. Save what is needed of them, and empty the folder"
    wait_for_primary
    copy_primary
    return 0
  fi
  follows=2
  if wait_for_primary "$primary_tries_max"; then
    follows=0
    can_follow || follows=$?
  fi
  case $follows in
  0) set_standby "$PGDATA" ;;
  1)
    say "the primary has no longer what this copy lacks: copying it again"
    copy_primary
    ;;
  *)
    [ -e "$PGDATA/standby.signal" ] ||
      refuse "the volume of $POD_NAME has data of its own, and the primary, $PRIMARY_HOST, does not answer: it is left alone, in the claim data-$POD_NAME"
    say "the primary, $PRIMARY_HOST, does not answer as it should: starting with the data that is there; it is not ready before it follows the primary"
    set_standby "$PGDATA"
    ;;
  esac
}

check_secret
end_former_server
check_version
check_libc
if [ "${POD_NAME##*-}" = 0 ]; then prepare_primary; else prepare_replica; fi
sh "$here/settings.sh" start
