//! The scripts and commands of the rendered Pods, run against a real PostgreSQL server on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod backup;
mod exporter;
mod hazards;
mod network;
mod parameters;
mod pod;
mod tls;
mod trust;
mod volumes;

use pod::{Pod, World};

#[test]
fn primary_and_two_replicas_stream_and_require_the_password() {
    let world = World::new();
    let primary = Pod::new(&world, 0);
    primary.hold_first_start();
    primary.prepare().unwrap();
    let mut primary = primary.start();
    primary.until("the temporary server of the first start answers", |pod| {
        pod.psql_local("SELECT 1").is_ok()
    });
    primary.probe("startupProbe").unwrap_err();
    primary.probe("readinessProbe").unwrap_err();
    primary.release_first_start();
    primary.until_ready();
    primary.probe("startupProbe").unwrap();
    primary.probe("livenessProbe").unwrap();

    let uri = world.uri(&primary);
    primary.psql(&uri, "CREATE TABLE t (n int)").unwrap();
    let wrong = uri.replace(&world.secret("password"), "wrong");
    let error = primary.psql(&wrong, "SELECT 1").unwrap_err();
    assert!(error.contains("password authentication failed"), "{error}");
    let superuser = uri.replace("//app:", "//postgres:");
    let error = primary.psql(&superuser, "SELECT 1").unwrap_err();
    assert!(error.contains("authentication failed"), "{error}");
    let replicator = uri.replace("//app:", "//replicator:");
    primary.psql(&replicator, "SELECT 1").unwrap_err();

    let mut replicas = Vec::new();
    for ordinal in 1..3 {
        let replica = Pod::new(&world, ordinal);
        replica.prepare().unwrap();
        let replica = replica.start();
        replica.until_ready();
        replicas.push(replica);
    }
    primary.psql(&uri, "INSERT INTO t VALUES (42)").unwrap();
    for replica in &replicas {
        let uri = world.uri(replica);
        replica.until("the row exists", |pod| {
            pod.psql(&uri, "SELECT n FROM t").as_deref() == Ok("42")
        });
        let error = replica.psql(&uri, "INSERT INTO t VALUES (1)").unwrap_err();
        assert!(error.contains("read-only"), "{error}");
    }
    let following = primary.psql_local("SELECT count(*) FROM pg_stat_replication");
    assert_eq!(following.as_deref(), Ok("2"));

    // While the primary is away, replicas serve what they have.
    primary.stop();
    for replica in &replicas {
        replica.probe("readinessProbe").unwrap();
        let uri = world.uri(replica);
        assert_eq!(replica.psql(&uri, "SELECT n FROM t").as_deref(), Ok("42"));
    }
    for log in [primary.log(), replicas[0].log()] {
        for key in ["password", "replication-password"] {
            assert!(
                !log.contains(&world.secret(key)),
                "a password is in the log"
            );
        }
    }
}

#[test]
fn restarted_primary_applies_a_changed_secret() {
    let mut world = World::new();
    let mut primary = Pod::new(&world, 0).prepared().start();
    primary.until_ready();
    let old = world.uri(&primary);
    primary.psql(&old, "CREATE TABLE t (n int)").unwrap();
    primary.stop();
    world.set_secret("password", "it's \\ new: \"1\"");
    primary.mount(&world);
    primary.prepare().unwrap();
    let primary = primary.start();
    primary.until_ready();
    let error = primary.psql(&old, "SELECT 1").unwrap_err();
    assert!(error.contains("authentication failed"), "{error}");
    let new = "host=127.0.0.1 user=app dbname=app password='it\\'s \\\\ new: \"1\"'";
    let count = primary.psql(new, "SELECT count(*) FROM t");
    assert_eq!(count.as_deref(), Ok("0"));
}

