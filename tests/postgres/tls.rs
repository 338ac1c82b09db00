//! `spec.tls` against a real server: who is let in, what is verified, how a certificate is renewed, and that no bad one
//! replaces a good one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::Ipv4Addr;

use serde_json::{Value, json};
use testbed::certificates::{Authority, Issued, Validity, served};

use crate::exporter::until_it_logs_in;
use crate::network::Resolver;
use crate::pod::{Pod, World};

/// The names of the documentation, and the one by which a test reaches the primary.
const NAMES: [&str; 4] = [
    "orders-rw.shop.svc",
    "orders-r.shop.svc",
    "orders-db-0.orders-db.shop.svc",
    "localhost",
];

fn tls(required: bool) -> Value {
    json!({"tls": {"secretName": "orders-tls", "required": required}})
}

fn set(world: &mut World, authority: &Authority, issued: &Issued) {
    world.set_tls(&[
        ("tls.crt", &issued.certificate),
        ("tls.key", &issued.key),
        ("ca.crt", &authority.pem),
    ]);
}

fn good(world: &mut World, authority: &Authority) -> Issued {
    let issued = authority.issue(&NAMES, Validity::Valid).unwrap();
    set(world, authority, &issued);
    issued
}

fn world(required: bool) -> (World, Authority, Issued) {
    let mut world = World::of(&tls(required));
    let authority = Authority::new("shop").unwrap();
    let issued = good(&mut world, &authority);
    (world, authority, issued)
}

fn pod(world: &World, ordinal: usize) -> Pod {
    Pod::new(world, ordinal).find_primary_by_name()
}

fn ready(pod: Pod) -> Pod {
    pod.until_ready();
    pod
}

fn show(pod: &Pod, name: &str) -> String {
    pod.psql_local(&format!("SHOW {name}")).unwrap()
}

fn started(pod: &Pod) -> String {
    pod.psql_local("SELECT pg_postmaster_start_time()").unwrap()
}

/// A client's connection, with the `sslmode` of the Secret's `uri` replaced.
fn connection(world: &World, pod: &Pod, host: &str, rest: &str) -> String {
    let (password, port) = (world.secret("password"), pod.port);
    format!(
        "host={host} hostaddr=127.0.0.1 port={port} user=app dbname=app password={password} {rest}"
    )
}

/// Whether the replica's connection is encrypted, as the primary reports it.
fn replication_is_encrypted(primary: &Pod) -> String {
    primary
        .psql_local("SELECT ssl FROM pg_stat_ssl JOIN pg_stat_replication USING (pid)")
        .unwrap()
}

fn verifies(replica: &Pod) -> bool {
    show(replica, "primary_conninfo").contains("sslmode=verify-full")
}

