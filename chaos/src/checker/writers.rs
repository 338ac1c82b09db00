//! Rules about writers: one writer for each shard and epoch, never an older epoch after a newer one, no writer whose
//! Lease has expired.

use std::collections::{BTreeMap, BTreeSet};

use testbed::fencing::Token;

use super::entries::Entries;
use super::history::{History, LeaseWrite, Register, Write};
use super::{Stats, Verdict};
use crate::evidence::{Evidence, Micros, micros, seconds};

/// How long after a shard's Lease moved a request of its former holder may arrive and pass, on an object that the new
/// holder has not written: the lag of the API server's cache, when it is healthy.
const STALE_MICROS_MAX: Micros = 1_000_000;
/// Writes that may have been in flight when a replica was frozen: one for each worker.
const IN_FLIGHT_MAX: usize = 10;
/// No write is in flight for longer than this, except a few from a process without CPU at that moment.
const ON_THE_WAY_MICROS_MAX: Micros = 2_000_000;
const STRAGGLERS_MAX: usize = 2;

/// In each epoch of a shard under one table, one incarnation of one replica writes: the one that token and entry name.
/// Writes that may have been executed without a response count as well: no replica may even send them.
pub(super) fn one_writer(evidence: &Evidence, history: &History, entries: &Entries) -> Verdict {
    let mut writers: BTreeMap<(&str, &str, i64), BTreeSet<&str>> = BTreeMap::new();
    let mut violations = Vec::new();
    let mut checked = 0;
    let delayed = evidence.faults.iter().any(|fault| fault.delays_requests);
    let lives = Lives::new(history);
    let perhaps = |write: &&Write| write.accepted() || write.indeterminate();
    for write in history.writes.iter().filter(perhaps) {
        let Some(token) = &write.token else {
            continue;
        };
        checked += 1;
        writers
            .entry((&token.table, &token.shard, token.epoch))
            .or_default()
            .insert(&write.pod);
        if token.holder != write.pod {
            violations.push(format!(
                "{} wrote {} with the token of {}",
                write.pod, write.object, token.holder
            ));
        }
        let entered = entries
            .of(&history.operator.shard_lease(&token.shard))
            .iter()
            .find(|term| {
                let entry = &term.entry;
                (&term.table, entry.epoch, &entry.holder)
                    == (&token.table, token.epoch, &token.holder)
            });
        let next = entered.and_then(|term| lives.next(&write.pod, &term.entry.incarnation));
        if let Some(next) = next.filter(|_| !delayed)
            && write.received > next + ON_THE_WAY_MICROS_MAX
        {
            violations.push(format!(
                "{} wrote {} in an epoch of its former incarnation, {:.1} s after the present one began",
                write.pod,
                write.object,
                seconds(write.received - next)
            ));
        }
    }
    for ((_, shard, epoch), pods) in &writers {
        if pods.len() > 1 {
            let pods: Vec<&str> = pods.iter().copied().collect();
            violations.push(format!(
                "shard {shard}, epoch {epoch}: written by {}",
                pods.join(" and ")
            ));
        }
    }
    let epochs = writers.len();
    Verdict::of(
        "one-writer",
        violations,
        format!("{checked} writes with tokens in {epochs} epochs of shards"),
    )
}

/// When each incarnation of each replica began.
struct Lives<'a> {
    begun: BTreeMap<&'a str, Vec<(Micros, &'a str)>>,
}

impl<'a> Lives<'a> {
    fn new(history: &'a History) -> Self {
        let renewals = history.renewals().into_iter();
        let begun = renewals.map(|(pod, times)| {
            let mut known: Vec<(Micros, &str)> = Vec::new();
            for (at, incarnation) in times {
                if !known.iter().any(|(_, of)| *of == incarnation) {
                    known.push((at, incarnation));
                }
            }
            (pod, known)
        });
        Self {
            begun: begun.collect(),
        }
    }

    /// When the incarnation after this one began.
    fn next(&self, pod: &str, incarnation: &str) -> Option<Micros> {
        let all = self.begun.get(pod)?;
        let index = all.iter().position(|(_, known)| *known == incarnation)?;
        all.get(index + 1).map(|(at, _)| *at)
    }
}

/// What a register of an object holds.
struct Held<'a> {
    token: Option<&'a Token>,
    cluster_uid: Option<&'a str>,
}

impl Held<'_> {
    /// The token that it holds counts for this object, and `after` does so too: then epochs may not fall. A token
    /// counts if it names the uid of the object's own DatabaseCluster; those of two tables are not compared.
    fn is_above(&self, after: &Token) -> Option<i64> {
        let before = self.token?;
        let own = |token: &Token| self.cluster_uid.is_none_or(|uid| uid == token.cluster);
        let both_count = own(before) && own(after) && before.cluster == after.cluster;
        let comparable = both_count && before.table == after.table;
        (comparable && after.epoch < before.epoch).then_some(before.epoch)
    }
}

