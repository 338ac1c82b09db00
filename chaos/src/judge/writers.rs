//! Rules about who may write: one writer for each shard and epoch, never an older epoch after a newer one, nobody whose
//! right has lapsed.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{History, LeaseWrite, Write, parse_stamp};
use super::{Figures, Verdict};
use crate::evidence::{Evidence, Micros, micros, seconds};

/// How long after a shard's Lease moved a request of its former holder may arrive and pass, on an object that the new
/// holder has not written: the lag of the API server's cache, when it is healthy.
const STALE_MICROS_MAX: Micros = 1_000_000;
/// Writes that may have been on their way when a replica was stopped in its tracks: one for each worker.
const IN_FLIGHT_MAX: usize = 10;
/// Nothing is on its way for longer than this, but for a few from a process that had no CPU at the wrong moment.
const ON_THE_WAY_MICROS_MAX: Micros = 2_000_000;
const STRAGGLERS_MAX: usize = 2;

/// In each epoch of a shard one replica writes, the one that the stamp and the Lease name. Writes that may have been
/// carried out without an answer count as well: nobody may even send them.
pub(super) fn one_writer(history: &History) -> Verdict {
    let mut writers: BTreeMap<(&str, i64), BTreeSet<&str>> = BTreeMap::new();
    let mut violations = Vec::new();
    let mut looked_at = 0;
    let perhaps = |write: &&Write| write.accepted() || write.unsure();
    for write in history.writes.iter().filter(perhaps) {
        let Some(stamp) = &write.stamp else {
            continue;
        };
        looked_at += 1;
        writers
            .entry((&stamp.lease, stamp.epoch))
            .or_default()
            .insert(&write.pod);
        if stamp.holder != write.pod {
            violations.push(format!(
                "{} wrote {} with the stamp of {}",
                write.pod, write.object, stamp.holder
            ));
        }
    }
    for ((lease, epoch), pods) in &writers {
        if pods.len() > 1 {
            let pods: Vec<&str> = pods.iter().copied().collect();
            violations.push(format!(
                "{lease}, epoch {epoch}: written by {}",
                pods.join(" and ")
            ));
        }
    }
    let epochs = writers.len();
    Verdict::of(
        "one-writer",
        violations,
        format!("{looked_at} stamped writes in {epochs} epochs of shards"),
    )
}

/// On one object, no accepted write has a lower epoch than an accepted write before it, in the store's own order; and none
/// has one in the end, whether or not the log says who wrote it.
pub(super) fn no_older_after_newer(evidence: &Evidence, history: &History) -> Verdict {
    let mut newest: BTreeMap<(&str, &str), (&str, i64)> = BTreeMap::new();
    let mut violations = Vec::new();
    for write in history
        .writes
        .iter()
        .filter(|write| write.accepted() && write.version.is_some())
    {
        let (Some(stamp), Some(uid)) = (&write.stamp, &write.uid) else {
            continue;
        };
        let known = newest
            .entry((&write.object, uid))
            .or_insert((&stamp.lease, stamp.epoch));
        if known.0 == stamp.lease && stamp.epoch < known.1 {
            violations.push(format!(
                "{}: {} wrote with epoch {} after one with epoch {}",
                write.object, write.pod, stamp.epoch, known.1
            ));
        }
        *known = (&stamp.lease, stamp.epoch.max(known.1));
    }
    for (object, uid, stamp) in in_the_end(evidence) {
        let (Some(known), Some(stamp)) = (newest.get(&(object.as_str(), uid)), parse_stamp(stamp))
        else {
            continue;
        };
        if known.0 == stamp.lease && stamp.epoch < known.1 {
            violations.push(format!(
                "{object}: it has epoch {} in the end, after one with epoch {}",
                stamp.epoch, known.1
            ));
        }
    }
    let objects = newest.len();
    Verdict::of(
        "no-older-after-newer",
        violations,
        format!("{objects} objects, in the order of the store"),
    )
}

/// Each object, its uid and its stamp in the end.
fn in_the_end(evidence: &Evidence) -> impl Iterator<Item = (String, &str, &str)> {
    let last = &evidence.last;
    let clusters = last.clusters.iter().map(|(name, cluster)| {
        let object = format!("databaseclusters/{name}");
        (object, cluster.uid.as_str(), cluster.stamp.as_str())
    });
    let children = last.children.iter();
    clusters.chain(
        children.map(|(name, child)| (name.clone(), child.uid.as_str(), child.stamp.as_str())),
    )
}

