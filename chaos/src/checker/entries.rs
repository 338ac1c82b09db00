//! The history of the shard table, and the rules about it: it only moves forward, an entry follows its Lease, a write
//! follows both, and no replica writes under a deleted table.

use std::collections::{BTreeMap, BTreeSet};

use testbed::table::Entry;

use super::Verdict;
use super::history::{History, LeaseWrite, Operation, TableWrite, Write};
use crate::evidence::{Evidence, Micros, seconds};

/// An epoch stays below this, and one write of an entry raises it by at most `RISE_MAX`.
const EPOCH_END: i64 = (1 << 31) - RISE_MAX;
const RISE_MAX: i64 = 1 << 20;
/// The log dates an answer when it was written in full, and a client may have read it a moment before that.
const ANSWER_MICROS_MAX: Micros = 100_000;
/// How long after the end of its table a holder may continue.
const STOPS_MICROS_MAX: Micros = 1_000_000;

/// One shard's entry for a while.
#[derive(Clone, Debug)]
pub(super) struct Term {
    pub(super) table: String,
    pub(super) entry: Entry,
    /// The replica that set it; none: another client, or the log does not contain it.
    by: Option<String>,
    /// Whether the number of shards changed with it.
    resized: bool,
    /// Whether the log has the write that set it, or only shows later that it was set.
    logged: bool,
    /// When the request that set it arrived, at the earliest.
    pub(super) received: Micros,
    /// When that was answered.
    pub(super) from: Micros,
    /// When another entry took its place, or the table was deleted.
    pub(super) to: Option<Micros>,
}

/// The life of one table.
#[derive(Clone, Debug)]
struct Life {
    uid: String,
    to: Option<Micros>,
}

/// All that the log and the final state contain about the shard table.
#[derive(Debug, Default)]
pub(super) struct Entries {
    /// By the name of the shard's Lease.
    shards: BTreeMap<String, Vec<Term>>,
    lives: Vec<Life>,
    /// Entries that were removed from a table that stayed.
    removed: Vec<String>,
}

impl Entries {
    pub(super) fn new(evidence: &Evidence, history: &History) -> Self {
        let mut entries = Self::default();
        let mut state = State::default();
        for write in &history.tables {
            if write.deleted {
                entries.end(&mut state, write.completed);
                continue;
            }
            let new = !write.uid.is_empty() && write.uid != state.uid;
            if new {
                entries.end(&mut state, write.completed);
                state.uid.clone_from(&write.uid);
                entries.lives.push(Life {
                    uid: write.uid.clone(),
                    to: None,
                });
            }
            let after = match &write.after {
                Some(table) => table.entries.clone(),
                None => {
                    let mut entries = state.entries.clone();
                    entries.extend(write.set.clone());
                    entries
                }
            };
            entries.change(history, &mut state, after, Some(write));
            state.known = write.completed;
        }
        let last = evidence.last.table.as_ref();
        if let Some(table) = last.filter(|table| table.uid == state.uid) {
            entries.change(history, &mut state, table.entries.clone(), None);
        }
        entries
    }

    /// The table was deleted.
    fn end(&mut self, state: &mut State, at: Micros) {
        for terms in self.shards.values_mut() {
            if let Some(last) = terms.last_mut() {
                last.to.get_or_insert(at);
            }
        }
        if let Some(life) = self.lives.last_mut() {
            life.to.get_or_insert(at);
        }
        *state = State::default();
    }

