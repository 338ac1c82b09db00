#!/bin/sh
# Makes roles, database and settings, the first time and whenever the Secret changed. Runs against a server that
# accepts nothing but local connections. May be run any number of times.
set -eu
here=$(dirname "$0")
# Users of the database may have made functions and operators that go by the names of PostgreSQL's, and would run here as
# superuser. Settings of the DatabaseCluster hold for every session.
export PGOPTIONS='-c search_path=pg_catalog -c statement_timeout=0 -c lock_timeout=0'

# From what all this was made. Each file has a digest of its own: joined, two of them may be two others. Passwords that
# the operator makes are too long to be found from it.
digest() {
  for file in "$here/initdb.sh" "$SECRET_DIR/username" "$SECRET_DIR/dbname" "$SECRET_DIR/password" \
    "$SECRET_DIR/replication-password"; do
    sha256sum <"$file"
  done | sha256sum | cut -d' ' -f1
}
if [ "${1:-}" = digest ]; then
  digest
  exit 0
fi

# Nothing of this may get into the server's log: it has passwords. The superuser gets none: it can be used inside the
# Pod only.
psql -X -q -v ON_ERROR_STOP=1 -U postgres -d postgres >/dev/null <<'SQL'
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
SET log_min_duration_statement = -1;
SET password_encryption = 'scram-sha-256';
\set username `tr -d '\r\n' <"$SECRET_DIR/username"`
\set dbname `tr -d '\r\n' <"$SECRET_DIR/dbname"`
\set password `tr -d '\r\n' <"$SECRET_DIR/password"`
\set replication `tr -d '\r\n' <"$SECRET_DIR/replication-password"`
-- Under another username the role keeps all that it owns and was granted, and the former name cannot log in any more.
\set former `[ ! -e "$PGDATA/application_role" ] || cat "$PGDATA/application_role"`
SELECT format('ALTER ROLE %I RENAME TO %I', :'former', :'username')
  WHERE :'former' <> :'username' AND EXISTS (SELECT FROM pg_roles WHERE rolname = :'former') \gexec
SELECT format('CREATE ROLE %I LOGIN', :'username')
  WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'username') \gexec
SELECT 'CREATE ROLE replicator LOGIN REPLICATION'
  WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'replicator') \gexec
ALTER ROLE :"username" PASSWORD :'password';
ALTER ROLE replicator PASSWORD :'replication';
-- To ask which part of the write-ahead log is still there.
GRANT pg_monitor TO replicator;
ALTER ROLE postgres PASSWORD NULL;
SELECT format('CREATE DATABASE %I OWNER %I', :'dbname', :'username')
  WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'dbname') \gexec
ALTER SYSTEM SET listen_addresses = '*';
-- For 98 replicas, each of which needs two while it copies the primary.
ALTER SYSTEM SET max_wal_senders = 200;
SQL

hba=$PGDATA/pg_hba.conf
line='host replication replicator all scram-sha-256'
grep -qxF "$line" "$hba" || printf '%s\nhost all all all scram-sha-256\n' "$line" >>"$hba"

# It is in the data, so that it goes wherever a copy goes.
if [ ! -s "$PGDATA/made_with_libc" ]; then
  libc=glibc
  ! ls /lib/ld-musl-* >/dev/null 2>&1 || libc=musl
  printf '%s\n' "$libc" >"$PGDATA/made_with_libc"
fi

sh "$SCRIPTS_DIR/settings.sh" include

# In the data, too: the next Secret that is taken over may have another name for the role.
tr -d '\r\n' <"$SECRET_DIR/username" >"$PGDATA/application_role"
digest >"$PGDATA.roles"
# The end of a first start.
rm -f "$PGDATA.begun"
