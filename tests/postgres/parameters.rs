//! Parameters of the spec and defaults of the operator, as a real server sees them; and what never stops it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::{Value, json};

use crate::pod::{Pod, World};

fn show(pod: &Pod, name: &str) -> String {
    pod.psql_local(&format!("SHOW {name}")).unwrap()
}

fn started(pod: &Pod) -> String {
    pod.psql_local("SELECT pg_postmaster_start_time()").unwrap()
}

fn parameters(given: &Value) -> Value {
    json!({ "parameters": given })
}

fn ready(pod: Pod) -> Pod {
    pod.until_ready();
    pod
}

/// A primary, and a replica that follows it.
fn pair(world: &World) -> (Pod, Pod) {
    let primary = ready(Pod::new(world, 0).prepared().start());
    let replica = ready(Pod::new(world, 1).prepared().start());
    (primary, replica)
}

#[test]
fn defaults_parameters_and_initdb_reach_primary_and_replica() {
    let world = World::with(&json!({
        "parameters": {"work_mem": "16MB", "max_connections": 50, "search_path": "\"$user\", public"},
        "initdb": {"walSegmentSizeMB": 4},
    }));
    let (primary, replica) = pair(&world);
    for pod in [&primary, &replica] {
        for (name, value) in [
            ("work_mem", "16MB"),
            ("max_connections", "50"),
            ("search_path", "\"$user\", public"),
            ("shared_buffers", "128MB"),
            ("effective_cache_size", "384MB"),
            ("maintenance_work_mem", "32MB"),
            ("wal_keep_size", "102MB"),
            ("max_slot_wal_keep_size", "204MB"),
            ("max_wal_size", "102MB"),
            ("random_page_cost", "1.1"),
            ("data_checksums", "on"),
            ("wal_segment_size", "4MB"),
            ("server_encoding", "UTF8"),
            ("max_wal_senders", "200"),
        ] {
            // The session of psql has a search path of its own.
            let query = format!("SELECT reset_val FROM pg_settings WHERE name = '{name}'");
            let found = pod.psql_local(&query).unwrap();
            let shown = show(pod, name);
            assert!(found == value || shown == value, "{name}: {found}, {shown}");
        }
        let collation = pod.psql_local("SELECT datcollate FROM pg_database WHERE datname = 'app'");
        assert_eq!(collation.as_deref(), Ok("C.UTF-8"));
        // The one that the test gives on the command line.
        let errors = "SELECT name, error FROM pg_file_settings WHERE error IS NOT NULL AND name <> 'listen_addresses'";
        assert_eq!(pod.psql_local(errors).as_deref(), Ok(""));
    }
}

#[test]
fn changed_parameter_is_reloaded_without_a_restart() {
    let mut world = World::new();
    let (primary, replica) = pair(&world);
    let before = [started(&primary), started(&replica)];
    world.set_postgresql(&parameters(
        &json!({"work_mem": "17MB", "statement_timeout": "1ms"}),
    ));
    for pod in [&primary, &replica] {
        pod.mount(&world);
        // Also with a time-out that no query of the operator would meet.
        for _ in 0..3 {
            pod.probe("readinessProbe").unwrap();
        }
        pod.until("it is reloaded", |pod| show(pod, "work_mem") == "17MB");
    }
    assert_eq!(before, [started(&primary), started(&replica)]);
    // What is removed has its default again.
    world.set_postgresql(&json!({}));
    primary.mount(&world);
    primary.probe("readinessProbe").unwrap();
    primary.until("it is reloaded", |pod| show(pod, "work_mem") == "4MB");
    assert_eq!(before[0], started(&primary));
}

