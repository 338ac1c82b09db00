//! The checker on synthetic runs: each rule detects its violation, and nothing else. Here: writers and holders.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use serde_json::json;
use testbed::audit::AuditEvent;
use testbed::fleet::{OPERATOR_NAMESPACE, OPERATOR_USER};

use super::entries::Entries;
use super::history::History;
use super::ownership::{Ownership, Span};
use super::{CheckResult, check};
use crate::evidence::{Asked, Evidence, Injected, LastChild, LastCluster, LastState, Life, Wanted};
use crate::scenario::Scenario;

mod alerts;
mod entries;
mod indeterminate;
mod objects;

const SHARD: &str = "databasecluster-shard-000";
const TABLE: &str = "t1";
/// The children of the cluster beside its StatefulSet.
const OTHERS: [(&str, &str); 5] = [
    ("services", "one-db"),
    ("services", "one-rw"),
    ("services", "one-r"),
    ("configmaps", "one-db"),
    ("secrets", "one-app"),
];

fn micros(seconds: f64) -> i64 {
    crate::evidence::micros(seconds)
}

/// A run of 60 s in which replica `a` holds the only shard and reconciles one cluster.
struct Run {
    evidence: Evidence,
    events: Vec<AuditEvent>,
    version: u64,
}

fn scenario() -> Scenario {
    let text = "about = \"x\"\nsets = [\"full\"]\n[expect]\nchanges_min = 1\n";
    Scenario::parse("x", text).unwrap()
}

impl Run {
    fn healthy() -> Self {
        let wanted = Wanted {
            cpu: "200m".into(),
            replicas: 1,
        };
        let cluster = LastCluster {
            uid: "u1".into(),
            cpu: "200m".into(),
            replicas: 1,
            mark_kept: Some(true),
            ..LastCluster::default()
        };
        let child = |uid: &str| LastChild {
            uid: uid.into(),
            owner: "u1".into(),
            ..LastChild::default()
        };
        let mut children: BTreeMap<String, LastChild> = OTHERS
            .map(|(resource, name)| (format!("{resource}/n/{name}"), child(name)))
            .into();
        let set = LastChild {
            workload: Some(wanted.clone()),
            ..child("c1")
        };
        children.insert("statefulsets/n/one-db".into(), set);
        let life = |pod: &str| Life {
            pod: pod.into(),
            from: micros(-10.0),
            to: None,
            absent: Vec::new(),
        };
        let mut run = Self {
            evidence: Evidence {
                scenario: scenario(),
                begun: 0,
                load_ended: micros(50.0),
                converged: Some(micros(51.0)),
                quiet: Some((micros(52.0), micros(60.0))),
                lives: vec![life("a"), life("b")],
                faults: Vec::new(),
                asked: Asked {
                    accepted: 1,
                    repeated: 0,
                    wanted: [("n/one".to_owned(), Some(wanted))].into(),
                },
                last: LastState {
                    clusters: [("n/one".to_owned(), cluster)].into(),
                    children,
                    ..LastState::default()
                },
                samples: Vec::new(),
                problem: None,
            },
            events: Vec::new(),
            version: 100,
        };
        run.shard(-9.0, "a", "a", "a1", 1);
        for second in (-9..60).step_by(2) {
            run.renew(f64::from(second), "a", "a1");
            run.renew(f64::from(second), "b", "b1");
        }
        run.write(-8.0, "a", "statefulsets", "one-db", 1, 201);
        for (resource, name) in OTHERS {
            run.write(-8.0, "a", resource, name, 1, 201);
            run.last().response.as_mut().unwrap()["metadata"]["uid"] = json!(name);
        }
        run.user(10.0, "patch");
        run.write(10.1, "a", "statefulsets", "one-db", 1, 200);
        run
    }

    fn event(&mut self, at: f64, pod: &str, verb: &str, resource: &str, name: &str) -> AuditEvent {
        self.version += 1;
        AuditEvent {
            user: OPERATOR_USER.into(),
            pod_name: Some(pod.into()),
            verb: verb.into(),
            resource: resource.into(),
            namespace: "n".into(),
            name: name.into(),
            code: 200,
            received_micros: micros(at),
            completed_micros: micros(at) + 1_000,
            ..AuditEvent::default()
        }
    }

