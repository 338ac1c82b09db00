-- The queries of postgres_exporter 0.20.1 (Apache-2.0) that it runs by default on PostgreSQL 14 and newer: those of the
-- collectors database, locks, replication, replication_slots, roles, settings, stat_activity, stat_archiver,
-- stat_bgwriter, stat_database, stat_progress_vacuum, stat_replication, stat_user_tables, statio_user_tables and wal.
SELECT version();
SHOW server_version;
SELECT pg_database.datname, pg_database.datconnlimit FROM pg_database;
SELECT pg_database_size(datname) FROM pg_database;
SELECT pg_database.datname AS datname, tmp.mode AS mode, COALESCE(count, 0) AS count
  FROM (VALUES ('accesssharelock'), ('accessexclusivelock'), ('sireadlock')) AS tmp(mode) CROSS JOIN pg_database
  LEFT JOIN (SELECT database, lower(mode) AS mode, count(*) AS count FROM pg_locks WHERE database IS NOT NULL
    GROUP BY database, lower(mode)) AS tmp2 ON tmp.mode = tmp2.mode AND pg_database.oid = tmp2.database ORDER BY 1;
SELECT CASE WHEN NOT pg_is_in_recovery() THEN 0 WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0
    ELSE GREATEST(0, EXTRACT(EPOCH FROM (now() - pg_last_xact_replay_timestamp()))) END AS lag,
  CASE WHEN pg_is_in_recovery() THEN 1 ELSE 0 END AS is_replica,
  GREATEST(0, EXTRACT(EPOCH FROM (now() - pg_last_xact_replay_timestamp()))) AS last_replay;
SELECT slot_name, database, active, (CASE pg_is_in_recovery() WHEN 't'
    THEN pg_wal_lsn_diff(pg_last_wal_receive_lsn(), restart_lsn)
    ELSE pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) END) AS pg_wal_lsn_diff FROM pg_replication_slots;
SELECT slot_name, slot_type,
  CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() - '0/0' ELSE pg_current_wal_lsn() - '0/0' END,
  COALESCE(confirmed_flush_lsn, '0/0') - '0/0', active, safe_wal_size, wal_status FROM pg_replication_slots;
SELECT pg_roles.rolname, pg_roles.rolconnlimit FROM pg_roles;
SELECT name, setting, COALESCE(unit, ''), COALESCE(short_desc, ''), vartype FROM pg_settings
  WHERE vartype IN ('bool', 'integer', 'real') AND name NOT IN ('sync_commit_cancel_wait', 'google_dataplex.max_messages');
SELECT pg_database.datname, tmp.state, tmp2.usename, tmp2.application_name, tmp2.backend_type, tmp2.wait_event_type,
  tmp2.wait_event, COALESCE(count, 0) AS count, COALESCE(max_tx_duration, 0) AS max_tx_duration
  FROM (VALUES ('active'), ('idle'), ('idle in transaction'), ('disabled')) AS tmp(state) CROSS JOIN pg_database
  LEFT JOIN (SELECT datname, state, usename, application_name, backend_type, wait_event_type, wait_event,
    count(*) AS count, MAX(EXTRACT(EPOCH FROM now() - xact_start))::float AS max_tx_duration
    FROM pg_stat_activity WHERE pid <> pg_backend_pid()
    GROUP BY datname, state, usename, application_name, backend_type, wait_event_type, wait_event) AS tmp2
  ON tmp.state = tmp2.state AND pg_database.datname = tmp2.datname;
SELECT archived_count, failed_count, extract(epoch FROM now() - last_archived_time) AS last_archive_age
  FROM pg_stat_archiver;
SELECT buffers_clean, maxwritten_clean, buffers_alloc, stats_reset FROM pg_stat_bgwriter;
SELECT datid, datname, numbackends, xact_commit, xact_rollback, blks_read, blks_hit, tup_returned, tup_fetched,
  tup_inserted, tup_updated, tup_deleted, conflicts, temp_files, temp_bytes, deadlocks, blk_read_time, blk_write_time,
  stats_reset, active_time FROM pg_stat_database;
SELECT d.datname, COALESCE(CASE WHEN d.datname = current_database() THEN s.relid::regclass::text END, s.relid::text),
  s.param1 AS phase FROM pg_stat_get_progress_info('VACUUM'::text) s(pid, datid, relid, param1, param2, param3, param4,
    param5, param6, param7, param8, param9, param10, param11, param12, param13, param14, param15, param16, param17,
    param18, param19, param20) LEFT JOIN pg_database d ON s.datid = d.oid;
SELECT application_name, client_addr::text, state, s.slot_name, (CASE pg_is_in_recovery() WHEN 't'
    THEN pg_wal_lsn_diff(pg_last_wal_receive_lsn(), replay_lsn)::float
    ELSE pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::float END) AS pg_wal_lsn_diff
  FROM pg_stat_replication LEFT JOIN pg_replication_slots s ON s.active_pid = pg_stat_replication.pid;
SELECT current_database() datname, schemaname, relname, seq_scan, n_live_tup, COALESCE(last_vacuum, '1970-01-01Z'),
  pg_indexes_size(relid) AS indexes_size, pg_table_size(relid) AS table_size FROM pg_stat_user_tables;
SELECT current_database() datname, schemaname, relname, heap_blks_read, heap_blks_hit FROM pg_statio_user_tables;
SELECT COUNT(*) AS segments, SUM(size) AS size FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$';
