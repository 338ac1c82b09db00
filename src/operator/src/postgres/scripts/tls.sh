#!/bin/sh
# TLS of an instance, with the certificate of the Secret that spec.tls names. Pods without spec.tls do not have this.
#
#   tls.sh prepare  instead of prepare.sh, before PostgreSQL in each Pod
#   tls.sh ready …  before a readiness probe, whose command follows, from time to time while the server runs
#   tls.sh          adds what is written here to postgresql.conf, at the end of a first start
#
# The server keeps no certificate that a client would refuse: files of the Secret are tried, by connections that verify
# as a client does, and if one of those fails, the files before are put back. What the server uses is a copy that goes
# with the Pod, so that no volume and no backup has a key. Beside the data, on the volume, are only marks:
#
#   $PGDATA.tls      digest of the files that were accepted last; `none` while the first ones are awaited. Without it,
#                    the data is older than spec.tls
#   $PGDATA.follows  the primary was reached with TLS: it is never followed without it again
set -eu
umask 077
# Messages of libpq are recognized.
export LC_ALL=C
# Users of the database may have made functions and operators that go by the names of PostgreSQL's, and settings of the
# DatabaseCluster hold for every session.
export PGOPTIONS='-c search_path=pg_catalog -c statement_timeout=0 -c lock_timeout=0'
here=$(dirname "$0")
used=${PASSFILE%/*}/tls
new=$used/new
config=$used/postgresql.conf
primary_host=${PRIMARY_HOST:-$PRIMARY_NAME}
primary_port=${PRIMARY_PORT:-5432}
files='tls.crt tls.key ca.crt'
# A chain of certificates has some 10 kB.
file_bytes_max=65536
# As prepare.sh waits for a primary.
primary_tries_max=60
why=
unusable="PostgreSQL cannot use tls.crt and tls.key of the Secret $TLS_SECRET_NAME: the key does not belong to the certificate, or one of them is no PEM file without a passphrase"

say() { printf '%s\n' "$*" >&2; }
refuse() { say "TLS: $*"; exit 1; }
is_primary() { [ "${POD_NAME##*-}" = 0 ]; }
is_required() { [ "$TLS_REQUIRED" = true ]; }
has_worked() { [ -e "$PGDATA.tls" ] && [ "$(cat "$PGDATA.tls")" != none ]; }
sql() { psql -XAtq -U postgres -d postgres -c "$1"; }

include() {
  line="include_if_exists = '$config'"
  grep -qxF "$line" "$PGDATA/postgresql.conf" || printf '%s\n' "$line" >>"$PGDATA/postgresql.conf"
}

# Whether the instance serves without TLS if it has to. A replica that does not become ready ends a rollout before it
# comes to the primary; a primary that had no TLS before serves as it did.
may_be_without() {
  is_primary && { [ ! -e "$PGDATA.tls" ] || { ! is_required && has_worked; }; }
}

# Whether TLS is on.
write_config() {
  {
    ! is_required || printf "hba_file = '%s'\n" "$used/pg_hba.conf"
    printf "ssl = '%s'\n" "$1"
    printf "ssl_cert_file = '%s'\nssl_key_file = '%s'\n" "$used/tls.crt" "$used/tls.key"
    printf "ssl_min_protocol_version = 'TLSv1.2'\n"
  } >"$config.new"
  mv "$config.new" "$config"
}

# Who is let in where TLS is required: by sockets inside the Pod, the exporter of metrics in the same Pod, and over the
# network as `host` or `hostssl`.
write_hba() {
  {
    printf 'local all all trust\nlocal replication all trust\n'
    printf 'host all databasecluster_exporter 127.0.0.1/32 scram-sha-256\n'
    printf '%s all all all scram-sha-256\n%s replication replicator all scram-sha-256\n' "$1" "$1"
  } >"$used/pg_hba.conf.new"
  mv "$used/pg_hba.conf.new" "$used/pg_hba.conf"
}

# Copies the files of the Secret, which the kubelet may replace at any time.
copy_new() {
  rm -rf "$new"
  mkdir -p "$new"
  for file in $files; do
    head -c $((file_bytes_max + 1)) "$TLS_DIR/$file" 2>/dev/null >"$new/$file" || :
  done
}

is_unchanged() {
  for file in $files; do
    if [ -e "$TLS_DIR/$file" ]; then
      cmp -s "$TLS_DIR/$file" "$new/$file" || return 1
    else
      [ ! -s "$new/$file" ] || return 1
    fi
  done
}

# Each file has a digest of its own: joined, two of them may be two others.
digest() {
  for file in $files; do
    sha256sum <"$1/$file"
  done | sha256sum | cut -d' ' -f1
}

is_complete() {
  if [ ! -s "$new/tls.crt" ] && [ ! -s "$new/tls.key" ] && [ ! -s "$new/ca.crt" ] && [ ! -e "$TLS_DIR/tls.crt" ]; then
    why="the Secret $TLS_SECRET_NAME is missing, or has none of the keys tls.crt, tls.key and ca.crt: create it"
    return 1
  fi
  for file in $files; do
    if [ -s "$TLS_DIR/$file" ] && [ ! -s "$new/$file" ]; then
      why="the key $file of the Secret $TLS_SECRET_NAME is not readable for the user of the instance: it needs securityContext.fsGroup"
      return 1
    fi
    if [ ! -s "$new/$file" ]; then
      why="the Secret $TLS_SECRET_NAME has no key $file: add it"
      return 1
    fi
    if [ "$(wc -c <"$new/$file")" -gt "$file_bytes_max" ]; then
      why="the key $file of the Secret $TLS_SECRET_NAME has more than $file_bytes_max bytes: remove what is no certificate of the chain"
      return 1
    fi
  done
}

put() {
  for file in $files; do
    cp "$1/$file" "$used/$file.new"
    mv "$used/$file.new" "$used/$file"
  done
}

# Begin and end of a certificate's validity, as YYMMDDhhmmss. For messages only: nothing is decided by it.
validity() {
  sed -n '/BEGIN CERTIFICATE/,/END CERTIFICATE/{
/CERTIFICATE/!p
}
/END CERTIFICATE/q' "$1" | base64 -d 2>/dev/null | tr '\000-\037\177-\377' '\n' |
    sed -n 's/^\(20\)\{0,1\}\([0-9]\{12\}\)Z.*/\2/p' | head -n 2
}

