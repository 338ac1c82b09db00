#!/bin/sh
# The role with which the exporter of metrics logs in: a member of pg_monitor that owns nothing, with a password of its
# own. The exporter gets this password only: no socket, on which it could be any user, and no other Secret.
#
#   exporter.sh password   before each start: writes the password for the exporter
#   exporter.sh ready      the readiness probe: ready.sh, and then the role on the primary
#   exporter.sh role       creates the role, or sets its password again
set -eu
umask 022
export LC_ALL=C
# Users of the database may have made functions and operators that go by the names of PostgreSQL's, and settings of the
# DatabaseCluster hold for every session.
export PGOPTIONS='-c search_path=pg_catalog -c statement_timeout=0 -c lock_timeout=0'
here=$(dirname "$0")
password=$EXPORTER_DIR/password

case $1 in
password)
  # The same in every Pod without another Secret, as replicas have the roles of their primary. Passwords that the
  # operator makes are too long to be found from it.
  { printf 'exporter %s\n' "$CLUSTER_UID" && tr -d '\r\n' <"$SECRET_DIR/replication-password"; } | sha256sum |
    cut -d' ' -f1 >"$password.new"
  # Where the platform assigns users, the exporter may have another one; nobody else has the volume.
  chmod 0444 "$password.new"
  mv "$password.new" "$password"
  ;;
ready)
  sh "$here/ready.sh" || exit
  [ "${POD_NAME##*-}" = 0 ] || exit 0
  # What comes of it is no part of the answer: the database serves without it.
  timeout 2 sh "$0" role >/dev/null 2>&1 || :
  ;;
role)
  mark=${TMPDIR:-/tmp}/exporter-role
  if [ -n "$(find "$mark" -newer "$password" 2>/dev/null)" ]; then exit 0; fi
  # Nothing of this may get into the server's log. A role of this name that others made is left alone, as is one that
  # applications use.
  psql -X -q -v ON_ERROR_STOP=1 -U postgres -d postgres >/dev/null <<'SQL'
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
SET log_min_duration_statement = -1;
SET password_encryption = 'scram-sha-256';
\set password `cat "$EXPORTER_DIR/password"`
\set comment 'Metrics of this DatabaseCluster: its exporter logs in with it.'
SELECT NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'databasecluster_exporter') AS is_new,
  NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'databasecluster_exporter'
    AND shobj_description(oid, 'pg_authid') IS DISTINCT FROM :'comment') AS is_ours \gset
\if :is_ours
BEGIN;
\if :is_new
CREATE ROLE databasecluster_exporter;
COMMENT ON ROLE databasecluster_exporter IS :'comment';
\endif
ALTER ROLE databasecluster_exporter LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS CONNECTION LIMIT 5
  PASSWORD :'password';
ALTER ROLE databasecluster_exporter SET search_path = pg_catalog;
ALTER ROLE databasecluster_exporter SET default_transaction_read_only = on;
ALTER ROLE databasecluster_exporter SET statement_timeout = '30s';
ALTER ROLE databasecluster_exporter SET lock_timeout = '2s';
GRANT pg_monitor TO databasecluster_exporter;
COMMIT;
\endif
SQL
  : >"$mark"
  ;;
esac