/// Others may edit the ConfigMap, and an image may refuse what the operator takes for right.
#[test]
fn refused_parameters_leave_the_server_as_it_is_also_at_its_next_start() {
    let world = World::with(&parameters(&json!({"work_mem": "16MB"})));
    let mut primary = ready(Pod::new(&world, 0).prepared().start());
    let before = started(&primary);
    for (bad, why) in [
        ("work_mem = '16QB'", "invalid value for parameter"),
        ("work_men = '16MB'", "unrecognized configuration parameter"),
        ("io_workers = '4'", "unrecognized configuration parameter"),
        (
            "work_mem = '17MB'\narchive_command = 'touch /tmp/x'",
            "archive_command is not for it to set",
        ),
        (
            "restore_command = 'x'",
            "restore_command is not for it to set",
        ),
        (
            "session_preload_libraries = 'x'",
            "session_preload_libraries is not for it",
        ),
        ("ssl_key_file = '/x'", "ssl_key_file is not for it to set"),
        ("fsync = 'off'", "fsync is not for it to set"),
        ("include '/etc/passwd'", "a line that is no parameter"),
        ("include = '/etc/passwd'", "include is not for it to set"),
        ("search_path = 'a' 'b'", "a line that is no parameter"),
        ("work_mem", "a line that is no parameter"),
        (
            "search_path = '$do$; $$'\nwork_mem = '$do$'",
            "invalid value for parameter",
        ),
    ] {
        primary.edit_parameters(&format!("{bad}\n"));
        let log = primary.log().len();
        for _ in 0..2 {
            primary.probe("readinessProbe").unwrap();
        }
        let log = primary.log().split_off(log);
        let refused = "refuses spec.postgresql.parameters, and keeps those before: ";
        let words: Vec<&str> = log
            .lines()
            .filter_map(|line| line.split_once(refused))
            .map(|(_, why)| why)
            .collect();
        assert_eq!(words.len(), 1, "once for {bad}: {log}");
        assert!(words[0].contains(why), "{bad}: {words:?}");
        assert_eq!(show(&primary, "work_mem"), "16MB", "{bad}");
        assert_eq!(started(&primary), before);
    }
    primary.stop();
    let output = primary.prepare().unwrap();
    assert!(output.contains("starts with those before"), "{output}");
    let primary = ready(primary.start());
    assert_eq!(show(&primary, "work_mem"), "16MB");
}

#[test]
fn version_that_lacks_a_parameter_stops_the_rollout_before_the_primary() {
    let mut world = World::new();
    let (mut primary, mut replica) = pair(&world);
    // Of PostgreSQL 18.
    world.set_postgresql(&parameters(&json!({"io_method": "worker"})));
    replica.stop();
    let output = replica.rolled_only(&world).prepare().unwrap_err();
    let last = output.lines().last().unwrap();
    assert!(
        last.contains(
            "refuses spec.postgresql.parameters: unrecognized configuration parameter \"io_method\""
        ),
        "{output}"
    );
    // It would start all the same, for instance when its node is drained.
    primary.stop();
    let output = primary.rolled_only(&world).prepare().unwrap();
    assert!(output.contains("starts with those before"), "{output}");
    let primary = ready(primary.start());
    assert_eq!(show(&primary, "max_connections"), "100");

    // Without any data there is nothing to lose.
    let fresh = World::with(&parameters(&json!({"io_method": "worker"})));
    let output = Pod::new(&fresh, 0).prepare().unwrap_err();
    assert!(
        output.contains("refuses spec.postgresql.parameters"),
        "{output}"
    );
}