# Why no client trusts the certificate of a file.
explain_distrust() {
  dates=$(validity "$1")
  begin=$(printf '%s\n' "$dates" | sed -n 1p)
  end=$(printf '%s\n' "$dates" | sed -n 2p)
  now=$(date -u +%y%m%d%H%M%S)
  certificate="the certificate in the Secret $TLS_SECRET_NAME"
  if [ -n "$end" ] && [ "$end" -lt "$now" ]; then
    why="$certificate has expired, on 20$(printf %s "$end" | sed 's/^\(..\)\(..\)\(..\).*/\1-\2-\3/'): renew it"
  elif [ -n "$begin" ] && [ "$begin" -gt "$now" ]; then
    why="$certificate is not valid yet: check the clocks of the nodes, or issue it again"
  else
    why="$certificate was not issued by the authority in its ca.crt: correct ca.crt, or issue the certificate again"
  fi
}

# Connects to a server as a client does that verifies it: name, address or nothing, port, file of the authority.
# 0 the server was verified, 1 it was not, 2 it does not answer, 3 it has no TLS, 4 its certificate is for other names
connect() {
  said=$(psql -Xw -c '' -d "host=$1 ${2:+hostaddr=$2} port=$3 user=replicator dbname=postgres passfile=$used/none connect_timeout=2 sslmode=verify-full sslrootcert=$4" 2>&1) &&
    return 0
  case $said in
  *'does not support SSL'*) return 3 ;;
  *'does not match host name'*) return 4 ;;
  *'SSL error'* | *certificate*) return 1 ;;
  # Asking for a password, and everything that a server answers, comes after the certificate.
  *'no password supplied'* | *FATAL:*) return 0 ;;
  *) return 2 ;;
  esac
}

# Whether clients accept what the server uses, under each name by which they reach it.
verify() {
  others=
  for name in $TLS_NAMES; do
    result=0
    connect "$name" 127.0.0.1 "${PGPORT:-5432}" "$used/ca.crt" || result=$?
    case $result in
    0) ;;
    4) others="$others $name" ;;
    3) why=$unusable ;;
    1) explain_distrust "$used/tls.crt" ;;
    *) why="the server does not answer" ;;
    esac
    case $result in 0 | 4) ;; *) return "$result" ;; esac
  done
  [ -z "$others" ] || {
    why="the certificate in the Secret $TLS_SECRET_NAME is not valid for$others: add what is missing to its DNS names"
    return 4
  }
}

