//! The status to report after a reconcile observed and changed the children.

use jiff::Timestamp;

use super::lifecycle::{
    ConditionReason, Exposure, Facts, Observed as LifecycleObserved, Problem, Stage, Workload,
    conditions, reason,
};
use super::observed::{ClusterRecord, StatefulSetRecord};
use crate::api::names::NAMES;
use crate::api::{DatabaseClusterStatus, ShardStatus};
use shard_ownership::token::FencingToken;
use sharded_controller::outcome::Next;

/// What a reconcile observed and did.
#[derive(Debug)]
pub struct Done<'a> {
    /// The cluster.
    pub cluster: &'a ClusterRecord,
    /// Its StatefulSet; none if it is missing or belongs to someone else.
    pub statefulset: Option<&'a StatefulSetRecord>,
    /// Whether the volume of the primary has data.
    pub initialized: bool,
    /// Size of the smallest volume, if it was looked up.
    pub volume_size: Option<&'a str>,
    /// Whether a child was changed.
    pub changed: bool,
    /// What keeps a child from being as it should.
    pub problem: Option<&'a Problem>,
    /// Why Pods cannot be ready.
    pub diagnosis: Option<&'a ConditionReason>,
    /// Whether the primary serves; none when that could not be found out.
    pub primary: Option<bool>,
    /// Whether the load balancers have addresses.
    pub exposure: Exposure,
    /// Label selector of the Pods, as text.
    pub selector: &'a str,
    /// Fencing token of the writer.
    pub token: &'a FencingToken,
    /// The current time.
    pub now: Timestamp,
}

/// An event to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// Normal: the cluster became ready.
    Ready(String),
    /// Warning: something is wrong.
    Error(String),
}

impl Notice {
    /// The event for a problem.
    #[must_use]
    pub(crate) fn of(why: &ConditionReason) -> Self {
        Self::Error(format!("{}: {}", why.reason, why.message))
    }
}

/// What to report, and when to reconcile again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StatusUpdate {
    /// The status to write; none when it says what the last one said.
    pub status: Option<DatabaseClusterStatus>,
    /// Event to publish.
    pub notice: Option<Notice>,
    /// When to reconcile again.
    pub next: Next,
}

/// Whether the StatefulSet is settled, or its Pods have to be diagnosed.
#[must_use]
pub fn workload(statefulset: Option<&StatefulSetRecord>, wanted: i32) -> Workload {
    match statefulset {
        None => Workload::Absent,
        Some(set) if set.is_settled() && set.spec_replicas == wanted => Workload::Settled,
        Some(set) if set.observed_generation < 1 => Workload::New,
        Some(set) => Workload::Unsettled {
            exist: set.replicas,
            ready: set.ready_replicas,
            rolling: set.is_rolling(),
            observed: set.is_observed(),
        },
    }
}

/// Whether the primary has accepted connections at least once. No replica gets ready before it.
#[must_use]
pub fn is_initialized(cluster: &ClusterRecord, statefulset: Option<&StatefulSetRecord>) -> bool {
    cluster.status.is_initialized() || statefulset.is_some_and(|set| set.ready_replicas > 0)
}

/// Whether the primary serves, as far as the Pod counts decide it: unknown if some Pods are ready
/// and some are not, because replicas stay ready without their primary. Before the first start no
/// replica gets ready without the primary.
///
/// `by_container`: whether a primary serves whose Pod is not ready because of another container.
#[must_use]
pub(crate) fn primary_serves(
    cluster: &ClusterRecord,
    statefulset: Option<&StatefulSetRecord>,
    by_container: bool,
) -> Option<bool> {
    let may_serve = |set: &&StatefulSetRecord| match by_container {
        true => set.replicas > 0,
        false => set.ready_replicas > 0,
    };
    let Some(set) = statefulset.filter(may_serve) else {
        return Some(false);
    };
    let all_ready = set.ready_replicas == set.replicas && set.replicas >= set.spec_replicas;
    let first_is_ready = !cluster.status.is_initialized() && set.ready_replicas > 0;
    (all_ready || first_is_ready).then_some(true)
}

