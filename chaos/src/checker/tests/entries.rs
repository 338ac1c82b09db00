//! The shard table, forged tokens and user edits of tokens: each rule detects its violation.

use testbed::table::{Entry, Table};

use super::*;

const TOKEN: &str = "database.io/fencing-token";

impl Run {
    /// `b` takes the shard at 20 s, after `a` gave it up.
    fn moved() -> Self {
        let mut run = Self::healthy();
        run.shard(20.0, "a", "b", "b1", 2);
        run
    }

    /// A user writes an object; it has `token` afterwards.
    fn edit(&mut self, at: f64, resource: &str, name: &str, token: Option<&str>) {
        self.write(at, "", resource, name, 0, 200);
        let event = self.last();
        event.user = "somebody".into();
        event.pod_name = None;
        event.request = None;
        let metadata = &mut event.response.as_mut().unwrap()["metadata"];
        metadata["annotations"] = token.map_or(json!({}), |token| json!({TOKEN: token}));
        metadata["ownerReferences"] = json!([{"uid": "u1"}]);
    }

    fn write_with(&mut self, at: f64, pod: &str, token: &str) {
        self.write(at, pod, "statefulsets", "one-db", 0, 200);
        let request = self.last().request.as_mut().unwrap();
        request["metadata"]["annotations"][TOKEN] = json!(token);
    }

    fn forgery(&mut self, from: f64, to: f64) {
        self.fault("forged-tokens", from, to, None);
        let fault = self.evidence.faults.last_mut().unwrap();
        fault.takes_out = false;
        fault.forged_epoch = Some(1_000_000);
    }

    fn delete_table(&mut self, at: f64) {
        self.entry(at, "", "", "", 0);
        let event = self.last();
        event.user = "somebody".into();
        event.pod_name = None;
        event.verb = "delete".into();
        event.request = None;
        event.response = Some(json!({"kind": "Status", "details": {"uid": TABLE}}));
    }
}

#[test]
fn write_before_its_entry_or_lease_is_a_violation() {
    let mut run = Run::healthy();
    run.lease(20.0, "a", "b", "b1", 2);
    run.write(20.1, "b", "statefulsets", "one-db", 2, 200);
    run.entry(20.5, "b", "b", "b1", 2);
    assert_eq!(run.broken(), ["token-in-force"]);
    let mut run = Run::healthy();
    run.entry(20.0, "a", "b", "b1", 2);
    run.write(20.1, "b", "statefulsets", "one-db", 2, 200);
    run.lease(20.2, "a", "b", "b1", 2);
    assert_eq!(run.broken(), ["token-in-force", "lease-before-entry"]);
    let mut run = Run::moved();
    run.write(20.1, "b", "statefulsets", "one-db", 2, 200);
    assert_eq!(run.broken(), [""; 0], "Lease, entry, write");
}

#[test]
fn unanswered_entry_permits_later_writes() {
    let mut run = Run::healthy();
    run.lease(20.0, "a", "b", "b1", 2);
    run.entry(20.01, "b", "b", "b1", 2);
    run.last().code = 504;
    run.last().response = None;
    run.write(20.1, "b", "statefulsets", "one-db", 2, 200);
    assert_eq!(run.broken(), ["held"], "it may not have been executed");
    let entry = Entry {
        epoch: 2,
        holder: "b".into(),
        incarnation: "b1".into(),
    };
    run.evidence.last.table = Some(Table {
        uid: TABLE.into(),
        shards: 1,
        entries: [("000".to_owned(), entry)].into(),
    });
    assert_eq!(run.broken(), [""; 0], "the table is so in the end");
    // No request asked for it.
    run.events.retain(|event| event.code != 504);
    assert_eq!(run.broken(), [""; 0], "a Lease of the same explains it");
}

#[test]
fn entry_without_a_matching_lease_is_a_violation() {
    let mut run = Run::moved();
    run.entry(25.0, "c", "b", "b2", 3);
    assert!(run.broken().contains(&"lease-before-entry".to_owned()));
    let mut run = Run::healthy();
    run.lease(20.0, "a", "b", "b1", 2);
    run.entry(20.01, "a", "b", "b1", 2);
    assert_eq!(
        run.broken(),
        [""; 0],
        "the previous holder entered its successor"
    );
    let mut run = Run::healthy();
    run.lease(20.0, "a", "b", "b1", 2);
    run.entry(20.01, "b", "b", "b2", 2);
    let broken = run.broken();
    assert!(
        broken.contains(&"lease-before-entry".to_owned()),
        "another incarnation: {broken:?}"
    );
}

#[test]
fn shard_table_that_moves_backwards_is_a_violation_for_every_writer() {
    for by in ["b", ""] {
        let by_whom = |run: &mut Run| {
            if by.is_empty() {
                run.last().pod_name = None;
                run.last().user = "somebody".into();
            }
        };
        for (holder, incarnation, epoch) in [
            ("b", "b1", 1),
            ("c", "c1", 2),
            ("b", "b2", 2),
            ("b", "b1", 1 << 22),
        ] {
            let mut run = Run::moved();
            run.entry(25.0, "b", holder, incarnation, epoch);
            by_whom(&mut run);
            let broken = run.broken();
            let rule = "table-moves-forward".to_owned();
            assert!(
                broken.contains(&rule),
                "{holder} {incarnation} {epoch}: {broken:?}"
            );
        }
        let mut run = Run::moved();
        run.entry(25.0, "b", "b", "b1", 2);
        let spec = &mut run.last().response.as_mut().unwrap()["spec"];
        spec["entries"] = json!({"001": {"epoch": 1, "holder": "", "incarnation": ""}});
        by_whom(&mut run);
        let broken = run.broken();
        assert!(
            broken.contains(&"table-moves-forward".to_owned()),
            "removed: {broken:?}"
        );
    }
}

