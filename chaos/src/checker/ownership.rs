//! Rules about Leases and holders: compare-and-swap, epochs that rise, and no shard without a holder that
//! acts for longer than promised.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Verdict;
use super::entries::Entries;
use super::history::{History, LeaseWrite};
use super::indeterminate::Indeterminate;
use crate::evidence::{Evidence, Injected, Micros, micros, seconds};

/// Around a planned stop a shard may have no holder for this long.
const UNOWNED_MICROS_MAX: Micros = 100_000;
/// A holder's entry in the shard table follows its Lease within this.
const ENTERED_MICROS_MAX: Micros = 1_000_000;
/// How far above all earlier epochs a replica may begin, as for entries of the shard table.
const EPOCH_RISE_MAX: i64 = 1 << 20;

/// A holder that a shard's Lease named, and for how long.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Span {
    /// From.
    pub from: Micros,
    /// To.
    pub to: Micros,
    /// The holder; empty: none.
    pub holder: String,
    /// Whether that holder could act: its process ran, was reachable, had not begun a new incarnation, and the shard
    /// table named it as well.
    pub acts: bool,
    /// Whether nothing but the entry in the shard table was missing.
    #[serde(default)]
    pub awaits_entry: bool,
    /// The epoch.
    pub epoch: i64,
}

/// Each update of a member or shard Lease by the operator named the uid and the version that it replaced.
pub(super) fn leases_compared(history: &History) -> Verdict {
    let own = history
        .leases
        .iter()
        .filter(|lease| (lease.is_shard() || lease.is_member()) && lease.pod.is_some());
    let updates: Vec<&LeaseWrite> = own.filter(|lease| !lease.created).collect();
    let blind = updates.iter().filter(|lease| !lease.compared);
    let violations = blind.map(|lease| {
        format!(
            "{} wrote {} without uid and version",
            lease.pod.as_deref().unwrap_or_default(),
            lease.name
        )
    });
    Verdict::of(
        "leases-compared",
        violations.collect(),
        format!("{} updates of Leases", updates.len()),
    )
}

/// Under the operator's own writes the epoch of a shard never falls, a new holder or incarnation has a higher one,
/// and none is far above what Lease and table had before.
pub(super) fn epochs_rise(history: &History, entries: &Entries) -> Verdict {
    let mut violations = Vec::new();
    let mut moves = 0;
    for (name, leases) in history.shards() {
        let mut terms: BTreeMap<i64, BTreeSet<(&str, &str)>> = BTreeMap::new();
        let mut highest = 0;
        for lease in leases.iter().filter(|lease| !lease.deleted) {
            if lease.pod.is_some() && lease.epoch < highest {
                violations.push(format!(
                    "{name}: the epoch fell from {highest} to {}",
                    lease.epoch
                ));
            }
            let entered = entries.of(name).iter();
            let entered = entered
                .filter(|term| term.received <= lease.received)
                .map(|term| term.entry.epoch);
            let reason = entered.fold(highest, i64::max);
            if lease.pod.is_some() && lease.epoch - reason > EPOCH_RISE_MAX {
                violations.push(format!(
                    "{name}: the epoch rose from {reason} to {}",
                    lease.epoch
                ));
            }
            highest = highest.max(lease.epoch);
            if !lease.holder.is_empty() && lease.pod.is_some() {
                let term = terms.entry(lease.epoch).or_default();
                term.insert((&lease.holder, &lease.incarnation));
            }
        }
        moves += terms.len();
        for (epoch, holders) in terms.iter().filter(|(_, holders)| holders.len() > 1) {
            let names: Vec<&str> = holders.iter().map(|(holder, _)| *holder).collect();
            violations.push(format!(
                "{name}, epoch {epoch}: held by {}",
                names.join(" and ")
            ));
        }
    }
    Verdict::of("epochs-rise", violations, format!("{moves} terms"))
}

/// Holders of shards over time, and whether they could act.
pub(super) struct Ownership<'a> {
    evidence: &'a Evidence,
    /// When the clock of the promise starts, for each fault.
    promised_from: Vec<Option<Micros>>,
    shards: Vec<(String, Vec<Span>)>,
}

/// When an incarnation began, and when the next one of that replica did.
struct Incarnations<'a> {
    evidence: &'a Evidence,
    of_pod: BTreeMap<&'a str, Vec<(Micros, &'a str)>>,
}

impl<'a> Incarnations<'a> {
    fn new(evidence: &'a Evidence, history: &'a History) -> Self {
        let mut of_pod: BTreeMap<&str, Vec<(Micros, &str)>> = BTreeMap::new();
        for (pod, renewals) in history.renewals() {
            let mut begun: Vec<(Micros, &str)> = Vec::new();
            for (at, incarnation) in renewals {
                if !begun.iter().any(|(_, known)| *known == incarnation) {
                    begun.push((at, incarnation));
                }
            }
            of_pod.insert(pod, begun);
        }
        Self { evidence, of_pod }
    }

