//! From what was seen and done to what is reported: the second half of a reconcile.

use jiff::Timestamp;

use super::lease::shard_lease_name;
use super::lifecycle::{Seen as LifeSeen, Stage, Trouble, Why, Workload, conditions, reason};
use super::observed::{ClusterRecord, StatefulSetRecord};
use super::outcome::Next;
use super::token::FencingToken;
use crate::api::{DatabaseClusterStatus, ShardStatus};

/// What was seen and done.
#[derive(Debug)]
pub struct Done<'a> {
    /// The cluster.
    pub cluster: &'a ClusterRecord,
    /// Its StatefulSet; none when it is missing or someone else's.
    pub statefulset: Option<&'a StatefulSetRecord>,
    /// Whether the volume of the primary has data.
    pub initialized: bool,
    /// Size of the smallest volume, if it was looked up.
    pub volume_size: Option<&'a str>,
    /// Whether a child was changed.
    pub changed: bool,
    /// What keeps a child from being as it should.
    pub trouble: Option<&'a Trouble>,
    /// Why Pods can not be ready.
    pub diagnosis: Option<&'a Why>,
    /// Label selector of the Pods, as text.
    pub selector: &'a str,
    /// Who writes.
    pub token: &'a FencingToken,
    /// The time.
    pub now: Timestamp,
}

/// An event to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Normal: the cluster became ready.
    Ready(String),
    /// Warning: something is wrong.
    Error(String),
}

impl Notice {
    /// Of what is wrong.
    #[must_use]
    pub fn of(why: &Why) -> Self {
        Self::Error(format!("{}: {}", why.reason, why.message))
    }
}

/// What is reported, and when to look again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conclusion {
    /// The status to write; none when it says what the last one said.
    pub status: Option<DatabaseClusterStatus>,
    /// What to tell in an event.
    pub notice: Option<Notice>,
    /// When to look again.
    pub next: Next,
}

/// Whether all is as it should be, or Pods are to be looked at.
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

/// Decides what is reported.
#[must_use]
pub fn conclude(done: &Done<'_>) -> Conclusion {
    let cluster = done.cluster;
    let before = &cluster.status;
    let seen = LifeSeen {
        generation: cluster.generation,
        wanted: cluster.spec.replicas,
        deleting: cluster.deleting,
        workload: workload(done.statefulset, cluster.spec.replicas),
        changed: done.changed,
        trouble: done.trouble,
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
            done.initialized,
            &before.conditions,
            cluster.generation,
            done.now,
        ),
        storage_size: storage_size(done),
        shard: Some(ShardStatus {
            table: done.token.table.to_string(),
            lease: shard_lease_name(done.token.shard),
            holder: done.token.holder.to_string(),
            epoch: i64::from(done.token.epoch),
            bucket: i32::from(cluster.bucket.0),
            uid: cluster.uid.to_string(),
        }),
    };
    Conclusion {
        notice: notice(&was, &is, cluster.spec.replicas),
        next: if matches!(is, Stage::Ready(_)) {
            Next::Ready
        } else {
            Next::Waiting
        },
        status: (!status.says_the_same_as(before)).then_some(status),
    }
}

/// The size that the volumes are known to have: below it `spec.storage.size` may not fall.
fn storage_size(done: &Done<'_>) -> Option<String> {
    let created = || Some(done.statefulset?.claim.as_ref()?.size.as_str());
    // The watch has not shown the StatefulSet that was just created.
    let asked = || {
        done.changed
            .then_some(done.cluster.spec.storage.size.as_str())
    };
    let known = done.cluster.status.storage_size.as_deref();
    let size = done.volume_size.or(known).or_else(created).or_else(asked);
    size.map(str::to_owned)
}

fn notice(was: &Stage, is: &Stage, wanted: i32) -> Option<Notice> {
    match (was, is) {
        (Stage::Ready(_), Stage::Ready(_)) => None,
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