/// No write of a former holder passes once the API server has had time to know of the new one.
pub(super) fn no_stale_writes(history: &History, figures: &mut Figures) -> Verdict {
    let shards = history.shards();
    let mut violations = Vec::new();
    let mut longest: Micros = 0;
    for write in history.writes.iter().filter(|write| write.accepted()) {
        let (Some(stamp), Some(version)) = (&write.stamp, write.version) else {
            continue;
        };
        let Some(leases) = shards.get(stamp.lease.as_str()) else {
            continue;
        };
        let Some(moved) = first_above(leases, stamp.epoch, version) else {
            continue;
        };
        figures.stale += 1;
        let late = write.received - moved.completed;
        longest = longest.max(late);
        if late > STALE_MICROS_MAX {
            violations.push(format!(
                "{}: {} wrote with epoch {} {:.1} s after the Lease had gone to {} with epoch {}",
                write.object,
                write.pod,
                stamp.epoch,
                seconds(late),
                moved.holder,
                moved.epoch
            ));
        }
    }
    let (stale, longest) = (figures.stale, seconds(longest.max(0)));
    Verdict::of(
        "no-stale-writes",
        violations,
        format!(
            "{stale} writes of former holders passed, the latest {longest:.3} s after its Lease had moved"
        ),
    )
}

/// How many writes of former holders the fence refused. It refuses the rightful one too, while the API server does not know
/// of it yet: those do not count.
pub(super) fn fenced(history: &History) -> u64 {
    let shards = history.shards();
    let stale = |write: &&Write| {
        let Some(stamp) = write.stamp.as_ref().filter(|_| write.fenced) else {
            return false;
        };
        let moved =
            |lease: &&LeaseWrite| lease.epoch > stamp.epoch && lease.completed <= write.received;
        let leases = shards.get(stamp.lease.as_str());
        leases.is_some_and(|leases| leases.iter().any(moved))
    };
    history.writes.iter().filter(stale).count() as u64
}

/// The first write of the Lease, before the store's revision `version`, that raised its epoch above `epoch`.
fn first_above<'a>(leases: &[&'a LeaseWrite], epoch: i64, version: u64) -> Option<&'a LeaseWrite> {
    let before =
        |lease: &&&LeaseWrite| lease.version.is_some_and(|at| at < version) && lease.epoch > epoch;
    leases.iter().find(before).copied()
}

/// A replica whose renewals have failed for the whole lifetime of its Lease sends nothing more.
///
/// It is told from when requests arrive, so it says nothing where a fault makes requests late.
pub(super) fn right_had_not_lapsed(evidence: &Evidence, history: &History) -> Verdict {
    const RULE: &str = "right-had-not-lapsed";
    if evidence.faults.iter().any(|fault| fault.delays_requests) {
        return Verdict::of(
            RULE,
            Vec::new(),
            "not looked at: requests were held back on their way".into(),
        );
    }
    let renewals = history.renewals();
    let lifetime = micros(evidence.scenario.takeover_seconds() - 1.0);
    let mut late: BTreeMap<(&str, Micros), Vec<&Write>> = BTreeMap::new();
    for write in &history.writes {
        let times = renewals
            .get(write.pod.as_str())
            .map_or(&[][..], Vec::as_slice);
        let after = times.partition_point(|(at, _)| *at <= write.received);
        let last = after
            .checked_sub(1)
            .and_then(|index| times.get(index))
            .map_or(0, |(at, _)| *at);
        if write.received - last > lifetime {
            late.entry((&write.pod, last)).or_default().push(write);
        }
    }
    let (went_on, were_on_their_way): (Vec<_>, Vec<_>) =
        late.iter().partition(|((_, last), writes)| {
            let too_late =
                |write: &&&Write| write.received - last > lifetime + ON_THE_WAY_MICROS_MAX;
            writes.len() > IN_FLIGHT_MAX || writes.iter().filter(too_late).count() > STRAGGLERS_MAX
        });
    let on_their_way: usize = were_on_their_way
        .iter()
        .map(|(_, writes)| writes.len())
        .sum();
    let violations = went_on.iter().map(|((pod, last), writes)| {
        let (first, end) = (
            writes.iter().map(|w| w.received).min(),
            writes.iter().map(|w| w.received).max(),
        );
        format!(
            "{pod} sent {} writes, {:.1} to {:.1} s after its last renewal",
            writes.len(),
            seconds(first.unwrap_or(*last) - last),
            seconds(end.unwrap_or(*last) - last)
        )
    });
    Verdict::of(
        RULE,
        violations.collect(),
        format!("{on_their_way} writes had been on their way when their sender was stopped"),
    )
}