#[test]
fn changed_username_keeps_the_tables_and_locks_out_the_previous_user() {
    let mut world = World::new();
    let mut primary = Pod::new(&world, 0).prepared().start();
    primary.until_ready();
    let password = world.secret("password");
    let address = |pod: &Pod, user: &str| {
        let uri = world.uri(pod);
        uri.replace("//app:", &format!("//{user}:"))
    };
    let app = address(&primary, "app");
    primary
        .psql(&app, "CREATE TABLE t (n int); INSERT INTO t VALUES (42)")
        .unwrap();
    // What is in no table of its own, in another database, and what others granted.
    for query in [
        "CREATE DATABASE other OWNER app",
        "CREATE TABLE granted (n int)",
        "GRANT SELECT ON granted TO app",
        "CREATE ROLE reports LOGIN",
    ] {
        primary.psql_local(query).unwrap();
    }
    let [renamed, back, taken] = ["It's \"a\" näme", "app", "reports"];
    for (username, former) in [(renamed, "app"), (back, renamed)] {
        primary.stop();
        world.set_secret("username", username);
        primary.mount(&world);
        primary.prepare().unwrap();
        primary = primary.start();
        primary.until_ready();
        let login = |user: &str, database: &str| {
            let user = user.replace('\'', "\\'");
            format!("host=127.0.0.1 user='{user}' dbname={database} password={password}")
        };
        let refused = primary.psql(&login(former, "app"), "SELECT 1").unwrap_err();
        assert!(refused.contains("authentication failed"), "{refused}");
        let insert = "INSERT INTO t SELECT max(n) + 1 FROM t; ALTER TABLE t ADD c int; \
                      ALTER TABLE t DROP c; SELECT count(*) FROM t";
        let app = login(username, "app");
        primary.psql(&app, insert).unwrap();
        primary
            .psql(
                &login(username, "other"),
                "CREATE SCHEMA mine; DROP SCHEMA mine",
            )
            .unwrap();
        let granted = primary.psql(&login(username, "postgres"), "SELECT count(*) FROM granted");
        assert_eq!(granted.as_deref(), Ok("0"));
    }
    // An existing role is not taken over.
    primary.stop();
    world.set_secret("username", taken);
    primary.mount(&world);
    let output = primary.prepare().unwrap_err();
    let last = output.lines().last().unwrap();
    assert!(
        last.contains("Secret orders-app") && last.contains("role \"reports\" already exists"),
        "{output}"
    );
}

#[test]
fn interrupted_first_start_is_completed_by_the_next_start() {
    let world = World::new();
    let primary = Pod::new(&world, 0);
    primary.prepare().unwrap();
    primary.initdb_only();
    primary.prepare().unwrap();
    let primary = primary.start();
    primary.until_ready();
    let uri = world.uri(&primary);
    assert_eq!(primary.psql(&uri, "SELECT 1").as_deref(), Ok("1"));
}

/// What editors and shells add to a value, and other differences without a meaning.
#[test]
fn trailing_newlines_in_secret_values_are_ignored() {
    let mut world = World::new();
    let (password, replication) = (
        world.secret("password"),
        world.secret("replication-password"),
    );
    for (key, end) in [
        ("username", "\n"),
        ("dbname", "\r\n"),
        ("password", "\r\n\r\n"),
        ("replication-password", "\n\n"),
    ] {
        let value = world.secret(key) + end;
        world.set_secret(key, &value);
    }
    let primary = Pod::new(&world, 0).prepared().start();
    primary.until_ready();
    let uri = world.uri(&primary);
    assert_eq!(primary.psql(&uri, "SELECT 1").as_deref(), Ok("1"));
    assert!(uri.contains(&password));
    let replicator =
        format!("host=127.0.0.1 dbname=postgres user=replicator password={replication}");
    assert_eq!(primary.psql(&replicator, "SELECT 1").as_deref(), Ok("1"));
    let replica = Pod::new(&world, 1).prepared().start();
    replica.until_ready();

    world.set_secret("password", "two\nlines\n");
    let output = Pod::new(&world, 2).prepare().unwrap_err();
    assert!(
        output.contains("key password of the Secret orders-app has more than one line"),
        "{output}"
    );
}

#[test]
fn character_moved_between_passwords_counts_as_a_change() {
    let mut world = World::new();
    world.set_secret("password", "one");
    world.set_secret("replication-password", "two");
    let mut primary = Pod::new(&world, 0).prepared().start();
    primary.until_ready();
    primary.stop();
    world.set_secret("password", "onet");
    world.set_secret("replication-password", "wo");
    primary.mount(&world);
    let primary = primary.prepared().start();
    primary.until_ready();
    let new = "host=127.0.0.1 user=app dbname=app password=onet";
    assert_eq!(primary.psql(new, "SELECT 1").as_deref(), Ok("1"));
}

/// The image creates the database itself, and has its own means for such users.
#[test]
fn scripts_and_server_run_as_a_uid_without_a_name() {
    let world = World::new();
    let mut primary = Pod::new(&world, 0);
    primary.initdb_only();
    primary.without_a_name();
    let primary = primary.prepared().start();
    primary.until_ready();
    primary.probe("livenessProbe").unwrap();
    let uri = world.uri(&primary);
    primary.psql(&uri, "CREATE TABLE t (n int)").unwrap();
    let mut replica = Pod::new(&world, 1);
    replica.without_a_name();
    let replica = replica.prepared().start();
    replica.until_ready();
    let count = replica.psql(&world.uri(&replica), "SELECT count(*) FROM t");
    assert_eq!(count.as_deref(), Ok("0"));
}