    fn change(
        &mut self,
        history: &History,
        state: &mut State,
        after: BTreeMap<String, Entry>,
        write: Option<&TableWrite>,
    ) {
        let shards = write
            .and_then(|write| write.after.as_ref())
            .map(|table| table.shards);
        let resized = shards.is_some_and(|shards| state.shards.is_some_and(|was| was != shards));
        state.shards = shards.or(state.shards);
        let gone = state.entries.keys().filter(|key| !after.contains_key(*key));
        if !resized {
            self.removed
                .extend(gone.map(|key| format!("the entry {key} was removed")));
        }
        for (shard, entry) in &after {
            if state.entries.get(shard) == Some(entry) {
                continue;
            }
            let sets = |write: &&TableWrite| write.set.is_empty() || write.set.contains_key(shard);
            let (received, from) = match write.filter(sets) {
                Some(write) => (write.received, write.completed),
                None => {
                    let at = when_indeterminate(history, shard, entry);
                    let at = at.map_or(state.known, |at| at.max(state.known));
                    (at, at)
                }
            };
            let name = history.operator.shard_lease(shard);
            let terms = self.shards.entry(name).or_default();
            if let Some(last) = terms.last_mut() {
                last.to.get_or_insert(from);
            }
            let write = write.filter(sets);
            terms.push(Term {
                table: state.uid.clone(),
                entry: entry.clone(),
                by: write.and_then(|write| write.pod.clone()),
                resized,
                logged: write.is_some(),
                received,
                from,
                to: None,
            });
        }
        state.entries = after;
    }

    /// The terms of one shard, by the name of its Lease.
    pub(super) fn of(&self, lease: &str) -> &[Term] {
        self.shards.get(lease).map_or(&[], Vec::as_slice)
    }

    /// Whether the entry of this shard names this holder and epoch at a moment.
    pub(super) fn names(&self, lease: &LeaseWrite, at: Micros) -> bool {
        self.of(&lease.name).iter().any(|term| {
            term.from <= at && term.to.is_none_or(|to| at < to) && is_of(&term.entry, lease)
        })
    }

    /// Whether the table ever had an entry as this Lease.
    pub(super) fn ever_named(&self, lease: &LeaseWrite) -> bool {
        self.of(&lease.name)
            .iter()
            .any(|term| is_of(&term.entry, lease))
    }

    /// The moments at which the entry of a shard changed.
    pub(super) fn moments(&self, lease: &str) -> impl Iterator<Item = Micros> {
        self.of(lease)
            .iter()
            .flat_map(|term| [Some(term.from), term.to])
            .flatten()
    }
}

/// The position in the log.
#[derive(Default)]
struct State {
    uid: String,
    shards: Option<u64>,
    entries: BTreeMap<String, Entry>,
    /// When the last write was answered.
    known: Micros,
}

fn is_of(entry: &Entry, lease: &LeaseWrite) -> bool {
    (entry.epoch, &entry.holder, &entry.incarnation)
        == (lease.epoch, &lease.holder, &lease.incarnation)
}

/// From when on there may have been an entry that no answered write set: from the request that was not answered, or, if
/// the log lacks that as well, from when the Lease was so.
fn when_indeterminate(history: &History, shard: &str, entry: &Entry) -> Option<Micros> {
    let indeterminate = history.indeterminate_tables.iter();
    let asked = indeterminate
        .filter(|write| write.set.get(shard) == Some(entry))
        .map(|write| write.received);
    let name = history.operator.shard_lease(shard);
    let leases = history.leases.iter().chain(&history.indeterminate_leases);
    let leased = leases
        .filter(|lease| lease.name == name && is_of(entry, lease))
        .map(|lease| lease.completed);
    asked.min().or_else(|| leased.min())
}

fn hides_requests(evidence: &Evidence) -> bool {
    evidence.faults.iter().any(|fault| fault.hides_requests)
}