#[test]
fn clients_and_replicas_verify_the_names_of_the_documentation_and_renewal_restarts_nothing() {
    let resolver = Resolver::start();
    let name = "orders-db-0.orders-db.shop.svc.example.org.";
    resolver.add(name, Ipv4Addr::LOCALHOST);
    let mut world = World::of(&tls(false));
    let authority = Authority::new("shop").unwrap();
    let issue = |names: &[&str]| authority.issue(names, Validity::Valid).unwrap();
    // Without the name of the tests.
    let first = issue(&NAMES[..3]);
    set(&mut world, &authority, &first);
    assert!(world.secret("uri").ends_with("/app?sslmode=require"));
    let primary = ready(Pod::new(&world, 0).prepared().start());
    assert_eq!(served(primary.port).unwrap().as_ref(), Some(&first.der));
    assert_eq!(show(&primary, "ssl_min_protocol_version"), "TLSv1.2");

    let mut replica = Pod::new(&world, 1);
    replica.resolve_by(&resolver.resolv_conf("example.org"));
    let replica = ready(replica.prepared().start());
    assert!(verifies(&replica));
    assert_eq!(replication_is_encrypted(&primary), "t");

    let root = primary.path("/tmp").join("ca.crt");
    primary.write_tmp("ca.crt", &authority.pem);
    let verified = format!("sslmode=verify-full sslrootcert={}", root.display());
    let is_encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    for name in &NAMES[..3] {
        let client = connection(&world, &primary, name, &verified);
        assert_eq!(primary.psql(&client, is_encrypted).as_deref(), Ok("t"));
    }
    let uri = world.uri(&primary);
    assert_eq!(primary.psql(&uri, is_encrypted).as_deref(), Ok("t"));
    // It is not required.
    let plain = connection(&world, &primary, NAMES[0], "sslmode=disable");
    assert_eq!(primary.psql(&plain, is_encrypted).as_deref(), Ok("f"));
    primary.write_tmp("ca.crt", &Authority::new("shop").unwrap().pem);
    let client = connection(&world, &primary, NAMES[0], &verified);
    let error = primary.psql(&client, "SELECT 1").unwrap_err();
    assert!(error.contains("SSL error"), "{error}");

    let before = [started(&primary), started(&replica)];
    let second = issue(&NAMES[..3]);
    set(&mut world, &authority, &second);
    for pod in [&primary, &replica] {
        pod.mount(&world);
        pod.probe("readinessProbe").unwrap();
        assert_eq!(served(pod.port).unwrap().as_ref(), Some(&second.der));
    }
    assert_eq!(before, [started(&primary), started(&replica)]);
    assert_eq!(replication_is_encrypted(&primary), "t");
    // No key is on a volume, and none in a log.
    for pod in [&primary, &replica] {
        assert!(!pod.log().contains("PRIVATE KEY"));
        assert!(!pod.volume_contains("PRIVATE KEY"));
    }
}

#[test]
fn connections_without_tls_are_refused_once_it_is_required() {
    let mut fields = tls(true);
    fields["monitoring"] = json!({"exporter": {}});
    let mut world = World::of(&fields);
    let authority = Authority::new("shop").unwrap();
    good(&mut world, &authority);
    let primary = pod(&world, 0).prepared().start();
    let plain = connection(&world, &primary, NAMES[0], "sslmode=disable");
    primary.until_ready();
    let error = primary.psql(&plain, "SELECT 1").unwrap_err();
    assert!(error.contains("no pg_hba.conf entry"), "{error}");
    assert_eq!(
        primary.psql(&world.uri(&primary), "SELECT 1").as_deref(),
        Ok("1")
    );
    let replica = ready(pod(&world, 1).prepared().start());
    assert!(verifies(&replica));
    assert_eq!(replication_is_encrypted(&primary), "t");
    // The exporter is in the same Pod, and has no file to verify by.
    until_it_logs_in(&primary);
    for probe in ["startupProbe", "livenessProbe"] {
        primary.probe(probe).unwrap();
        replica.probe(probe).unwrap();
    }
}

/// The rollout of the StatefulSet: the replicas first.
#[test]
fn tls_is_added_to_and_removed_from_a_cluster_that_runs() {
    let mut world = World::of(&json!({}));
    let authority = Authority::new("shop").unwrap();
    let issued = good(&mut world, &authority);
    let mut primary = ready(pod(&world, 0).prepared().start());
    let mut replica = ready(pod(&world, 1).prepared().start());
    primary.psql_local("CREATE TABLE t (n int)").unwrap();
    let mut rows = 0;
    let mut follows = |primary: &Pod, replica: &Pod| {
        rows += 1;
        primary.psql_local("INSERT INTO t VALUES (1)").unwrap();
        replica.until("it has followed", |pod| {
            pod.psql_local("SELECT count(*) FROM t") == Ok(rows.to_string())
        });
    };
    world.set_fields(&tls(true));
    replica = ready(replica.rolled(&world));
    // The primary has no TLS yet.
    assert!(!verifies(&replica));
    follows(&primary, &replica);
    primary = ready(primary.rolled(&world));
    assert_eq!(served(primary.port).unwrap(), Some(issued.der));
    replica.until("it verifies its primary", |pod| {
        pod.probe("readinessProbe").is_ok() && verifies(pod)
    });
    primary.until("the replica is back", |pod| {
        replication_is_encrypted(pod) == "t"
    });
    follows(&primary, &replica);
    // From now on without it never again, whatever the primary offers.
    replica = ready(replica.rolled(&world));
    assert!(verifies(&replica));

    world.set_fields(&json!({}));
    replica = ready(replica.rolled(&world));
    assert!(!verifies(&replica));
    follows(&primary, &replica);
    primary = ready(primary.rolled(&world));
    assert_eq!(served(primary.port).unwrap(), None);
    assert_eq!(show(&primary, "ssl"), "off");
    let plain = connection(&world, &primary, NAMES[0], "sslmode=disable");
    assert_eq!(primary.psql(&plain, "SELECT 1").as_deref(), Ok("1"));
    follows(&primary, &replica);
}

