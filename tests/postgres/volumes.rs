//! Volumes that are lost, stale, or of another cluster: only the primary's data is served, and nothing is lost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::json;

use crate::network::{Demand, Rogue};
use crate::pod::{Pod, World};

#[test]
fn stale_replica_catches_up_or_is_recopied_and_diverged_data_is_kept() {
    let world = World::with(&json!({"parameters": {"wal_keep_size": "0"}}));
    let primary = Pod::new(&world, 0).prepared().start();
    primary.until_ready();
    let uri = world.uri(&primary);
    primary.psql(&uri, "CREATE TABLE t (n int)").unwrap();
    let mut replica = Pod::new(&world, 1).prepared().start();
    replica.until_ready();
    replica.stop();

    // A short absence: the WAL that it lacks still exists.
    primary.psql(&uri, "INSERT INTO t VALUES (1)").unwrap();
    let output = replica.prepare().unwrap();
    assert!(!output.contains("copying"), "{output}");
    let mut replica = replica.start();
    replica.until_ready();
    let on_replica = world.uri(&replica);
    replica.until("the row exists", |pod| {
        pod.psql(&on_replica, "SELECT count(*) FROM t").as_deref() == Ok("1")
    });
    replica.stop();

    // A long absence.
    for number in 2..6 {
        let insert = format!("INSERT INTO t VALUES ({number})");
        primary.psql(&uri, &insert).unwrap();
        primary.psql_local("SELECT pg_switch_wal()").unwrap();
        primary.psql_local("CHECKPOINT").unwrap();
    }
    let output = replica.prepare().unwrap();
    assert!(output.contains("copying it again"), "{output}");
    let mut replica = replica.start();
    replica.until_ready();
    let count = replica.psql(&on_replica, "SELECT count(*) FROM t");
    assert_eq!(count.as_deref(), Ok("5"));

    // Promoted by hand.
    replica.psql_local("SELECT pg_promote()").unwrap();
    replica
        .psql(&on_replica, "INSERT INTO t VALUES (100)")
        .unwrap();
    replica.stop();
    let output = replica.prepare().unwrap_err();
    assert!(output.contains("data of its own"), "{output}");
    assert!(output.contains("data-orders-db-1"), "{output}");
    assert!(replica.has_data());

    // Of another database.
    let other = Pod::new(&world, 2);
    other.initdb_only();
    let output = other.prepare().unwrap_err();
    assert!(output.contains("another database"), "{output}");
    assert!(other.has_data());
}

#[test]
fn lost_primary_volume_is_not_reinitialized() {
    let mut world = World::new();
    let primary = Pod::new(&world, 0);
    primary.prepare().unwrap();
    world.set_initialized();
    primary.mount(&world);
    let output = primary.prepare().unwrap_err();
    assert!(
        output.contains("has no data, though this cluster had some"),
        "{output}"
    );
}

#[test]
fn data_of_another_major_version_is_rejected_naming_both_versions() {
    let world = World::new();
    for ordinal in [0, 1] {
        let pod = Pod::new(&world, ordinal);
        pod.initdb_only();
        pod.write_volume("data/PG_VERSION", "9\n");
        let output = pod.prepare().unwrap_err();
        assert!(
            output.contains("the data is of PostgreSQL 9 and"),
            "{output}"
        );
        assert!(output.contains("the image is PostgreSQL 1"), "{output}");
    }
}