/// In one register of one object, no accepted write has a lower epoch than the one before, in store order; and
/// none is lower in the final state, whether or not the log contains its writer. A user's edit starts a new sequence.
pub(super) fn no_older_after_newer(evidence: &Evidence, history: &History) -> Verdict {
    let mut registers: BTreeMap<(&str, &str, Register), Held<'_>> = BTreeMap::new();
    let mut violations = Vec::new();
    for write in &history.tokens {
        let held = registers
            .entry((&write.object, &write.uid, write.register))
            .or_insert(Held {
                token: None,
                cluster_uid: None,
            });
        held.cluster_uid = write.cluster_uid.as_deref().or(held.cluster_uid);
        let token = write.token.as_ref();
        let newer = token.and_then(|token| held.is_above(token));
        match (&write.pod, token, newer) {
            (Some(pod), Some(token), Some(newer)) => violations.push(format!(
                "{}: {pod} wrote with epoch {} after one with epoch {newer}",
                write.object, token.epoch
            )),
            _ => held.token = token,
        }
    }
    let objects = registers.len();
    for (object, uid, register, text) in in_the_end(evidence) {
        let (Some(held), Ok(token)) = (
            registers.get(&(object.as_str(), uid, register)),
            text.parse::<Token>(),
        ) else {
            continue;
        };
        if let Some(newer) = held.is_above(&token) {
            violations.push(format!(
                "{object}: it has epoch {} in the end, after one with epoch {newer}",
                token.epoch
            ));
        }
    }
    Verdict::of(
        "no-older-after-newer",
        violations,
        format!("{objects} registers of objects, in the order of the store"),
    )
}

/// Each register of each object, and its token in the end.
fn in_the_end(evidence: &Evidence) -> impl Iterator<Item = (String, &str, Register, &str)> {
    let last = &evidence.last;
    let clusters = last.clusters.iter().flat_map(|(name, cluster)| {
        let registers = [
            (Register::Annotation, cluster.token.as_str()),
            (Register::Status, cluster.status_token.as_str()),
        ];
        registers.map(|(register, token)| {
            let object = format!("databaseclusters/{name}");
            (object, cluster.uid.as_str(), register, token)
        })
    });
    let children = last.children.iter().map(|(name, child)| {
        let uid = child.uid.as_str();
        (
            name.clone(),
            uid,
            Register::Annotation,
            child.token.as_str(),
        )
    });
    clusters.chain(children)
}

/// No write of a former holder passes once the API server has had time to observe the new one. The fence uses the
/// table; where nothing delays requests or watches, the former holder itself uses the Lease.
pub(super) fn no_stale_writes(
    evidence: &Evidence,
    history: &History,
    entries: &Entries,
    stats: &mut Stats,
) -> Verdict {
    let shards = history.shards();
    let knows = !evidence
        .faults
        .iter()
        .any(|fault| fault.delays_requests || fault.kind == "watch");
    let mut violations = Vec::new();
    let mut longest: Micros = 0;
    for write in history.writes.iter().filter(|write| write.accepted()) {
        let (Some(token), Some(version)) = (&write.token, write.version) else {
            continue;
        };
        let name = history.operator.shard_lease(&token.shard);
        let entered = entries
            .of(&name)
            .iter()
            .find(|term| term.table == token.table && term.entry.epoch > token.epoch);
        let by_table =
            entered.map(|term| ("entry", term.from, &term.entry.holder, term.entry.epoch));
        let leases = shards.get(name.as_str()).filter(|_| knows);
        let moved = leases.and_then(|leases| first_above(leases, token.epoch, version));
        let by_lease = moved.map(|lease| ("Lease", lease.completed, &lease.holder, lease.epoch));
        let moves = [by_table, by_lease].into_iter().flatten();
        let first = moves
            .filter(|(_, at, ..)| *at < write.received)
            .min_by_key(|(_, at, ..)| *at);
        let Some((what, at, holder, epoch)) = first else {
            continue;
        };
        stats.stale += 1;
        let late = write.received - at;
        longest = longest.max(late);
        if late > STALE_MICROS_MAX {
            violations.push(format!(
                "{}: {} wrote with epoch {} {:.1} s after the {what} had moved to {holder} with epoch {epoch}",
                write.object,
                write.pod,
                token.epoch,
                seconds(late),
            ));
        }
    }
    let (stale, longest) = (stats.stale, seconds(longest));
    Verdict::of(
        "no-stale-writes",
        violations,
        format!(
            "{stale} writes of former holders passed, the latest {longest:.3} s after its shard had moved"
        ),
    )
}

/// How many writes of former holders the fence refused. It rejects the rightful one too, while the API server does not
/// observe it yet: those do not count.
pub(super) fn fenced(history: &History) -> u64 {
    let shards = history.shards();
    let stale = |write: &&Write| {
        let Some(token) = write.token.as_ref().filter(|_| write.fenced) else {
            return false;
        };
        let moved =
            |lease: &&LeaseWrite| lease.epoch > token.epoch && lease.completed <= write.received;
        let name = history.operator.shard_lease(&token.shard);
        let leases = shards.get(name.as_str());
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
/// It uses the arrival times of requests, so it does not check where a fault delays requests.
pub(super) fn right_had_not_lapsed(evidence: &Evidence, history: &History) -> Verdict {
    const RULE: &str = "right-had-not-lapsed";
    if evidence.faults.iter().any(|fault| fault.delays_requests) {
        return Verdict::of(
            RULE,
            Vec::new(),
            "not checked: requests were held back in transit".into(),
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