#[test]
fn replica_follows_while_parameters_of_the_primary_grow_and_shrink() {
    let settings = |connections: u32, others: u32| {
        parameters(&json!({
            "max_connections": connections, "max_worker_processes": others,
            "max_prepared_transactions": others, "max_locks_per_transaction": 10 * others,
        }))
    };
    let mut world = World::with(&settings(20, 10));
    let (mut primary, mut replica) = pair(&world);
    primary.psql_local("CREATE TABLE t (n int)").unwrap();
    let mut rows = 0;
    let mut follows = |primary: &Pod, replica: &Pod| {
        rows += 1;
        primary.psql_local("INSERT INTO t VALUES (1)").unwrap();
        replica.until("it has followed", |pod| {
            pod.psql_local("SELECT count(*) FROM t") == Ok(rows.to_string())
        });
        replica.until_ready();
    };
    // The rollout of the StatefulSet: replicas first. Up:
    world.set_postgresql(&settings(40, 20));
    replica = replica.rolled(&world);
    follows(&primary, &replica);
    assert_eq!(show(&replica, "max_connections"), "40");
    primary = ready(primary.rolled(&world));
    follows(&primary, &replica);
    assert_eq!(show(&primary, "max_connections"), "40");
    // Down: the replica keeps what its primary had.
    world.set_postgresql(&settings(20, 10));
    replica = replica.rolled(&world);
    follows(&primary, &replica);
    for (name, value) in [
        ("max_connections", "40"),
        ("max_worker_processes", "20"),
        ("max_prepared_transactions", "20"),
        ("max_locks_per_transaction", "200"),
    ] {
        assert_eq!(show(&replica, name), value, "{name}");
    }
    primary = ready(primary.rolled(&world));
    follows(&primary, &replica);
    assert_eq!(show(&primary, "max_connections"), "20");
    // It takes the lower value at its next start.
    primary.psql_local("CHECKPOINT").unwrap();
    replica.psql_local("CHECKPOINT").unwrap();
    replica = replica.rolled(&world);
    follows(&primary, &replica);
    assert_eq!(show(&replica, "max_connections"), "20");
}

#[test]
fn server_starts_with_its_slots_whatever_is_asked_for() {
    let settings = |given: Value| parameters(&given);
    let mut world = World::with(&settings(
        json!({"max_replication_slots": 20, "wal_level": "logical"}),
    ));
    let primary = ready(Pod::new(&world, 0).prepared().start());
    for slot in 0..12 {
        let query = format!("SELECT pg_create_physical_replication_slot('s{slot}')");
        primary.psql_local(&query).unwrap();
    }
    let query = "SELECT pg_create_logical_replication_slot('l', 'pgoutput')";
    primary.psql_local(query).unwrap();
    world.set_postgresql(&settings(json!({"max_replication_slots": 5})));
    let primary = ready(primary.rolled(&world));
    assert_eq!(show(&primary, "max_replication_slots"), "13");
    assert_eq!(show(&primary, "wal_level"), "logical");
    primary
        .psql_local("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        .unwrap();
    let primary = ready(primary.rolled(&world));
    assert_eq!(show(&primary, "max_replication_slots"), "5");
    assert_eq!(show(&primary, "wal_level"), "replica");
}

/// By default a tenth of the volume is kept for replicas that are away, and no slot keeps more than a fifth.
#[test]
fn absent_replica_needs_no_new_copy_and_an_abandoned_slot_keeps_no_more_than_its_limit() {
    let world = World::new();
    let (primary, mut replica) = pair(&world);
    primary.psql_local("CREATE TABLE t (n int)").unwrap();
    primary
        .psql_local("SELECT pg_create_physical_replication_slot('abandoned', true)")
        .unwrap();
    replica.stop();
    let write = |segments: u32| {
        for _ in 0..segments {
            primary.psql_local("INSERT INTO t VALUES (1)").unwrap();
            primary.psql_local("SELECT pg_switch_wal()").unwrap();
        }
        primary.psql_local("CHECKPOINT").unwrap();
    };
    write(5);
    let output = replica.prepare().unwrap();
    assert!(!output.contains("copying"), "{output}");
    let replica = ready(replica.start());
    replica.until("it has caught up", |pod| {
        pod.psql_local("SELECT count(*) FROM t").as_deref() == Ok("5")
    });
    write(16);
    primary.psql_local("CHECKPOINT").unwrap();
    let state = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'abandoned'";
    assert_eq!(primary.psql_local(state).as_deref(), Ok("lost"));
    let size = primary.psql_local("SELECT sum(size) / 1048576 FROM pg_ls_waldir()");
    let size: f64 = size.unwrap().parse().unwrap();
    assert!(size <= 320.0, "{size} MB of write-ahead log are kept");
}