#[test]
fn holder_without_a_table_entry_does_not_count_as_holder() {
    let mut run = Run::healthy();
    run.lease(20.0, "a", "b", "b1", 2);
    run.entry(20.9, "b", "b", "b1", 2);
    assert_eq!(run.broken(), [""; 0]);
    run.last().received_micros = micros(21.5);
    run.last().completed_micros = micros(21.5);
    assert_eq!(run.broken(), ["held"]);
}

#[test]
fn write_under_a_deleted_table_is_a_violation() {
    let gone = || {
        let mut run = Run::healthy();
        run.delete_table(20.0);
        run.entry(23.0, "a", "a", "a2", 3);
        run.last().code = 201;
        let metadata = &mut run.last().response.as_mut().unwrap()["metadata"];
        metadata["uid"] = json!("t2");
        run.lease(22.9, "a", "a", "a2", 3);
        for second in 22..60 {
            run.renew(f64::from(second), "a", "a2");
        }
        run.fault("table", 20.0, 23.0, Some(23.0));
        run
    };
    let mut run = gone();
    run.write(20.5, "a", "statefulsets", "one-db", 1, 200);
    run.write_with(24.0, "a", "t2/000/3/a/u1");
    assert_eq!(
        run.broken(),
        [""; 0],
        "it had not noticed, and then began again"
    );
    for code in [200, 403] {
        let mut run = gone();
        run.write(21.5, "a", "statefulsets", "one-db", 1, code);
        assert_eq!(run.broken(), ["token-in-force"], "{code}");
    }
}

#[test]
fn write_in_an_epoch_of_the_previous_incarnation_is_a_violation() {
    let mut run = Run::healthy();
    run.forget_renewals("a", 20.0);
    for second in 20..60 {
        run.renew(f64::from(second), "a", "a2");
    }
    run.fault("kill", 20.0, 30.0, Some(20.0));
    run.shard(20.5, "a", "a", "a2", 2);
    run.write(21.0, "a", "services", "one-rw", 1, 403);
    assert_eq!(run.broken(), [""; 0], "refused");
    run.write(22.5, "a", "services", "one-rw", 1, 504);
    assert_eq!(run.broken(), ["one-writer"]);
}

#[test]
fn write_without_a_token_is_a_violation() {
    let mut run = Run::healthy();
    run.write(11.0, "a", "services", "one-rw", 1, 200);
    let request = run.last().request.as_mut().unwrap();
    request["metadata"]["annotations"] = json!({});
    assert_eq!(run.broken(), ["token-in-force"]);
    run.last().code = 403;
    assert_eq!(run.broken(), [""; 0]);
}

#[test]
fn tokens_of_another_cluster_or_table_and_user_edits_are_not_compared() {
    let older = |run: &mut Run| run.write(20.4, "a", "statefulsets", "one-db", 1, 200);
    let newer = token(2, "b");
    for (edit, falls) in [
        (Some(&*newer), true),
        (None, false),
        (Some("t1/000/2/b/another-cluster"), false),
        (Some("another-table/000/9/b/u1"), false),
        (Some("no token"), false),
    ] {
        let mut run = Run::moved();
        run.edit(20.3, "statefulsets", "one-db", edit);
        older(&mut run);
        let broken = run.broken().contains(&"no-older-after-newer".to_owned());
        assert_eq!(broken, falls, "{edit:?}");
    }
    let mut run = Run::moved();
    run.write(20.1, "b", "statefulsets", "one-db", 2, 200);
    older(&mut run);
    assert_eq!(run.broken(), ["no-older-after-newer"]);
}

#[test]
fn forged_token_that_changes_a_lease_or_entry_is_a_violation() {
    let mut run = Run::healthy();
    run.forgery(15.0, 25.0);
    run.edit(16.0, "configmaps", "forged", Some("t1/000/2000000/a/u1"));
    assert_eq!(run.broken(), [""; 0]);
    run.lease(20.0, "a", "a", "a1", 2);
    run.entry(20.01, "a", "a", "a1", 2);
    assert_eq!(run.broken(), ["forgeries-ignored"], "it was raised by one");
    // Later, and to the forged epoch.
    let mut run = Run::healthy();
    run.forgery(15.0, 25.0);
    run.shard(30.0, "a", "a", "a1", 2_000_001);
    let broken = run.broken();
    assert!(
        broken.contains(&"forgeries-ignored".to_owned()),
        "{broken:?}"
    );
    // Another fault explains a move at that time.
    let mut run = Run::healthy();
    run.forgery(15.0, 25.0);
    run.crash(4.0);
    assert_eq!(run.broken(), [""; 0]);
}

#[test]
fn unexpected_observations_of_a_fault_are_reported_and_its_victims_may_wait() {
    let mut run = Run::healthy();
    run.forgery(15.0, 25.0);
    run.evidence.faults[0].unexpected = vec!["a was ready".into()];
    assert_eq!(run.broken(), ["as-expected"]);
    let mut run = Run::healthy();
    run.user(50.0, "patch");
    run.events
        .retain(|event| event.received_micros < micros(50.5) || event.user == OPERATOR_USER);
    assert_eq!(run.broken(), ["reacted"]);
    run.forgery(45.0, 51.0);
    run.evidence.faults[0].victims = vec!["n/one".into()];
    assert_eq!(run.broken(), [""; 0]);
}