    /// The moments between `from` and `to` at which it may change whether this incarnation acts.
    fn moments(&self, pod: &str, from: Micros, to: Micros) -> Vec<Micros> {
        let lives = self.evidence.lives.iter().filter(|life| life.pod == pod);
        let mut moments: Vec<Micros> = lives
            .flat_map(|life| {
                let ends = [Some(life.from), life.to].into_iter().flatten();
                ends.chain(life.absent.iter().flat_map(|(from, to)| [*from, *to]))
                    .collect::<Vec<_>>()
            })
            .collect();
        moments.extend(
            self.of_pod
                .get(pod)
                .into_iter()
                .flatten()
                .map(|(at, _)| *at),
        );
        moments.extend([from, to]);
        moments.retain(|at| (from..=to).contains(at));
        moments.sort_unstable();
        moments.dedup();
        moments
    }

    fn acts(&self, pod: &str, incarnation: &str, at: Micros) -> bool {
        let Some(all) = self.of_pod.get(pod) else {
            return false;
        };
        let Some(index) = all.iter().position(|(_, known)| *known == incarnation) else {
            return false;
        };
        let begun = all.get(index).map_or(0, |(at, _)| *at);
        let superseded = all.get(index + 1).is_some_and(|(next, _)| *next <= at);
        // A successor is named before its first renewal is known only if the log lacks it.
        let born = self.evidence.life_at(pod, begun);
        !superseded
            && born.is_some_and(|life| {
                self.evidence
                    .lives
                    .get(life)
                    .is_some_and(|life| life.acts_at(at))
            })
    }
}

impl<'a> Ownership<'a> {
    pub(super) fn new(evidence: &'a Evidence, history: &'a History, entries: &Entries) -> Self {
        let incarnations = Incarnations::new(evidence, history);
        let end = evidence
            .quiet
            .map_or(evidence.load_ended, |(_, to)| to)
            .max(evidence.begun);
        let shards = history.shards().into_iter().map(|(name, leases)| {
            let mut spans = Vec::new();
            let indeterminate = Indeterminate {
                evidence,
                history,
                entries,
                name,
                acts: &|pod, incarnation, at| incarnations.acts(pod, incarnation, at),
            };
            let leases = indeterminate.with(&leases);
            for (index, lease) in leases.iter().enumerate() {
                let to = leases
                    .get(index + 1)
                    .map_or(end, |next| next.completed)
                    .min(end);
                spans.extend(Self::split(&incarnations, entries, lease, to));
            }
            (name.to_owned(), merge(spans))
        });
        Self {
            evidence,
            promised_from: promised_from(evidence, history),
            shards: shards.collect(),
        }
    }

    /// The time of one Lease, split where its holder stops or begins to act.
    fn split(
        incarnations: &Incarnations<'_>,
        entries: &Entries,
        lease: &LeaseWrite,
        to: Micros,
    ) -> Vec<Span> {
        let from = lease.completed;
        let mut moments = incarnations.moments(&lease.holder, from, to);
        moments.extend(
            entries
                .moments(&lease.name)
                .filter(|at| (from..to).contains(at)),
        );
        moments.sort_unstable();
        let pair = |pair: &[Micros]| match pair {
            [from, to] if from < to => Some((*from, *to)),
            _ => None,
        };
        let parts = moments.windows(2).filter_map(pair);
        parts
            .map(|(from, to)| {
                let middle = from + (to - from) / 2;
                let able = !lease.deleted
                    && !lease.holder.is_empty()
                    && incarnations.acts(&lease.holder, &lease.incarnation, middle);
                let entered = entries.names(lease, middle);
                Span {
                    from,
                    to,
                    holder: lease.holder.clone(),
                    acts: able && entered,
                    awaits_entry: able && !entered,
                    epoch: lease.epoch,
                }
            })
            .collect()
    }

    pub(super) fn spans(self) -> Vec<(String, Vec<Span>)> {
        self.shards
    }

    /// The times after the beginning in which a shard was `so`.
    fn times(&self, so: impl Fn(&Span) -> bool) -> Vec<(&str, Micros, Micros)> {
        let mut gaps: Vec<(&str, Micros, Micros)> = Vec::new();
        for (name, spans) in &self.shards {
            for span in spans
                .iter()
                .filter(|span| so(span) && span.to > self.evidence.begun)
            {
                let from = span.from.max(self.evidence.begun);
                match gaps.last_mut() {
                    Some(last) if last.0 == name && last.2 == from => last.2 = span.to,
                    _ => gaps.push((name, from, span.to)),
                }
            }
        }
        gaps
    }

