//! Rules about objects: all that was asked for exists, in time, created once, no other manager's fields changed, and
//! then no further writes.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{History, Operation, UserChange};
use super::ownership::promised_from;
use super::{Stats, Verdict};
use crate::evidence::{Asked, Evidence, LastState, Micros, micros, seconds};

/// Children of what was deleted are removed by Kubernetes' own garbage collector, in its own time.
const COLLECTED_SECONDS: f64 = 30.0;

/// The final state is what users asked for, and nothing else; and it was reached in time after the last fault and the
/// users' last change.
pub(super) fn converged(evidence: &Evidence, history: &History) -> Verdict {
    let mut violations = missing(&evidence.asked, &evidence.last);
    let due = promised_from(evidence, history)
        .into_iter()
        .flatten()
        .map(|from| from + micros(evidence.scenario.takeover_seconds()))
        .chain(evidence.faults.iter().map(|fault| fault.to))
        .fold(evidence.load_ended, Micros::max)
        + micros(evidence.scenario.expect.work_seconds + COLLECTED_SECONDS);
    match evidence.converged {
        None => violations.push("it did not converge".to_owned()),
        Some(at) if at > due => {
            violations.push(format!("it converged {:.1} s too late", seconds(at - due)));
        }
        Some(_) => {}
    }
    let (clusters, children) = (evidence.last.clusters.len(), evidence.last.children.len());
    Verdict::of(
        "converged",
        violations,
        format!("{clusters} clusters, {children} children"),
    )
}

/// The final state, compared with what was asked for.
#[must_use]
pub fn missing(asked: &Asked, last: &LastState) -> Vec<String> {
    let mut violations = Vec::new();
    for (key, wanted) in &asked.wanted {
        match (wanted, last.clusters.get(key)) {
            (None, None) => {}
            (None, Some(_)) => violations.push(format!("{key} was deleted and still exists")),
            (Some(_), None) => violations.push(format!("{key} is lost")),
            (Some(wanted), Some(found)) => {
                if let Some(why) = &found.not_ready {
                    violations.push(format!("{key} is not Ready: {why}"));
                }
                if (&wanted.cpu, wanted.replicas) != (&found.cpu, found.replicas) {
                    violations.push(format!(
                        "{key} asks for {} and {} instances, not {wanted:?}",
                        found.cpu, found.replicas
                    ));
                }
                let set = last.children.get(&format!("statefulsets/{key}-db"));
                let workload = set.and_then(|set| set.workload.as_ref());
                if workload != Some(wanted) {
                    violations.push(format!(
                        "the StatefulSet of {key} has {workload:?}, not {wanted:?}"
                    ));
                }
                let lacking = children_of(key, wanted.replicas)
                    .into_iter()
                    .filter(|name| !last.children.contains_key(name));
                violations.extend(lacking.map(|name| format!("{name} is missing")));
            }
        }
    }
    let uids: BTreeSet<&str> = last
        .clusters
        .values()
        .map(|cluster| cluster.uid.as_str())
        .collect();
    let orphans = last
        .children
        .iter()
        .filter(|(_, child)| !uids.contains(child.owner.as_str()));
    violations.extend(orphans.map(|(name, _)| format!("{name} remains of a deleted cluster")));
    violations
}

/// The children that a cluster has in a run without faults.
fn children_of(key: &str, instances: u32) -> Vec<String> {
    let mut names = vec![
        format!("statefulsets/{key}-db"),
        format!("services/{key}-db"),
        format!("services/{key}-rw"),
        format!("services/{key}-r"),
        format!("configmaps/{key}-db"),
        format!("secrets/{key}-app"),
    ];
    if instances > 1 {
        names.push(format!("poddisruptionbudgets/{key}-db"));
    }
    names
}