/// Computes the status to report.
#[must_use]
pub(crate) fn compute_status(done: &Done<'_>) -> StatusUpdate {
    let cluster = done.cluster;
    let before = &cluster.status;
    let seen = LifecycleObserved {
        generation: cluster.generation,
        wanted: cluster.spec.replicas,
        deleting: cluster.deleting,
        workload: workload(done.statefulset, cluster.spec.replicas),
        changed: done.changed,
        problem: done.problem,
        diagnosis: done.diagnosis,
        now: done.now,
    };
    let was = Stage::reconstruct(before);
    let is = was.clone().next(&seen, before);
    let status = DatabaseClusterStatus {
        replicas: done.statefulset.map_or(0, |set| set.replicas),
        ready_replicas: done.statefulset.map_or(0, |set| set.ready_replicas),
        selector: done.selector.to_owned(),
        observed_generation: cluster.generation,
        phase: Some(is.phase()),
        conditions: conditions(
            &is,
            &Facts {
                initialized: done.initialized,
                primary: done.primary,
                exposure: done.exposure.clone(),
                generation: cluster.generation,
                now: done.now,
            },
            &before.conditions,
        ),
        storage_size: storage_size(done),
        shard: Some(ShardStatus {
            table: done.token.table.to_string(),
            lease: NAMES.shard_lease(done.token.shard),
            holder: done.token.holder.to_string(),
            epoch: i64::from(done.token.epoch),
            bucket: i32::from(cluster.bucket.0),
            uid: cluster.uid.to_string(),
        }),
    };
    StatusUpdate {
        notice: notice(&was, &is, before.ready_replicas, cluster.spec.replicas),
        next: if matches!(is, Stage::Ready(_)) {
            Next::Ready
        } else {
            Next::Waiting
        },
        status: (!status.is_same_report_as(before)).then_some(status),
    }
}

/// The known size of the volumes: `spec.storage.size` must not fall below it.
fn storage_size(done: &Done<'_>) -> Option<String> {
    let created = || Some(done.statefulset?.claim.as_ref()?.size.as_str());
    // The watch has not yet shown the StatefulSet that was just created.
    let asked = || {
        done.changed
            .then_some(done.cluster.spec.storage.size.as_str())
    };
    let known = done.cluster.status.storage_size.as_deref();
    let size = done.volume_size.or(known).or_else(created).or_else(asked);
    size.map(str::to_owned)
}

fn notice(was: &Stage, is: &Stage, were_ready: i32, wanted: i32) -> Option<Notice> {
    match (was, is) {
        // A change that settled before it was reported: the number is the news.
        (Stage::Ready(_), Stage::Ready(_)) if were_ready == wanted => None,
        (_, Stage::Ready(_)) => Some(Notice::Ready(format!("ready with {wanted} replicas"))),
        (_, Stage::Terminating(new)) if new.why().reason == reason::TERMINATING => None,
        (Stage::Degraded(old), Stage::Degraded(_) | Stage::Terminating(_))
            if old.why().reason == is.why().reason =>
        {
            None
        }
        (_, Stage::Degraded(_) | Stage::Terminating(_)) => Some(Notice::of(is.why())),
        (_, Stage::Creating(_) | Stage::Scaling(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::api::DatabaseCluster;
    use crate::watch::observe;

    #[test]
    fn pod_counts_decide_about_the_primary_only_when_unambiguous() {
        let cluster = |initialized: bool| {
            let conditions = match initialized {
                true => json!([{"type": "Initialized", "status": "True", "reason": "Initialized",
                    "message": "", "lastTransitionTime": ""}]),
                false => json!([]),
            };
            let object: DatabaseCluster = serde_json::from_value(json!({
                "apiVersion": "database.io/v1", "kind": "DatabaseCluster",
                "metadata": {"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "1"},
                "spec": {"image": "postgres:18"}, "status": {"conditions": conditions},
            }))
            .unwrap();
            observe::cluster(&object).unwrap()
        };
        let set = |wanted: i32, exist: i32, ready: i32| {
            let object = serde_json::from_value(json!({
                "metadata": {"name": "a-db", "namespace": "n", "uid": "s", "resourceVersion": "1"},
                "spec": {"serviceName": "a-db", "selector": {}, "template": {}, "replicas": wanted},
                "status": {"replicas": exist, "readyReplicas": ready},
            }));
            observe::statefulset(&object.unwrap(), None).unwrap()
        };
        let old = cluster(true);
        assert_eq!(primary_serves(&old, None, false), Some(false));
        for (wanted, exist, ready, expected) in [
            (3, 3, 3, Some(true)),
            (3, 3, 0, Some(false)),
            (0, 0, 0, Some(false)),
            // It may be the one that is not ready, or missing.
            (3, 3, 2, None),
            (3, 2, 2, None),
            // Some are about to be removed, and all are ready.
            (1, 3, 3, Some(true)),
        ] {
            let got = primary_serves(&old, Some(&set(wanted, exist, ready)), false);
            assert_eq!(got, expected, "{ready} of {exist}, {wanted} wanted");
        }
        let first = primary_serves(&cluster(false), Some(&set(3, 3, 1)), false);
        assert_eq!(first, Some(true), "its copies come after it");
        // The container decides, which the counts do not know.
        for (exist, ready, expected) in [(3, 0, None), (0, 0, Some(false)), (3, 3, Some(true))] {
            for cluster in [&old, &cluster(false)] {
                let got = primary_serves(cluster, Some(&set(3, exist, ready)), true);
                assert_eq!(got, expected, "{ready} of {exist}");
            }
        }
    }
}