# A server that has TLS keeps what it has when it cannot load new files, so that this would not be seen. A client loads
# them as the server does.
is_loadable() {
  said=$(psql -Xw -c '' -d "host=127.0.0.1 user=replicator dbname=postgres passfile=$used/none connect_timeout=2 sslmode=require sslcert=$new/tls.crt sslkey=$new/tls.key" 2>&1) ||
    case $said in
    *'certificate file "'* | *'private key file "'*)
      why=$unusable
      return 1
      ;;
    esac
}

reload_server() {
  before=$(sql 'SELECT pg_conf_load_time()')
  sql 'SELECT pg_reload_conf()' >/dev/null
  tries=0
  while [ "$(sql 'SELECT pg_conf_load_time()')" = "$before" ]; do
    tries=$((tries + 1))
    [ "$tries" -le 20 ] || return 1
    sleep 0.1
  done
}

# Tries the files of the Secret. Those before stay, or none, when clients would refuse them.
take_new() {
  is_complete || return 1
  [ ! -e "$used/on" ] || is_loadable || return 1
  if [ -e "$used/on" ] && [ ! -e "$used/trying" ]; then
    mkdir -p "$used/old"
    for file in $files; do cp "$used/$file" "$used/old/$file"; done
  fi
  : >"$used/trying"
  put "$new"
  write_config on
  include
  reload_server || { why="the server does not reload its configuration"; return 1; }
  result=0
  verify || result=$?
  if [ "$result" = 0 ]; then
    : >"$used/on"
    ! is_required || { write_hba hostssl && reload_server; }
    digest "$used" >"$PGDATA.tls"
  elif [ -e "$used/on" ]; then
    put "$used/old"
    reload_server || :
  elif [ "$result" != 3 ] && has_worked; then
    # TLS has worked here, and clients may insist on it: better such a certificate than none.
    : >"$used/on"
  else
    write_config off
    reload_server || :
  fi
  rm -f "$used/trying"
  return "$result"
}

# Keeps TLS as the Secret asks for it. What is wrong is in two files: `why` for the files of the Secret, and `stale` for
# those in use.
refresh() {
  if ! is_unchanged || [ ! -e "$used/tried" ]; then
    rm -f "$used/tried"
    copy_new
    why=
    if take_new; then
      rm -f "$used/why" "$used/stale"
    else
      [ "$why" = "$(cat "$used/why" 2>/dev/null)" ] || rm -f "$used/reported"
      printf '%s\n' "$why" >"$used/why"
    fi
    # The server may only have been busy.
    case $why in 'the server '*) ;; *) : >"$used/tried" ;; esac
    : >"$used/verified"
  elif [ -e "$used/on" ] && [ -n "$(find "$used/verified" -mmin +1)" ]; then
    # Certificates expire.
    : >"$used/verified"
    result=0
    verify || result=$?
    case $result in
    0) rm -f "$used/stale" ;;
    1 | 4) printf '%s\n' "$why" >"$used/stale" ;;
    esac
  fi
  is_primary || follow_with_tls
}