    fn version(&self) -> String {
        self.version.to_string()
    }

    /// `by` writes the shard Lease, and the holder, if there is one, its entry in the table.
    fn shard(&mut self, at: f64, by: &str, holder: &str, incarnation: &str, epoch: i64) {
        self.lease(at, by, holder, incarnation, epoch);
        if !holder.is_empty() {
            self.entry(at + 0.002, holder, holder, incarnation, epoch);
        }
    }

    /// `by` writes the shard Lease.
    fn lease(&mut self, at: f64, by: &str, holder: &str, incarnation: &str, epoch: i64) {
        let mut event = self.event(at, by, "update", "leases", SHARD);
        event.namespace = OPERATOR_NAMESPACE.into();
        let version = self.version();
        event.request = Some(json!({"metadata": {"uid": "s", "resourceVersion": "1"}}));
        event.response = Some(json!({
            "metadata": {"resourceVersion": version, "annotations": {"database.io/incarnation": incarnation}},
            "spec": {"holderIdentity": holder, "leaseTransitions": epoch},
        }));
        self.events.push(event);
    }

    /// `by` writes the shard's entry.
    fn entry(&mut self, at: f64, by: &str, holder: &str, incarnation: &str, epoch: i64) {
        let mut event = self.event(at, by, "patch", "shardtables", "databasecluster-shards");
        event.namespace = OPERATOR_NAMESPACE.into();
        let version = self.version();
        let entry = json!({"epoch": epoch, "holder": holder, "incarnation": incarnation});
        event.request = Some(json!({"spec": {"entries": {"000": entry}}}));
        event.response = Some(json!({
            "metadata": {"uid": TABLE, "resourceVersion": version},
            "spec": {"shards": 1, "entries": {"000": entry}},
        }));
        self.events.push(event);
    }

    /// The holders of the shard, one after the other.
    fn spans(&self) -> Vec<Span> {
        let history = History::read(&self.events);
        let entries = Entries::new(&self.evidence, &history);
        let shards = Ownership::new(&self.evidence, &history, &entries).spans();
        shards.into_iter().next().unwrap().1
    }

    fn renew(&mut self, at: f64, pod: &str, incarnation: &str) {
        let name = format!("databasecluster-member-{pod}");
        let mut event = self.event(at, pod, "update", "leases", &name);
        event.namespace = OPERATOR_NAMESPACE.into();
        let version = self.version();
        event.request = Some(json!({"metadata": {"uid": "m", "resourceVersion": "1"}}));
        event.response = Some(json!({
            "metadata": {"resourceVersion": version, "annotations": {"database.io/incarnation": incarnation}},
            "spec": {"holderIdentity": pod},
        }));
        self.events.push(event);
    }

    /// A write with a token; the last one can be changed by the caller.
    fn write(&mut self, at: f64, pod: &str, resource: &str, name: &str, epoch: i64, code: u16) {
        let mut event = self.event(at, pod, "patch", resource, name);
        let version = self.version();
        event.code = code;
        event.request = Some(json!({"metadata": {
            "annotations": {"database.io/fencing-token": token(epoch, pod)},
            "ownerReferences": [{"uid": "u1"}],
        }}));
        let uid = match resource {
            "databaseclusters" => "u1",
            _ => "c1",
        };
        event.response = Some(json!({"metadata": {"uid": uid, "resourceVersion": version}}));
        self.events.push(event);
    }

    fn user(&mut self, at: f64, verb: &str) {
        let mut event = self.event(at, "", verb, "databaseclusters", "one");
        event.user = "somebody".into();
        event.pod_name = None;
        self.events.push(event);
    }

    fn last(&mut self) -> &mut AuditEvent {
        self.events.last_mut().unwrap()
    }

    fn forget_renewals(&mut self, pod: &str, from: f64) {
        let name = format!("databasecluster-member-{pod}");
        self.events
            .retain(|event| event.name != name || event.received_micros < micros(from));
    }

    fn checked(&self) -> CheckResult {
        check(&self.evidence, &History::read(&self.events))
    }

    /// The rules that were broken.
    fn broken(&self) -> Vec<String> {
        let result = self.checked();
        let broken = result.verdicts.iter().filter(|verdict| !verdict.kept);
        broken.map(|verdict| verdict.rule.clone()).collect()
    }