#[test]
fn incomplete_or_invalid_secret_is_named() {
    let long = "ä".repeat(32);
    for (key, value, why) in [
        (
            "replication-password",
            "",
            "has no key replication-password",
        ),
        ("username", "", "has no key username"),
        ("username", "\n", "key username"),
        (
            "username",
            "postgres",
            "must not be postgres, which is reserved",
        ),
        ("username", "replicator", "must not be replicator"),
        ("username", "pg_monitor", "must not be pg_monitor"),
        ("username", "public", "must not be public"),
        ("username", &long, "more than 63 bytes"),
        (
            "dbname",
            "postgres",
            "key dbname of the Secret orders-app must not be",
        ),
        ("dbname", "template0", "must not be template0"),
        ("dbname", "template1", "must not be template1"),
        ("dbname", &long, "more than 63 bytes"),
    ] {
        let mut world = World::new();
        world.set_secret(key, value);
        for ordinal in [0, 1] {
            let output = Pod::new(&world, ordinal).prepare().unwrap_err();
            let last = output.lines().last().unwrap();
            assert!(last.contains(why), "{key} {value:?}: {output}");
        }
    }
    let mut world = World::new();
    world.set_secret("username", &long[..62]);
    world.set_secret("dbname", "pg_star *");
    let primary = Pod::new(&world, 0).prepared().start();
    primary.until_ready();
}

/// It is deleted with its DatabaseCluster, or it stays because it was restored from a backup.
#[test]
fn stable_secret_of_another_cluster_is_applied() {
    let mut world = World::new();
    world.set_secret("cluster-uid", "former");
    let primary = Pod::new(&world, 0);
    let refuses = |pod: &Pod| {
        let output = pod.prepare().unwrap_err();
        assert!(
            output.contains("Secret orders-app was made for another DatabaseCluster"),
            "{output}"
        );
    };
    refuses(&primary);
    refuses(&primary);
    // Neither the time of another Secret counts, nor a future one, nor an invalid one.
    for seen in [
        "another 0\n",
        "former 99999999999\n",
        "former\n",
        "former 1x\n",
        "",
    ] {
        primary.write_volume("data.secret", seen);
        refuses(&primary);
    }
    primary.write_volume("data.secret", "former 1000000000\n");
    let mut primary = primary.prepared().start();
    primary.until_ready();
    let uri = world.uri(&primary);
    assert_eq!(primary.psql(&uri, "SELECT 1").as_deref(), Ok("1"));
    // Permanently; and one that was replaced after all counts at once.
    primary.stop();
    primary.prepare().unwrap();
    world.set_secret("cluster-uid", "u");
    primary.mount(&world);
    primary.prepare().unwrap();
}

#[test]
fn replica_without_its_primary_is_not_ready_until_it_follows() {
    let world = World::new();
    let mut primary = Pod::new(&world, 0).prepared().start();
    primary.until_ready();
    let uri = world.uri(&primary);
    primary.psql(&uri, "CREATE TABLE t (n int)").unwrap();
    primary.psql(&uri, "INSERT INTO t VALUES (42)").unwrap();
    let mut replica = Pod::new(&world, 1).prepared().start();
    replica.until_ready();
    let on_replica = world.uri(&replica);
    replica.until("the row exists", |pod| {
        pod.psql(&on_replica, "SELECT n FROM t").as_deref() == Ok("42")
    });
    replica.stop();
    primary.stop();

    // It waits for minutes otherwise.
    replica.stub("sleep", "exit 0");
    let output = replica.prepare().unwrap();
    assert!(
        output.contains("starting with the data that is there"),
        "{output}"
    );
    let replica = replica.start();
    replica.until("what docs/explanation/limits.md describes works", |pod| {
        pod.pg_dumpall().is_ok_and(|dump| dump.contains("\n42\n"))
    });
    replica.probe("startupProbe").unwrap();
    let output = replica.probe("readinessProbe").unwrap_err();
    assert!(
        output.contains("has not followed its primary yet"),
        "{output}"
    );
    let primary = primary.prepared().start();
    primary.until_ready();
    replica.until_ready();
}

#[test]
fn replica_left_behind_by_its_primary_is_not_ready_and_reports_a_remedy() {
    let world = World::new();
    let mut primary = Pod::new(&world, 0).prepared().start();
    primary.until_ready();
    let replica = Pod::new(&world, 1).prepared().start();
    replica.until_ready();
    primary.stop();
    // It only answers.
    let _primary = Rogue::listen(Ipv4Addr::LOCALHOST, world.primary_port(), Demand::Trust);
    replica.probe("readinessProbe").unwrap();
    replica.age_files_of_tmp(Duration::from_secs(180));
    let output = replica.probe("readinessProbe").unwrap_err();
    assert!(output.contains("does not follow its primary"), "{output}");
}