/// Each change by a user is followed by a write of the operator in time.
pub(super) fn reacted(evidence: &Evidence, history: &History, stats: &mut Stats) -> Verdict {
    let mut writes: BTreeMap<&str, Vec<(Micros, Micros)>> = BTreeMap::new();
    for write in history.writes.iter().filter(|write| write.accepted()) {
        if let Some(cluster) = &write.cluster {
            writes
                .entry(cluster)
                .or_default()
                .push((write.received, write.completed));
        }
    }
    for times in writes.values_mut() {
        times.sort_unstable();
    }
    let work = micros(evidence.scenario.expect.work_seconds);
    let promised = promised_from(evidence, history);
    let mut violations = Vec::new();
    let in_time = history
        .changes
        .iter()
        .filter(|change| change.at >= evidence.begun && change.operation != Operation::Deleted);
    for change in in_time {
        if overtaken(history, change) || is_victim(evidence, &change.cluster) {
            continue;
        }
        let times = writes
            .get(change.cluster.as_str())
            .map_or(&[][..], Vec::as_slice);
        let next = times.get(times.partition_point(|(received, _)| *received < change.at));
        let (reach, due) = reach(evidence, &promised, change.at);
        let Some((_, completed)) = next else {
            violations.push(format!(
                "{}: no write followed a change at {:.1} s",
                change.cluster,
                seconds(change.at - evidence.begun)
            ));
            continue;
        };
        let took = seconds(completed - change.at);
        match reach {
            true => stats.fault_reaction_seconds.push(took),
            false => stats.undisturbed_reaction_seconds.push(took),
        }
        if *completed > due + work {
            violations.push(format!(
                "{}: the first write after a change at {:.1} s came after {took:.1} s, {:.1} s too late",
                change.cluster,
                seconds(change.at - evidence.begun),
                seconds(completed - due - work)
            ));
        }
    }
    let last_end = evidence.faults.iter().map(|fault| fault.to).max();
    stats.converged_seconds = evidence
        .converged
        .map(|at| seconds(at - last_end.unwrap_or(at).max(evidence.load_ended)));
    let (undisturbed, fault) = (
        stats.undisturbed_reaction_seconds.len(),
        stats.fault_reaction_seconds.len(),
    );
    Verdict::of(
        "reacted",
        violations,
        format!("{undisturbed} changes away from faults, {fault} during one"),
    )
}

/// Whether the cluster was deleted soon after: then no reaction to the change itself is required.
fn overtaken(history: &History, change: &UserChange) -> bool {
    let gone = |other: &&UserChange| {
        other.cluster == change.cluster && other.operation == Operation::Deleted
    };
    history
        .changes
        .iter()
        .filter(gone)
        .any(|other| (change.at..change.at + micros(60.0)).contains(&other.at))
}

/// Whether a fault is meant to harm this cluster: what is promised of it holds only after the fault.
fn is_victim(evidence: &Evidence, cluster: &str) -> bool {
    let mut faults = evidence.faults.iter();
    faults.any(|fault| fault.victims.iter().any(|victim| victim == cluster))
}

/// Whether a change at this time is affected by a fault, and when a write must follow, apart from the time of work.
fn reach(evidence: &Evidence, promised: &[Option<Micros>], at: Micros) -> (bool, Micros) {
    let takeover = micros(evidence.scenario.takeover_seconds());
    let work = micros(evidence.scenario.expect.work_seconds);
    let mut due = at;
    let mut reach = false;
    for (fault, promised) in evidence.faults.iter().zip(promised) {
        // Forged tokens harm only their victims.
        if fault.forged_epoch.is_some() {
            continue;
        }
        let over = promised.map_or(fault.to, |from| from.max(fault.from) + takeover);
        if (fault.from - work..over + work).contains(&at) {
            reach = true;
            due = due.max(over);
        }
    }
    (reach, due)
}