# From when on the primary has TLS, it is followed with TLS only.
follow_with_tls() {
  [ -e "$used/on" ] && [ ! -e "$used/follows" ] || return 0
  [ "$(sql "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'")" = 1 ] || return 0
  connect "$primary_host" '' "$primary_port" "$used/ca.crt" || return 0
  connection=$(sql 'SHOW primary_conninfo' | sed "s/host=[^ ]*/host=$primary_host/; s/ sslmode=.*//")
  # The same password, for the name that the certificate has.
  if ! grep -qF "$primary_host:" "$PASSFILE"; then
    line=$(sed "s/^[^:]*:/$primary_host:/" "$PASSFILE" | head -n 1)
    printf '%s\n' "$line" >>"$PASSFILE"
  fi
  psql -XAtq -U postgres -d postgres -v connection="$connection $(parameters)" >/dev/null <<'SQL'
ALTER SYSTEM SET primary_conninfo = :'connection';
SELECT pg_reload_conf();
SQL
  : >"$PGDATA.follows"
  : >"$used/follows"
}

parameters() { printf 'sslmode=verify-full sslrootcert=%s' "$used/ca.crt"; }

# How this replica reaches its primary. A primary without TLS is accepted until it was seen with TLS: while spec.tls is
# rolled out, replicas come first.
find_primary() {
  is_complete || refuse "$why"
  cp "$new/ca.crt" "$used/ca.crt"
  tries=0
  while :; do
    result=0
    connect "$primary_host" '' "$primary_port" "$used/ca.crt" || result=$?
    tries=$((tries + 1))
    case $result in
    0) return 0 ;;
    1 | 4) refuse "the primary, $primary_host, has a certificate that cannot be verified: $(printf '%s\n' "$said" | tail -n 1 | sed 's/^.*failed: //')" ;;
    # It has none for some seconds after its start.
    3) [ -e "$PGDATA.follows" ] || return 1 ;;
    esac
    if [ "$tries" -ge "$primary_tries_max" ] && [ -s "$PGDATA/PG_VERSION" ]; then
      [ -e "$PGDATA.follows" ] || return 1
      return 0
    fi
    say "waiting for the primary, $primary_host"
    sleep 2
  done
}

prepare() {
  # The first process of a container gets no signal that it does not ask for.
  child=
  trap 'if [ -n "$child" ]; then kill "$child" 2>/dev/null || :; else exit 143; fi' TERM INT
  rm -rf "$used"
  mkdir "$used"
  [ -s "$PGDATA/PG_VERSION" ] || [ -e "$PGDATA.tls" ] || echo none >"$PGDATA.tls"
  if [ -e "$PGDATA.tls" ]; then write_hba hostssl; else write_hba host; fi
  copy_new
  # Those that were accepted last are used from the first moment on.
  if is_complete && [ "$(digest "$new")" = "$(cat "$PGDATA.tls" 2>/dev/null)" ]; then
    put "$new"
    : >"$used/on"
    : >"$used/tried"
    : >"$used/verified"
    write_config on
  else
    write_config off
  fi
  cp -f "$here/tls.sh" "$INITDB_DIR/tls.sh"
  if ! is_primary && find_primary; then
    : >"$used/follows"
    export PRIMARY_HOST="$primary_host" PGSSLMODE=verify-full PGSSLROOTCERT="$used/ca.crt"
  fi
  sh "$here/prepare.sh" &
  child=$!
  ended=0
  wait "$child" || ended=$?
  # A signal ends the wait before the child.
  while kill -0 "$child" 2>/dev/null; do
    ended=0
    wait "$child" || ended=$?
  done
  child=
  [ "$ended" = 0 ] || exit "$ended"
  [ ! -s "$PGDATA/postgresql.conf" ] || include
  if [ -e "$used/follows" ]; then
    settings=$PGDATA/postgresql.auto.conf
    sed "s|^\(primary_conninfo = '.*\)'\$|\1 $(parameters)'|" "$settings" >"$settings.new"
    mv "$settings.new" "$settings"
    : >"$PGDATA.follows"
  fi
}

ready() {
  if pg_isready -q -h 127.0.0.1 -U postgres; then refresh || :; fi
  sh "$@"
  why=$(cat "$used/why" 2>/dev/null || cat "$used/stale" 2>/dev/null || :)
  if [ -z "$why" ] && [ ! -e "$used/on" ] && ! may_be_without; then
    # The server began to answer after the first line.
    echo "TLS: the certificate is not loaded yet"
    exit 1
  fi
  if [ -z "$why" ]; then
    # It ends what was reported before, as below.
    [ -e "$used/reported" ] || exit 0
    rm -f "$used/reported"
    echo "TLS: the certificate is in order again"
    exit 1
  fi
  if [ ! -e "$used/on" ] && ! may_be_without; then
    echo "TLS: $why"
    exit 1
  fi
  # A single failure is an Event, and leaves the Pod ready.
  if [ ! -e "$used/reported" ] || [ -n "$(find "$used/reported" -mmin +10)" ]; then
    : >"$used/reported"
    echo "TLS: $why. The instance serves as before"
    exit 1
  fi
}

case ${1:-} in
prepare) prepare ;;
ready)
  shift
  ready "$@"
  ;;
'') include ;;
esac