    fn fault(&mut self, kind: &str, from: f64, to: f64, recover_from: Option<f64>) {
        self.evidence.faults.push(Injected {
            kind: kind.into(),
            what: kind.into(),
            pods: vec!["a".into()],
            from: micros(from),
            to: micros(to),
            recover_from: recover_from.map(micros),
            takes_out: true,
            bites: 1,
            ..Injected::default()
        });
    }

    /// Replica `a` crashes at 20 s, and `b` takes over this many seconds later.
    fn crash(&mut self, takeover: f64) {
        self.evidence.lives[0].to = Some(micros(20.0));
        self.forget_renewals("a", 20.0);
        self.fault("kill", 20.0, 30.0, Some(20.0));
        self.shard(20.0 + takeover, "b", "b", "b1", 2);
    }
}

/// The token of `holder` for the cluster `one`.
fn token(epoch: i64, holder: &str) -> String {
    format!("{TABLE}/000/{epoch}/{holder}/u1")
}

#[test]
fn healthy_run_breaks_no_rule() {
    let run = Run::healthy();
    let result = run.checked();
    assert_eq!(run.broken(), [""; 0], "{result:#?}");
    assert!(result.passed());
    assert_eq!(result.stats.undisturbed_reaction_seconds.len(), 1);
    assert_eq!(result.word(), "passed");
}

#[test]
fn second_writer_in_one_epoch_is_a_violation() {
    let mut run = Run::healthy();
    run.write(11.0, "b", "statefulsets", "one-db", 1, 200);
    assert_eq!(run.broken(), ["one-writer", "token-in-force"]);
    let mut run = Run::healthy();
    run.write(11.0, "b", "statefulsets", "one-db", 1, 200);
    let annotations = &mut run.last().request.as_mut().unwrap()["metadata"]["annotations"];
    annotations["database.io/fencing-token"] = json!(token(1, "a"));
    assert_eq!(run.broken(), ["one-writer"]);
    run.last().code = 403;
    assert_eq!(run.broken(), [""; 0], "a refused write is no write");
    run.last().code = 504;
    assert_eq!(
        run.broken(),
        ["one-writer"],
        "one without an answer may be one"
    );
}

#[test]
fn older_epoch_after_a_newer_one_is_detected_in_store_order() {
    let mut run = Run::healthy();
    run.crash(5.0);
    run.write(26.0, "b", "statefulsets", "one-db", 2, 200);
    let clean = run.broken();
    assert_eq!(clean, [""; 0]);
    run.write(26.5, "a", "statefulsets", "one-db", 1, 200);
    let broken = run.broken();
    assert!(
        broken.contains(&"no-older-after-newer".to_owned()),
        "{broken:?}"
    );
    assert!(broken.contains(&"no-stale-writes".to_owned()), "{broken:?}");
    // The same requests, but the store took the older one first.
    let first = json!("150");
    run.last().response.as_mut().unwrap()["metadata"]["resourceVersion"] = first;
    assert!(!run.broken().contains(&"no-older-after-newer".to_owned()));
}

#[test]
fn older_epoch_in_the_final_state_is_detected_without_a_response_in_the_log() {
    let mut run = Run::healthy();
    run.crash(5.0);
    run.write(26.0, "b", "statefulsets", "one-db", 2, 200);
    let last = |run: &mut Run, token: String| {
        let set = run.evidence.last.children.get_mut("statefulsets/n/one-db");
        set.unwrap().token = token;
    };
    last(&mut run, token(2, "b"));
    assert_eq!(run.broken(), [""; 0]);
    last(&mut run, token(1, "a"));
    assert_eq!(run.broken(), ["no-older-after-newer"]);
}

#[test]
fn annotation_and_status_are_separate_registers() {
    let status = |run: &mut Run, at: f64, pod: &str, epoch: i64| {
        run.write(at, pod, "databaseclusters", "one", 0, 200);
        let event = run.last();
        event.subresource = "status".into();
        let shard = json!({
            "table": TABLE, "lease": SHARD, "epoch": epoch, "holder": pod, "uid": "u1",
        });
        event.request = Some(json!({"status": {"shard": shard}}));
    };
    let mut run = Run::healthy();
    run.crash(5.0);
    status(&mut run, 27.0, "b", 2);
    status(&mut run, 27.1, "a", 1);
    assert!(run.broken().contains(&"no-older-after-newer".to_owned()));
    let mut run = Run::healthy();
    run.crash(5.0);
    // The status of `a` was on its way, and the annotation alone has been written by `b`.
    run.write(25.5, "b", "databaseclusters", "one", 2, 200);
    status(&mut run, 25.6, "a", 1);
    assert_eq!(run.broken(), [""; 0]);
}