#[test]
fn promoted_replica_is_kept_without_its_primary() {
    let world = World::new();
    let replica = Pod::new(&world, 1);
    replica.initdb_only();
    replica.stub("sleep", "exit 0");
    let output = replica.prepare().unwrap_err();
    assert!(output.contains("data of its own"), "{output}");
    assert!(replica.has_data() && !replica.is_on_volume("data/standby.signal"));
}

#[test]
fn failing_tool_proves_nothing_about_the_data() {
    let world = World::new();
    let primary = Pod::new(&world, 0).prepared().start();
    primary.until_ready();
    let mut replica = Pod::new(&world, 1).prepared().start();
    replica.until_ready();
    replica.stop();
    for script in ["exit 127", "echo 'pg_control version number: 1'"] {
        replica.stub("pg_controldata", script);
        let output = replica.prepare().unwrap_err();
        assert!(output.contains("nothing was changed"), "{output}");
        assert!(
            output.contains("pg_controldata") && !output.contains("another database"),
            "{output}"
        );
    }
    replica.stub("pg_controldata", "exec $REAL/pg_controldata \"$@\"");
    replica.stub("sort", "exit 127");
    let output = replica.prepare().unwrap_err();
    assert!(output.contains("sort does not run"), "{output}");
    replica.stub("postgres", "exit 127");
    let output = replica.prepare().unwrap_err();
    assert!(output.contains("does not say its version"), "{output}");
    assert!(replica.has_data());
}

#[test]
fn unsupported_old_image_is_rejected() {
    let world = World::new();
    let primary = Pod::new(&world, 0);
    primary.stub("postgres", "echo 'postgres (PostgreSQL) 11.22'");
    let output = primary.prepare().unwrap_err();
    assert!(
        output.contains("PostgreSQL 11, and the oldest that works is 12"),
        "{output}"
    );
}

#[test]
fn connections_to_a_lost_node_end_and_do_not_exhaust_the_limit() {
    let world = World::new();
    let primary = Pod::new(&world, 0).prepared().start();
    primary.until_ready();
    let replica = Pod::new(&world, 1);
    // A copy waits for a checkpoint, and does not get any.
    let checkpointer = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
    let checkpointer = primary.psql_local(checkpointer).unwrap();
    let stopped = crate::pod::Stopped::new(checkpointer.parse().unwrap());
    let port = primary.port;
    let is_asked_soon = || idle_seconds(port).is_some_and(|seconds| seconds <= 30);
    let init = replica.begin();
    replica.until("pg_basebackup waits", |_| {
        init.output().contains("copying the primary") && is_asked_soon()
    });
    drop(stopped);
    init.end().unwrap();

    let replica = replica.start();
    replica.until_ready();
    replica.until("nothing but replication is connected", |_| is_asked_soon());
    for pod in [&primary, &replica] {
        let senders = pod.psql_local("SHOW max_wal_senders").unwrap();
        assert!(senders.parse::<u32>().unwrap() >= 2 * 98, "{senders}");
    }
}

/// After how many seconds, at most, the kernel probes the other end of a connection to this port; none
/// when no connection just waits.
fn idle_seconds(port: u16) -> Option<u64> {
    const ESTABLISHED: &str = "01";
    const TICKS_IN_A_SECOND: u64 = 100;
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let waits = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let to = u16::from_str_radix(fields[2].split(':').nth(1)?, 16).ok()?;
        let (timer, ticks) = fields[5].split_once(':')?;
        let keepalive = to == port && fields[3] == ESTABLISHED && timer == "02";
        keepalive.then(|| u64::from_str_radix(ticks, 16).ok())?
    });
    waits.max().map(|ticks| ticks / TICKS_IN_A_SECOND)
}
