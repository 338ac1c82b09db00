//! Hazards for data: two servers on one volume, incomplete data, recovery that is killed,
//! indexes of another C library. The scripts handle each, and delete no file that may be data.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::pod::{Pod, World};

#[test]
fn server_of_a_force_deleted_pod_ends_before_the_next_one_starts() {
    let world = World::new();
    let mut former = Pod::new(&world, 0).prepared().start();
    former.until_ready();
    let uri = world.uri(&former);
    former.psql(&uri, "CREATE TABLE t (n int)").unwrap();
    former.psql(&uri, "INSERT INTO t VALUES (42)").unwrap();

    let next = former.successor(&world);
    let output = next.prepare().unwrap();
    assert!(output.contains("was not shut down"), "{output}");
    assert!(
        former.has_ended(),
        "two servers on one volume:\n{}",
        former.log()
    );
    let next = next.start();
    next.until_ready();
    assert_eq!(next.psql(&uri, "SELECT n FROM t").as_deref(), Ok("42"));
}

#[test]
fn interrupted_wait_for_the_previous_server_starts_over() {
    let world = World::new();
    let pod = Pod::new(&world, 0);
    pod.write_volume("data/postmaster.pid", "1\n");
    for _ in 0..2 {
        let code = pod.interrupt_once_it_says("was not shut down");
        assert_eq!(code, Some(143), "it did not end by itself");
    }
    assert!(!pod.is_on_volume("data/postmaster.pid"));
}

#[test]
fn pod_that_waits_for_its_primary_ends_on_sigterm() {
    let world = World::new();
    let replica = Pod::new(&world, 1);
    let code = replica.interrupt_once_it_says("waiting for the primary");
    assert_eq!(code, Some(143), "it did not end by itself");
}

#[test]
fn interrupted_first_start_starts_over_and_deletes_nothing() {
    for left in ["data/PG_VERSION", "data/base"] {
        let world = World::new();
        let primary = Pod::new(&world, 0);
        primary.prepare().unwrap();
        primary.write_volume(left, &primary.version());
        let output = primary.prepare().unwrap();
        assert!(output.contains("beginning again"), "{output}");
        let aside = left.replace("data/", "data.unfinished/");
        assert!(primary.is_on_volume(&aside), "{aside} was deleted");
        let primary = primary.start();
        primary.until_ready();
        let uri = world.uri(&primary);
        assert_eq!(primary.psql(&uri, "SELECT 1").as_deref(), Ok("1"));
        assert!(!primary.is_on_volume("data.begun"), "it is not over");
    }
}

#[test]
fn unstartable_data_is_kept_unless_the_first_start_was_interrupted() {
    let mut world = World::new();
    let primary = Pod::new(&world, 0);
    primary.write_volume("data/PG_VERSION", &primary.version());
    let output = primary.prepare().unwrap_err();
    assert!(output.contains("did not start to take over"), "{output}");
    assert!(primary.has_data());
    // Whatever the marks on the volume are: there was a database.
    primary.write_volume("data.begun", "");
    world.set_initialized();
    primary.mount(&world);
    primary.prepare().unwrap_err();
    assert!(primary.has_data());
}

#[test]
fn files_that_are_not_a_database_are_kept() {
    let world = World::new();
    for ordinal in [0, 1] {
        let pod = Pod::new(&world, ordinal);
        pod.write_volume("data/base", "the last copy");
        let output = pod.prepare().unwrap_err();
        assert!(
            output.contains("are no database: they are left alone"),
            "{output}"
        );
        assert!(pod.is_on_volume("data/base"));
    }
}

#[test]
fn server_without_its_roles_is_not_ready() {
    let world = World::new();
    let primary = Pod::new(&world, 0);
    primary.prepare().unwrap();
    // The container was restarted in the middle of its first start: nothing runs before it then.
    primary.initdb_only();
    let primary = primary.start();
    primary.until("it answers", |pod| pod.probe("livenessProbe").is_ok());
    let output = primary.probe("readinessProbe").unwrap_err();
    assert!(output.contains("first start was interrupted"), "{output}");
}

#[test]
fn recovering_server_is_alive_but_not_ready_and_ended_server_is_not_alive() {
    let world = World::new();
    let primary = Pod::new(&world, 0).prepared().start();
    primary.until_ready();
    let replica = Pod::new(&world, 1).prepared();
    replica.probe("livenessProbe").unwrap_err();
    // It recovers forever, and refuses connections meanwhile.
    replica.write_volume("data/postgresql.conf", "hot_standby = off\n");
    let replica = replica.start();
    for probe in ["startupProbe", "livenessProbe"] {
        replica.until("it is alive", |pod| pod.probe(probe).is_ok());
    }
    replica.probe("readinessProbe").unwrap_err();
    let uri = world.uri(&replica);
    let output = replica.psql(&uri, "SELECT 1").unwrap_err();
    assert!(output.contains("the database system is"), "{output}");
}

#[test]
fn image_with_a_different_c_library_than_the_data_is_rejected() {
    let world = World::new();
    let mut primary = Pod::new(&world, 0).prepared().start();
    primary.until_ready();
    let mut replica = Pod::new(&world, 1).prepared().start();
    replica.until_ready();
    replica.stop();
    primary.stop();
    for pod in [&replica, &primary] {
        assert!(pod.is_on_volume("data/made_with_libc"), "it is not known");
        pod.write_volume("data/made_with_libc", "musl\n");
        let output = pod.prepare().unwrap_err();
        assert!(
            output.contains("made with musl and the image has glibc"),
            "{output}"
        );
        assert!(pod.has_data());
    }
}