/// For every writer: the epoch of an entry never falls, one epoch has one holder and one incarnation, no entry is
/// removed, and none rises by more than it may.
pub(super) fn table_moves_forward(entries: &Entries) -> Verdict {
    let mut violations = entries.removed.clone();
    let mut count = 0;
    for (name, terms) in &entries.shards {
        let mut holders: BTreeMap<(&str, i64), BTreeSet<(&str, &str)>> = BTreeMap::new();
        for term in terms {
            count += 1;
            let Entry {
                epoch,
                holder,
                incarnation,
            } = &term.entry;
            let known = holders.entry((&term.table, *epoch)).or_default();
            known.insert((holder, incarnation));
            if *epoch >= EPOCH_END {
                violations.push(format!("{name}: the entry has epoch {epoch}"));
            }
        }
        for pair in terms.windows(2) {
            let [before, after] = pair else { continue };
            let (old, new) = (before.entry.epoch, after.entry.epoch);
            if before.table != after.table {
                continue;
            }
            if new < old {
                violations.push(format!("{name}: the entry fell from {old} to {new}"));
            }
            if new - old > RISE_MAX && !after.resized {
                violations.push(format!("{name}: the entry rose from {old} to {new}"));
            }
        }
        let twice = holders.iter().filter(|(_, known)| known.len() > 1);
        violations.extend(twice.map(|((_, epoch), known)| {
            let names: Vec<String> = known
                .iter()
                .map(|(holder, incarnation)| format!("{holder} ({incarnation})"))
                .collect();
            format!("{name}, epoch {epoch}: entered for {}", names.join(" and "))
        }));
    }
    Verdict::of(
        "table-moves-forward",
        violations,
        format!("{count} entries in {} tables", entries.lives.len()),
    )
}

/// An entry is written after the Lease has the same epoch, holder and incarnation, by the holder or by the one before
/// it.
pub(super) fn lease_before_entry(
    evidence: &Evidence,
    history: &History,
    entries: &Entries,
) -> Verdict {
    let mut violations = Vec::new();
    let mut checked = 0;
    for (name, terms) in &entries.shards {
        let mut before: Option<&Term> = None;
        for term in terms {
            let former = before.replace(term);
            let Some(pod) = &term.by else { continue };
            let Entry { epoch, holder, .. } = &term.entry;
            if holder.is_empty() {
                continue;
            }
            checked += 1;
            let hands_over = former.is_some_and(|former| former.entry.holder == *pod);
            if holder != pod && !hands_over {
                violations.push(format!("{name}: {pod} entered {holder}, epoch {epoch}"));
            }
            let lease = |lease: &LeaseWrite| lease.name == *name && is_of(&term.entry, lease);
            if !hides_requests(evidence) && !was_there(history, lease, term.received) {
                violations.push(format!(
                    "{name}: {pod} entered {holder}, epoch {epoch}, before the Lease did"
                ));
            }
        }
    }
    Verdict::of(
        "lease-before-entry",
        violations,
        format!("{checked} entries by replicas"),
    )
}

/// Whether a write of a Lease of which `is` is true was answered by then, or may have been carried out.
fn was_there(history: &History, is: impl Fn(&LeaseWrite) -> bool, by: Micros) -> bool {
    let known = history.leases.iter();
    let answered = |lease: &LeaseWrite| lease.completed <= by + ANSWER_MICROS_MAX;
    let indeterminate = history.indeterminate_leases.iter();
    known
        .filter(|lease| lease.received <= by && answered(lease))
        .chain(indeterminate.filter(|lease| lease.received <= by))
        .any(|lease| !lease.deleted && is(lease))
}