/// Keys of a Secret.
type Keys = Vec<(&'static str, String)>;

/// A Secret that is no good, by what is wrong with it, and the words that say so.
fn bad(authority: &Authority) -> Vec<(&'static str, Keys, &'static str)> {
    let keys = |certificate: &str, key: &str, ca: &str| {
        vec![
            ("tls.crt", certificate.to_owned()),
            ("tls.key", key.to_owned()),
            ("ca.crt", ca.to_owned()),
        ]
    };
    let issue = |names: &[&str], validity| authority.issue(names, validity).unwrap();
    let valid = issue(&NAMES, Validity::Valid);
    let with = |issued: &Issued| keys(&issued.certificate, &issued.key, &authority.pem);
    let other_key = issue(&NAMES, Validity::Valid).key;
    let mut without_key = with(&valid);
    without_key.remove(1);
    let other = Authority::new("shop").unwrap();
    let long = "x".repeat(70_000);
    vec![
        ("missing", Vec::new(), "the Secret orders-tls is missing"),
        (
            "without a key",
            without_key,
            "the Secret orders-tls has no key tls.key: add it",
        ),
        (
            "empty",
            keys("", &valid.key, &authority.pem),
            "has no key tls.crt",
        ),
        (
            "too long",
            keys(&long, &valid.key, &authority.pem),
            "has more than 65536 bytes",
        ),
        (
            "the key of another",
            keys(&valid.certificate, &other_key, &authority.pem),
            "key does not belong to the certificate",
        ),
        (
            "expired",
            with(&issue(&NAMES, Validity::Expired)),
            "has expired, on 2021-02-03",
        ),
        (
            "no PEM",
            keys("certificate", &valid.key, &authority.pem),
            "no PEM file",
        ),
        (
            "too early",
            with(&issue(&NAMES, Validity::Future)),
            "is not valid yet",
        ),
        (
            "for another name",
            with(&issue(&NAMES[1..], Validity::Valid)),
            "is not valid for orders-rw.shop.svc: add what is missing to its DNS names",
        ),
        (
            "of another authority",
            keys(&valid.certificate, &valid.key, &other.pem),
            "was not issued by the authority in its ca.crt",
        ),
    ]
}

fn take(world: &mut World, keys: &[(&'static str, String)]) {
    let keys: Vec<(&str, &str)> = keys.iter().map(|(key, text)| (*key, &**text)).collect();
    world.set_tls(&keys);
}

#[test]
fn bad_renewal_leaves_the_certificate_in_use_and_is_reported_once() {
    let (mut world, authority, issued) = world(true);
    let primary = ready(pod(&world, 0).prepared().start());
    let before = started(&primary);
    for (what, keys, why) in bad(&authority) {
        take(&mut world, &keys);
        primary.mount(&world);
        let reported = primary.probe("readinessProbe").expect_err(what);
        assert!(
            reported.contains(why) && reported.contains("serves as before"),
            "{what}: {reported}"
        );
        // An Event, and no more: a Pod is not ready after three.
        for _ in 0..2 {
            primary.probe("readinessProbe").unwrap();
        }
        assert_eq!(
            served(primary.port).unwrap().as_ref(),
            Some(&issued.der),
            "{what}"
        );
    }
    let next = good(&mut world, &authority);
    primary.mount(&world);
    let reported = primary.probe("readinessProbe").unwrap_err();
    assert!(
        reported.contains("TLS: the certificate is in order again"),
        "{reported}"
    );
    primary.probe("readinessProbe").unwrap();
    assert_eq!(served(primary.port).unwrap(), Some(next.der));
    assert_eq!(started(&primary), before);
}

#[test]
fn new_cluster_with_a_bad_secret_is_not_ready_and_says_why_until_it_is_corrected() {
    let (mut world, authority, _) = world(false);
    let all = bad(&authority);
    take(&mut world, &all[0].1);
    let mut primary = pod(&world, 0).prepared().start();
    primary.until("it accepts connections", |pod| {
        pod.probe("livenessProbe").is_ok()
    });
    for (what, keys, why) in &all {
        take(&mut world, keys);
        primary.mount(&world);
        primary.until("it reports what is wrong", |pod| {
            let reported = pod.probe("readinessProbe").unwrap_err();
            reported.contains("TLS: ") && reported.contains(why)
        });
        assert_eq!(served(primary.port).unwrap(), None, "{what}");
    }
    // Also after a restart, though there is data by now.
    primary.stop();
    let mut primary = primary.prepared().start();
    primary.until(
        "it reports what is wrong",
        |pod| matches!(pod.probe("readinessProbe"), Err(reported) if reported.contains("TLS: ")),
    );
    let issued = good(&mut world, &authority);
    primary.mount(&world);
    primary.until_ready();
    assert_eq!(served(primary.port).unwrap(), Some(issued.der));
    primary.stop();
}

#[test]
fn rollout_with_a_bad_secret_ends_at_the_replica_and_a_lone_primary_serves_as_before() {
    let mut world = World::of(&json!({}));
    let authority = Authority::new("shop").unwrap();
    let mut primary = ready(pod(&world, 0).prepared().start());
    let replica = ready(pod(&world, 1).prepared().start());
    world.set_fields(&tls(true));
    let expired = authority.issue(&NAMES, Validity::Expired).unwrap();
    set(&mut world, &authority, &expired);
    let replica = replica.rolled(&world);
    replica.until("it reports what is wrong", |pod| {
        matches!(pod.probe("readinessProbe"), Err(reported) if reported.contains("TLS: the certificate in the Secret orders-tls has expired"))
    });
    primary = primary.rolled(&world);
    primary.until("it serves", |pod| pod.probe("livenessProbe").is_ok());
    let reports = (0..4).filter_map(|_| primary.probe("readinessProbe").err());
    let reports: Vec<String> = reports.collect();
    assert!(
        reports.iter().any(|one| one.contains("serves as before")) && reports.len() <= 2,
        "{reports:?}"
    );
    primary.probe("readinessProbe").unwrap();
    // Also where TLS is to be required.
    let plain = connection(&world, &primary, NAMES[0], "sslmode=disable");
    assert_eq!(primary.psql(&plain, "SELECT 1").as_deref(), Ok("1"));
    good(&mut world, &authority);
    for pod in [&primary, &replica] {
        pod.mount(&world);
        pod.until_ready();
        assert!(served(pod.port).unwrap().is_some());
    }
    let error = primary.psql(&plain, "SELECT 1").unwrap_err();
    assert!(error.contains("no pg_hba.conf entry"), "{error}");
}

#[test]
fn replica_refuses_a_primary_whose_authority_is_another() {
    let (mut world, authority, _) = world(false);
    let mut primary = ready(pod(&world, 0).prepared().start());
    let other = Authority::new("shop").unwrap();
    let issued = other.issue(&NAMES, Validity::Valid).unwrap();
    set(&mut world, &other, &issued);
    let output = pod(&world, 1).prepare().unwrap_err();
    let last = output.lines().last().unwrap();
    assert!(
        last.starts_with("TLS: the primary, localhost, has a certificate that cannot be verified"),
        "{output}"
    );
    // Nor does it take one without TLS for its primary, once it has had it.
    good(&mut world, &authority);
    world.remove_pod(1);
    let mut replica = ready(pod(&world, 1).prepared().start());
    replica.stop();
    world.set_fields(&json!({}));
    primary = ready(primary.rolled(&world));
    assert_eq!(served(primary.port).unwrap(), None);
    let code = replica.interrupt_once_it_says("waiting for the primary");
    assert_eq!(code, Some(143), "it did not end by itself");
}
