#!/bin/sh
# Runs before PostgreSQL in each Pod. Refuses whatever would harm data or serve stale data, has a primary with data
# take over the passwords of the Secret, and makes a replica a copy of its primary.
#
# Data is deleted only where it is a copy of what the primary has. What this script says last is what the
# DatabaseCluster reports.
set -eu
umask 077
export LC_ALL=C
here=$(dirname "$0")
primary_port=${PRIMARY_PORT:-5432}
replication="host=$PRIMARY_HOST port=$primary_port user=replicator application_name=$POD_NAME connect_timeout=10"
# Until then, the Secret of a DatabaseCluster that was deleted has been collected, another one created, and mounted here.
former_secret_seconds=120
# PostgreSQL looks for its lock file once a minute, and then needs up to five seconds to end.
former_server_seconds=75
running=
sockets=
trouble=

say() { printf '%s\n' "$*" >&2; }
refuse() { say "$*"; exit 1; }
has_data() { [ -s "$PGDATA/PG_VERSION" ]; }
is_empty() { [ -z "$(ls -A "$PGDATA" 2>/dev/null)" ]; }
is_initialized() { [ "$(cat "$here/initialized")" = true ]; }
control() { pg_controldata "$PGDATA" | sed -n "s/^$1: *//p"; }

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
    [ -s "$SECRET_DIR/$key" ] || refuse "the Secret $SECRET_NAME has no key $key: add it"
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
# file does not tell them apart, as both are process 1 of their containers; but a server that finds it gone ends.
end_former_server() {
  [ -e "$PGDATA/postmaster.pid" ] || [ -e "$PGDATA.ending" ] || return 0
  say "the last server on this volume was not shut down: waiting $former_server_seconds s, so that it has surely ended"
  : >"$PGDATA.ending"
  rm -f "$PGDATA/postmaster.pid"
  run sleep "$former_server_seconds"
  rm -f "$PGDATA.ending"
}

check_version() {
  has_data || return 0
  # What was mounted anew may have got the group's rights, with which PostgreSQL does not start.
  chmod 0700 "$PGDATA"
  data=$(cat "$PGDATA/PG_VERSION")
  image=$(postgres --version | sed -n 's/^[^0-9]*\([0-9][0-9]*\).*/\1/p')
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

write_passfile() {
  rm -f "$PGPASSFILE"
  password=$(sed 's/[\\:]/\\&/g' "$SECRET_DIR/replication-password")
  printf '*:*:*:replicator:%s\n' "$password" >"$PGPASSFILE"
}

# What the roles were last made from. Passwords that the operator makes are too long to be found from it.
wanted_roles() { cat "$here/initdb.sh" "$SECRET_DIR/username" "$SECRET_DIR/dbname" "$SECRET_DIR/password" \
  "$SECRET_DIR/replication-password" | sha256sum | cut -d' ' -f1; }

# Also ends a first start that was interrupted. The server answers on a socket of its own, so that no probe and no
# client sees it.
update_roles() {
  [ "$(cat "$PGDATA.roles" 2>/dev/null)" != "$(wanted_roles)" ] || return 0
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
  say "the first start was interrupted: beginning anew, what it left is in $PGDATA.unfinished"
  rm -rf "$PGDATA.unfinished"
  mv "$PGDATA" "$PGDATA.unfinished"
}

prepare_primary() {
  if has_data; then
    [ ! -e "$PGDATA/standby.signal" ] ||
      refuse "the volume of the primary has the data of a replica: restore the volume of the primary"
    if update_roles; then
      rm -f "$PGDATA.begun"
      return 0
    fi
    if [ ! -e "$PGDATA.begun" ] || is_initialized; then refuse "$trouble"; fi
    set_unfinished_aside
  fi
  if is_initialized; then
    refuse "the volume of the primary has no data, though this cluster had some: nothing is made anew over it. Restore the volume, or delete the DatabaseCluster and its claims to begin anew"
  fi
  if ! is_empty; then
    [ -e "$PGDATA.begun" ] ||
      refuse "the volume of the primary has files in $PGDATA that are no database: they are left alone. Restore the volume, or remove them"
    set_unfinished_aside
  fi
  : >"$PGDATA.begun"
}

wait_for_primary() {
  until pg_isready -q -h "$PRIMARY_HOST" -p "$primary_port" -U replicator; do
    say "waiting for the primary, $PRIMARY_HOST"
    sleep 2
  done
}

# A position in the write-ahead log as a number; an invalid one is 0.
position() { echo $(((0x${1%/*} << 32) + 0x${1#*/})); }

# Whether the data is an older copy of the primary's that can still catch up. Data that the primary does not have is
# never deleted.
can_follow() {
  # system identifier, timeline, position
  primary=$(psql -XAtq -F ' ' -d "$replication replication=true" -c IDENTIFY_SYSTEM) ||
    refuse "the primary, $PRIMARY_HOST, does not answer as it should"
  # shellcheck disable=SC2086 # split on purpose
  set -- $primary
  [ "$(control 'Database system identifier')" = "$1" ] ||
    refuse "the volume of $POD_NAME has the data of another database: it is left alone. Delete the claim data-$POD_NAME if it is not needed"
  if [ ! -e "$PGDATA/standby.signal" ] || [ "$(control "Latest checkpoint's TimeLineID")" != "$2" ]; then
    refuse "the volume of $POD_NAME has data of its own (it was promoted, or the primary was restored): it is left alone. Delete the claim data-$POD_NAME if it is not needed"
  fi
  redo=$(position "$(control "Latest checkpoint's REDO location")")
  replayed=$(position "$(control 'Minimum recovery ending location')")
  [ "$replayed" -gt "$redo" ] || replayed=$redo
  [ "$replayed" -le "$(position "$3")" ] ||
    refuse "the volume of $POD_NAME has data that the primary does not have: it is left alone. Delete the claim data-$POD_NAME if it is not needed"
  segment=$(control 'Bytes per WAL segment')
  needed=$(printf '%08X%08X' $((replayed >> 32)) $(((replayed & 0xFFFFFFFF) / segment)))
  oldest=$(psql -XAtq -d "$replication dbname=postgres" \
    -c "SELECT min(substr(name, 9)) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}\$'") ||
    refuse "the primary, $PRIMARY_HOST, does not answer as it should"
  [ "$(printf '%s\n' "$needed" "$oldest" | sort | head -n 1)" = "$oldest" ]
}

copy_primary() {
  # Renamed first: half-deleted data must not look like data.
  rm -rf "$PGDATA.part" "$PGDATA.old"
  [ ! -e "$PGDATA" ] || mv "$PGDATA" "$PGDATA.old"
  rm -rf "$PGDATA.old"
  say "copying the primary, $PRIMARY_HOST"
  run pg_basebackup -D "$PGDATA.part" -d "$replication" -X stream -c fast -R -w
  mv "$PGDATA.part" "$PGDATA"
}

prepare_replica() {
  has_data || is_empty ||
    refuse "the volume of $POD_NAME has files in $PGDATA that are no database: they are left alone. Delete the claim data-$POD_NAME if they are not needed"
  wait_for_primary
  if has_data; then
    if can_follow; then return 0; fi
    say "the primary has no longer what this copy lacks: copying it anew"
  fi
  copy_primary
  check_libc
}

check_secret
end_former_server
check_version
check_libc
write_passfile
if [ "${POD_NAME##*-}" = 0 ]; then prepare_primary; else prepare_replica; fi