#[test]
fn replica_that_keeps_writing_after_its_lease_expired_is_a_violation() {
    let mut run = Run::healthy();
    run.forget_renewals("a", 12.0);
    for number in 0..12 {
        run.write(
            17.0 + f64::from(number) / 100.0,
            "a",
            "services",
            "one-rw",
            1,
            403,
        );
    }
    assert_eq!(run.broken(), ["right-had-not-lapsed"]);
    run.events.pop();
    run.events.pop();
    assert_eq!(run.broken(), [""; 0], "ten were on their way");
    run.write(19.2, "a", "services", "one-rw", 1, 403);
    run.fault("network", 12.0, 20.0, None);
    run.evidence.faults[0].delays_requests = true;
    assert_eq!(run.broken(), [""; 0], "requests were held back");
}

#[test]
fn few_writes_long_after_lease_expiry_are_a_violation() {
    let mut run = Run::healthy();
    run.forget_renewals("a", 12.0);
    for at in [21.2, 21.4, 21.6] {
        run.write(at, "a", "services", "one-rw", 1, 403);
    }
    assert_eq!(run.broken(), ["right-had-not-lapsed"]);
    run.events.pop();
    assert_eq!(run.broken(), [""; 0], "two may have been slow");
}

#[test]
fn lease_write_without_uid_and_version_is_a_violation() {
    for missing in ["uid", "resourceVersion"] {
        let mut run = Run::healthy();
        run.lease(15.0, "a", "a", "a1", 1);
        run.last().request.as_mut().unwrap()["metadata"]
            .as_object_mut()
            .unwrap()
            .remove(missing);
        assert_eq!(run.broken(), ["leases-compared"]);
        run.last().pod_name = None;
        run.last().user = "somebody".into();
        assert_eq!(run.broken(), [""; 0], "users may");
    }
}

#[test]
fn epoch_that_does_not_rise_with_a_new_holder_is_a_violation() {
    let mut run = Run::healthy();
    run.shard(15.0, "b", "b", "b1", 1);
    assert_eq!(run.broken(), ["table-moves-forward", "epochs-rise"]);
    let mut run = Run::healthy();
    run.shard(15.0, "b", "b", "b1", 5);
    run.shard(16.0, "a", "a", "a1", 4);
    assert_eq!(run.broken(), ["table-moves-forward", "epochs-rise"]);
    let mut run = Run::healthy();
    run.shard(15.0, "a", "", "", 1);
    run.shard(15.01, "b", "b", "b1", 2);
    assert_eq!(run.broken(), [""; 0], "given up and taken");
    let mut run = Run::healthy();
    run.shard(15.0, "b", "b", "b1", 1_400_001);
    let far = ["table-moves-forward", "epochs-rise"];
    assert_eq!(run.broken(), far, "far above all earlier epochs");
    // Above the table's entry of a deleted Lease.
    let mut run = Run::healthy();
    run.entry(14.0, "a", "", "", 1_000_000);
    run.lease(14.001, "a", "", "", 1);
    run.shard(14.05, "b", "b", "b1", 1_400_001);
    assert_eq!(run.broken(), [""; 0]);
}

#[test]
fn takeover_time_is_measured_and_a_late_takeover_is_a_violation() {
    let mut run = Run::healthy();
    run.crash(6.5);
    assert_eq!(run.broken(), [""; 0]);
    let took = run.checked().stats.takeover_seconds;
    assert!(took.len() == 1 && (took[0] - 6.5).abs() < 0.01, "{took:?}");
    assert_eq!(run.checked().stats.recovery_seconds, took);
    let mut run = Run::healthy();
    run.crash(7.4);
    assert_eq!(run.broken(), ["held"]);
    let mut run = Run::healthy();
    run.crash(5.0);
    run.evidence.faults[0].recover_from = None;
    assert_eq!(run.broken(), ["held"], "a planned stop excuses nothing");
}