/// Each accepted write carries a token, and the Lease and the entry that it names existed before it was sent. No
/// replica sends anything under a deleted table.
pub(super) fn token_in_force(evidence: &Evidence, history: &History, entries: &Entries) -> Verdict {
    let mut violations = Vec::new();
    let mut checked = 0;
    let delayed = evidence.faults.iter().any(|fault| fault.delays_requests);
    for write in &history.writes {
        let Some(token) = &write.token else {
            if write.accepted() && write.operation != Operation::Deleted && !is_pod(write) {
                violations.push(format!(
                    "{} wrote {} without a token",
                    write.pod, write.object
                ));
            }
            continue;
        };
        let lives = entries.lives.iter();
        let ended = lives
            .filter(|life| life.uid == token.table)
            .find_map(|life| life.to);
        if let Some(late) = ended.map(|to| write.received - to).filter(|_| !delayed)
            && late > STOPS_MICROS_MAX
        {
            violations.push(format!(
                "{} sent {} under a table that had been deleted {:.1} s before",
                write.pod,
                write.object,
                seconds(late)
            ));
        }
        if !write.accepted() {
            continue;
        }
        checked += 1;
        if hides_requests(evidence) {
            continue;
        }
        let name = history.operator.shard_lease(&token.shard);
        let lease = |lease: &LeaseWrite| {
            lease.name == name && lease.epoch == token.epoch && lease.holder == token.holder
        };
        if !was_there(history, lease, write.received) {
            violations.push(format!(
                "{} wrote {} with {token}, which does not match the Lease",
                write.pod, write.object
            ));
        }
        let entry = |entry: &Entry| entry.epoch == token.epoch && entry.holder == token.holder;
        let by = write.received;
        let known = entries.of(&name).iter().any(|term| {
            term.table == token.table
                && entry(&term.entry)
                && term.received <= by
                && (!term.logged || term.from <= by + ANSWER_MICROS_MAX)
        });
        let perhaps = history
            .indeterminate_tables
            .iter()
            .any(|write| write.received <= by && write.set.get(&token.shard).is_some_and(entry));
        if !known && !perhaps {
            violations.push(format!(
                "{} wrote {} with {token}, which does not match the table",
                write.pod, write.object
            ));
        }
    }
    Verdict::of(
        "token-in-force",
        violations,
        format!("{checked} accepted writes"),
    )
}

/// The StatefulSet's controller owns them; the operator only labels them.
fn is_pod(write: &Write) -> bool {
    write.object.starts_with("pods/")
}

/// Forged fencing tokens change nothing: while users write them, no Lease and no entry gets another holder or epoch,
/// and none ever reaches the epochs that they wrote.
pub(super) fn forgeries_ignored(
    evidence: &Evidence,
    history: &History,
    entries: &Entries,
) -> Verdict {
    let mut violations = Vec::new();
    let forgeries: Vec<_> = evidence
        .faults
        .iter()
        .filter_map(|fault| Some((fault, fault.forged_epoch?)))
        .collect();
    for (fault, forged) in &forgeries {
        let others = evidence
            .faults
            .iter()
            .filter(|other| other.forged_epoch.is_none());
        let alone = !others
            .into_iter()
            .any(|other| other.from < fault.to && fault.from < other.to);
        let during = |at: Micros| alone && (fault.from..fault.to).contains(&at);
        for (name, leases) in history.shards() {
            let mut before: Option<&LeaseWrite> = None;
            for lease in leases {
                let former = before.replace(lease);
                let changed = former.is_none_or(|former| {
                    (former.epoch, &former.holder) != (lease.epoch, &lease.holder)
                });
                if lease.epoch >= *forged {
                    violations.push(format!("{name} came to epoch {}", lease.epoch));
                } else if changed && during(lease.received) {
                    violations.push(format!(
                        "{name} went to {}, epoch {}, while tokens were forged",
                        lease.holder, lease.epoch
                    ));
                }
            }
        }
        for (name, terms) in &entries.shards {
            for term in terms {
                let Entry { epoch, holder, .. } = &term.entry;
                if epoch >= forged {
                    violations.push(format!("{name}: the entry came to epoch {epoch}"));
                } else if during(term.received) {
                    violations.push(format!(
                        "{name}: the entry went to {holder}, epoch {epoch}, while tokens were forged"
                    ));
                }
            }
        }
    }
    Verdict::of(
        "forgeries-ignored",
        violations,
        match forgeries.len() {
            0 => "no token was forged".to_owned(),
            count => format!("tokens were forged {count} times"),
        },
    )
}
