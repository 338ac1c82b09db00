//! The exporter of metrics: its role on a real server, with the queries that it runs, and what the role cannot do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::json;

use crate::pod::{Pod, World};

const ROLE: &str = "databasecluster_exporter";

fn monitored() -> World {
    World::of(&json!({"monitoring": {"exporter": {}}}))
}

/// How the container of the exporter connects, with what it mounts and nothing else.
fn address(pod: &Pod) -> String {
    let container = pod.container("exporter");
    let value = |name: &str| {
        let mut all = container["env"].as_array().unwrap().iter();
        let found = all.find(|v| v["name"] == name).unwrap();
        found["value"].as_str().unwrap().to_owned()
    };
    let mounts = container["volumeMounts"].as_array().unwrap();
    assert_eq!(mounts.len(), 1);
    let file = pod.path(&value("DATA_SOURCE_PASS_FILE"));
    let password = std::fs::read_to_string(file).unwrap();
    let uri = value("DATA_SOURCE_URI").replace(":5432/", &format!(":{}/", pod.port));
    let user = value("DATA_SOURCE_USER");
    format!("postgresql://{user}:{}@{uri}", password.trim())
}

pub(crate) fn until_it_logs_in(pod: &Pod) -> String {
    let address = address(pod);
    pod.until("the exporter logs in", |pod| {
        pod.probe("readinessProbe").is_ok() && pod.psql(&address, "SELECT 1").is_ok()
    });
    address
}

#[test]
fn exporter_reads_its_metrics_on_every_instance_and_nothing_else() {
    let world = monitored();
    let primary = Pod::new(&world, 0).prepared().start();
    primary.until_ready();
    let address_of_primary = until_it_logs_in(&primary);
    let replica = Pod::new(&world, 1).prepared().start();
    replica.until_ready();
    let address_of_replica = until_it_logs_in(&replica);
    primary
        .psql(
            &world.uri(&primary),
            "CREATE TABLE orders (n int); INSERT INTO orders VALUES (42)",
        )
        .unwrap();

    let queries = include_str!("exporter.sql");
    for (pod, address) in [
        (&primary, &address_of_primary),
        (&replica, &address_of_replica),
    ] {
        for query in queries.split(";\n") {
            let answer = pod.psql(address, query);
            assert!(answer.is_ok(), "{query}: {answer:?}");
        }
    }
    // What it reads of others is not hidden from it.
    let lag = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn IS NOT NULL";
    assert_eq!(primary.psql(&address_of_primary, lag).as_deref(), Ok("1"));

    // The read-only default is no bound: what the role may do is.
    let writing = format!("{address_of_primary}&options=-cdefault_transaction_read_only%3Doff");
    let in_app = address_of_primary.replace("/postgres?", "/app?");
    for (address, query, refusal) in [
        (&in_app, "SELECT * FROM public.orders", "permission denied"),
        (
            &writing,
            "CREATE TABLE public.t (n int)",
            "permission denied",
        ),
        (
            &address_of_primary,
            "COPY (SELECT 1) TO PROGRAM 'true'",
            "pg_execute_server_program",
        ),
        (
            &address_of_primary,
            "SELECT pg_read_file('/etc/passwd')",
            "permission denied",
        ),
        (
            &address_of_primary,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'replicator'",
            "terminate",
        ),
        (
            &address_of_primary,
            "CREATE TABLE public.t (n int)",
            "read-only transaction",
        ),
        (
            &writing,
            "ALTER SYSTEM SET work_mem = '1GB'",
            "permission denied",
        ),
        (
            &address_of_primary,
            "SELECT rolpassword FROM pg_authid",
            "permission denied",
        ),
        (
            &address_of_primary,
            "SET ROLE postgres",
            "permission denied",
        ),
    ] {
        let error = primary.psql(address, query).unwrap_err();
        assert!(error.contains(refusal), "{query}: {error}");
    }
    let wrong = address_of_primary.replace(&format!("{ROLE}:"), &format!("{ROLE}:x"));
    let error = primary.psql(&wrong, "SELECT 1").unwrap_err();
    assert!(error.contains("authentication failed"), "{error}");
    let password = address_of_primary.split(['@', ':']).nth(2).unwrap();
    assert_eq!(password.len(), 64);
    assert!(
        !primary.log().contains(password),
        "its password is in the log"
    );
    assert!(!world.secret("replication-password").contains(password));
    a_real_exporter_is_up(&primary);
}

/// With `POSTGRES_EXPORTER=program`: what is rendered, with the program itself.
fn a_real_exporter_is_up(primary: &Pod) {
    let Some(program) = std::env::var_os("POSTGRES_EXPORTER") else {
        return;
    };
    let [port] = testbed::ports::free_ports().unwrap();
    let metrics = primary.run_exporter(&program, port);
    assert!(metrics.contains("\npg_up 1\n"), "{metrics}");
    let failed: Vec<&str> = metrics
        .lines()
        .filter(|line| {
            line.starts_with("pg_scrape_collector_success") && line.ends_with(" 0")
                || line.starts_with("pg_exporter_last_scrape_error") && !line.ends_with(" 0")
        })
        .collect();
    assert_eq!(failed, [""; 0]);
}

#[test]
fn existing_database_gets_the_role_with_the_field_and_a_new_password_with_its_secret() {
    let mut world = World::of(&json!({}));
    let primary = Pod::new(&world, 0).prepared().start();
    primary.until_ready();
    let roles = format!("SELECT count(*) FROM pg_roles WHERE rolname = '{ROLE}'");
    assert_eq!(primary.psql_local(&roles).as_deref(), Ok("0"));
    world.set_fields(&json!({"monitoring": {"exporter": {}}}));
    let primary = primary.rolled(&world);
    let before = until_it_logs_in(&primary);
    world.set_secret("replication-password", "another");
    let primary = primary.rolled(&world);
    let after = until_it_logs_in(&primary);
    assert_ne!(before, after);
    primary.psql(&before, "SELECT 1").unwrap_err();
    // Without the field, the instance starts as before.
    world.set_fields(&json!({}));
    primary.rolled(&world).until_ready();
}

#[test]
fn role_of_others_is_left_alone_and_the_database_serves_without_the_exporter() {
    let mut world = World::of(&json!({}));
    let primary = Pod::new(&world, 0).prepared().start();
    primary.until_ready();
    primary
        .psql_local(&format!(
            "CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD 'mine'"
        ))
        .unwrap();
    world.set_fields(&json!({"monitoring": {"exporter": {}}}));
    let primary = primary.rolled(&world);
    primary.until_ready();
    let error = primary.psql(&address(&primary), "SELECT 1").unwrap_err();
    assert!(error.contains("authentication failed"), "{error}");
    let theirs = format!("SELECT rolcreatedb FROM pg_roles WHERE rolname = '{ROLE}'");
    assert_eq!(primary.psql_local(&theirs).as_deref(), Ok("t"));
    // Nor does the probe fail when the role cannot be created at all.
    primary.stub("timeout", "exit 124");
    primary.probe("readinessProbe").unwrap();
}