/// Each child is created once in the life of its cluster, and deleted only once and only with it, as in a run without
/// faults.
pub(super) fn children_counted(evidence: &Evidence, history: &History) -> Verdict {
    let mut created: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    let mut deleted: BTreeMap<&str, u64> = BTreeMap::new();
    let mut violations = Vec::new();
    for write in history.writes.iter().filter(|write| write.accepted()) {
        let Some(cluster) = &write.cluster else {
            continue;
        };
        match (&write.owner, write.operation) {
            (Some(owner), Operation::Created) => {
                *created.entry((owner, &write.object)).or_insert(0) += 1
            }
            (_, Operation::Deleted) if !write.object.starts_with("databaseclusters/") => {
                let count = deleted.entry(&write.object).or_insert(0);
                *count += 1;
                let may = deletions_before(evidence, history, cluster, write.completed);
                if *count > may {
                    violations.push(format!(
                        "{} deleted {} {count} times, when its cluster had been deleted {may} times",
                        write.pod, write.object
                    ));
                }
            }
            _ => {}
        }
    }
    for ((owner, object), count) in &created {
        let by_hand = history
            .children_deleted_by_hand
            .get(*object)
            .copied()
            .unwrap_or(0);
        if *count > 1 + by_hand {
            violations.push(format!(
                "{object} was created {count} times for the cluster {owner}"
            ));
        }
    }
    violations.extend(from_nowhere(evidence, history, &created));
    Verdict::of(
        "children-counted",
        violations,
        format!("{} children created", created.len()),
    )
}

/// How often a cluster had been deleted. With the CRD go all clusters, and no request for that is in the log.
fn deletions_before(evidence: &Evidence, history: &History, cluster: &str, at: Micros) -> u64 {
    let changes = history.changes.iter();
    let by_users = changes.filter(|change| {
        change.operation == Operation::Deleted && change.cluster == cluster && change.at <= at
    });
    let crd = evidence.faults.iter();
    let with_all = crd.filter(|fault| fault.kind == "crd" && fault.from <= at);
    (by_users.count() + with_all.count()) as u64
}

/// Children of the final state that no request created, by owner and object.
fn from_nowhere(
    evidence: &Evidence,
    history: &History,
    created: &BTreeMap<(&str, &str), u64>,
) -> Vec<String> {
    if evidence.faults.iter().any(|fault| fault.hides_requests) {
        return Vec::new();
    }
    // Those that were not answered may have been created all the same.
    let indeterminate = history.writes.iter().filter(|write| write.indeterminate());
    let perhaps: BTreeSet<(&str, &str)> = indeterminate
        .filter_map(|write| Some((write.owner.as_deref()?, write.object.as_str())))
        .collect();
    let children = evidence.last.children.iter();
    let unexplained = children.filter(|(name, child)| {
        let key = (child.owner.as_str(), name.as_str());
        !created.contains_key(&key) && !perhaps.contains(&key)
    });
    unexplained
        .map(|(name, _)| format!("{name} exists, but no request created it for its cluster"))
        .collect()
}

/// What other managers wrote still exists.
pub(super) fn others_untouched(evidence: &Evidence) -> Verdict {
    let clusters = evidence
        .last
        .clusters
        .iter()
        .map(|(name, cluster)| (name, cluster.mark_kept));
    let children = evidence
        .last
        .children
        .iter()
        .map(|(name, child)| (name, child.mark_kept));
    let marked: Vec<(&String, bool)> = clusters
        .chain(children)
        .filter_map(|(name, kept)| Some((name, kept?)))
        .collect();
    let lost = marked
        .iter()
        .filter(|(_, kept)| !kept)
        .map(|(name, _)| format!("{name} lost another manager's fields"));
    Verdict::of(
        "others-untouched",
        lost.collect(),
        format!("{} objects with fields of another manager", marked.len()),
    )
}

/// With nothing to do, the operator writes heartbeats and nothing else.
pub(super) fn quiet(evidence: &Evidence, history: &History) -> Verdict {
    const RULE: &str = "quiet";
    let Some((from, to)) = evidence.quiet else {
        return Verdict::of(
            RULE,
            vec!["there was no quiet time to check".into()],
            String::new(),
        );
    };
    let loud = history
        .beside_heartbeats
        .iter()
        .filter(|(at, _)| (from..to).contains(at));
    let violations =
        loud.map(|(at, what)| format!("{what}, {:.1} s into the quiet time", seconds(at - from)));
    Verdict::of(
        RULE,
        violations.collect(),
        format!("{:.0} s without work", seconds(to - from)),
    )
}