#[test]
fn frozen_holder_or_old_incarnation_does_not_count_as_holder() {
    let mut run = Run::healthy();
    run.evidence.lives[0]
        .absent
        .push((micros(20.0), micros(29.0)));
    assert_eq!(run.broken(), ["held"]);
    run.fault("freeze", 20.0, 29.0, Some(20.0));
    assert_eq!(
        run.broken(),
        ["held"],
        "the others should have taken over after 7 s"
    );
    let mut run = Run::healthy();
    run.forget_renewals("a", 20.0);
    for second in 20..60 {
        run.renew(f64::from(second), "a", "a2");
    }
    assert_eq!(
        run.broken(),
        ["held"],
        "the Lease names the incarnation before"
    );
    let acts: Vec<bool> = run.spans().iter().map(|span| span.acts).collect();
    assert_eq!(acts, [false, true, false], "until it was entered, too");
}

#[test]
fn unanswered_move_counts_if_the_lease_or_the_table_shows_it() {
    let moved = || {
        let mut run = Run::healthy();
        run.lease(30.0, "a", "b", "b1", 2);
        let event = run.last();
        event.code = 504;
        event.request = event.response.take();
        run.evidence.lives[0].to = Some(micros(31.0));
        run.forget_renewals("a", 31.0);
        run
    };
    let mut run = moved();
    assert_eq!(run.broken(), ["held"], "it may not have been executed");
    run.evidence.last.shards = vec![(SHARD.to_owned(), "b".to_owned(), 2)];
    let holder = |run: &Run| run.spans().last().unwrap().holder.clone();
    assert_eq!(holder(&run), "b", "the Lease is so in the end");
    assert_eq!(run.broken(), ["held"], "but the table does not know");
    let mut run = moved();
    run.entry(30.1, "b", "b", "b1", 2);
    assert_eq!(run.broken(), [""; 0], "the table knows");
    // Or a later write builds on it: `b` names a version that no response contained.
    let mut run = moved();
    run.lease(40.0, "b", "b", "b1", 2);
    assert_eq!(run.spans()[2].holder, "b");
}

#[test]
fn unanswered_heartbeat_starts_the_takeover_clock() {
    let mut run = Run::healthy();
    run.forget_renewals("a", 20.0);
    run.evidence.lives[0].absent = vec![(micros(20.0), micros(32.0))];
    run.fault("partition", 20.0, 32.0, Some(20.0));
    run.shard(27.8, "b", "b", "b1", 2);
    assert_eq!(run.broken(), ["held"]);
    run.renew(21.5, "a", "a1");
    assert_eq!(run.broken(), [""; 0]);
    run.forget_renewals("a", 20.0);
    run.renew(23.0, "a", "a1");
    assert_eq!(run.broken(), ["held"], "a heartbeat is due after 2 s");
}

#[test]
fn stale_write_allowed_by_rbac_and_denied_by_admission_counts_as_fenced() {
    let mut run = Run::healthy();
    run.crash(5.0);
    run.write(25.1, "b", "statefulsets", "one-db", 2, 403);
    assert_eq!(run.checked().stats.fenced, 0, "the rightful holder");
    run.write(26.0, "a", "statefulsets", "one-db", 1, 403);
    assert_eq!(run.checked().stats.fenced, 1);
    run.last().refused_by_rbac = true;
    assert_eq!(run.checked().stats.fenced, 0);
}

#[test]
fn planned_stops_are_measured_without_other_faults() {
    let mut run = Run::healthy();
    run.fault("roll", 20.0, 30.0, None);
    run.evidence.faults[0].takes_out = false;
    run.shard(22.0, "a", "b", "b1", 2);
    run.shard(25.0, "b", "", "", 2);
    run.shard(25.05, "a", "a", "a1", 3);
    let took = run.checked().stats.planned_unowned_seconds;
    assert!(took.len() == 2, "{took:?}");
    assert!((took[0] - 0.002).abs() < 0.001, "until the entry: {took:?}");
    assert!((took[1] - 0.052).abs() < 0.001, "{took:?}");
    run.fault("leases", 29.0, 29.0, Some(29.0));
    let took = run.checked().stats.planned_unowned_seconds;
    assert!(took.is_empty(), "{took:?}");
}