    /// No shard is without an acting holder, but from a fault until the Lease's lifetime and 1 s after it; and a holder
    /// that could act is soon in the shard table.
    pub(super) fn held(&self) -> Verdict {
        let takeover = micros(self.evidence.scenario.takeover_seconds());
        let excused: Vec<(Micros, Micros)> = self
            .evidence
            .faults
            .iter()
            .zip(&self.promised_from)
            .filter_map(|(fault, from)| Some((fault.from, (*from)? + takeover)))
            .collect();
        let gaps = self.times(|span| !span.acts && !span.awaits_entry);
        let waits = self.times(|span| span.awaits_entry);
        let mut violations = Vec::new();
        for (times, most, what) in [
            (&gaps, UNOWNED_MICROS_MAX, "had no acting holder"),
            (
                &waits,
                ENTERED_MICROS_MAX,
                "had a holder that the table did not name",
            ),
        ] {
            for (name, from, to) in times {
                let unexcused = subtract((*from, *to), &excused).into_iter();
                for (from, to) in unexcused.filter(|(from, to)| to - from > most) {
                    violations.push(format!(
                        "{name} {what} for {:.2} s, from {:.1} s on",
                        seconds(to - from),
                        seconds(from - self.evidence.begun)
                    ));
                }
            }
        }
        if self.shards.is_empty() {
            violations.push("there is no shard Lease in the audit log".into());
        }
        let longest = |times: &[(&str, Micros, Micros)]| {
            let lengths = times.iter().map(|(_, from, to)| to - from);
            seconds(lengths.max().unwrap_or(0))
        };
        Verdict::of(
            "held",
            violations,
            format!(
                "{} times a shard had no acting holder, at most for {:.2} s; {} times one waited for its entry, at most {:.2} s",
                gaps.len(),
                longest(&gaps),
                waits.len(),
                longest(&waits)
            ),
        )
    }

    /// From each crash until each shard of the replicas that it took out had an acting holder again.
    pub(super) fn takeovers(&self) -> Vec<Vec<f64>> {
        let mut crashes = Vec::new();
        for fault in self.evidence.faults.iter().filter(|fault| fault.takes_out) {
            let mut times = Vec::new();
            for (_, spans) in &self.shards {
                let holder = spans
                    .iter()
                    .find(|span| (span.from..span.to).contains(&(fault.from - 1)));
                if !holder.is_some_and(|span| span.acts && fault.pods.contains(&span.holder)) {
                    continue;
                }
                let again = spans
                    .iter()
                    .find(|span| span.acts && span.from > fault.from);
                if let Some(again) = again {
                    times.push(seconds(again.from - fault.from));
                }
            }
            crashes.push(times);
        }
        crashes
    }

    /// For each shard that moved during a planned stop, without other faults: how long it had no holder
    /// that acts.
    pub(super) fn planned_unowned_seconds(&self) -> Vec<f64> {
        let (planned, others): (Vec<&Injected>, Vec<&Injected>) = self
            .evidence
            .faults
            .iter()
            .partition(|fault| matches!(&*fault.kind, "roll" | "scale"));
        let alone = |fault: &&&Injected| {
            let meanwhile = |other: &&Injected| other.from < fault.to && fault.from < other.to;
            !others.iter().any(meanwhile)
        };
        let mut times = Vec::new();
        for fault in planned.iter().filter(alone) {
            let within = |at: Micros| (fault.from..fault.to).contains(&at);
            for (_, spans) in &self.shards {
                for (index, span) in spans.iter().enumerate().skip(1) {
                    let moved = spans
                        .get(index - 1)
                        .is_some_and(|last| last.acts && last.holder != span.holder);
                    if within(span.from) && moved {
                        let acting = spans.iter().skip(index).find(|span| span.acts);
                        let again = acting.map_or(span.to, |acting| acting.from);
                        times.push(seconds(again - span.from));
                    }
                }
            }
        }
        times
    }
}

/// From when on the promise counts, for each fault: where those that it takes out had one more heartbeat accepted, as
/// when only the responses are lost, from that on. A heartbeat that is due is sent after a third of the lifetime at the
/// latest.
pub(super) fn promised_from(evidence: &Evidence, history: &History) -> Vec<Option<Micros>> {
    let renewals = history.renewals();
    let interval = micros((evidence.scenario.takeover_seconds() - 1.0) / 3.0);
    let from = |fault: &Injected| {
        let recover_from = fault.recover_from?;
        if !fault.takes_out {
            return Some(recover_from);
        }
        let of_those = fault.pods.iter().filter_map(|pod| renewals.get(&**pod));
        let one_more = of_those
            .flatten()
            .map(|(at, _)| *at)
            .filter(|at| (fault.from..=fault.from + interval).contains(at));
        Some(one_more.max().unwrap_or(recover_from).max(recover_from))
    };
    evidence.faults.iter().map(from).collect()
}

/// Merges neighbours that are equal.
fn merge(spans: Vec<Span>) -> Vec<Span> {
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(last)
                if last.to == span.from
                    && (last.acts, last.awaits_entry) == (span.acts, span.awaits_entry)
                    && last.holder == span.holder
                    && last.epoch == span.epoch =>
            {
                last.to = span.to;
            }
            _ => merged.push(span),
        }
    }
    merged
}

/// What is left of a time without the excused ones.
fn subtract(time: (Micros, Micros), excused: &[(Micros, Micros)]) -> Vec<(Micros, Micros)> {
    let mut left = vec![time];
    for (from, to) in excused {
        let cut = left
            .into_iter()
            .flat_map(|(a, b)| [(a, b.min(*from)), (a.max(*to), b)]);
        left = cut.filter(|(a, b)| a < b).collect();
    }
    left
}
