//! Writes of shard Leases without a response: which of them were executed.

use std::collections::BTreeMap;

use super::entries::Entries;
use super::history::{History, LeaseWrite};
use crate::evidence::{Evidence, Micros};

/// Whether a replica could act as an incarnation at a moment.
pub(super) type Acts<'a> = &'a dyn Fn(&str, &str, Micros) -> bool;

/// One shard's Lease, and the evidence for its holders.
pub(super) struct Indeterminate<'a, 'h> {
    pub(super) evidence: &'a Evidence,
    pub(super) history: &'h History,
    pub(super) entries: &'a Entries,
    pub(super) name: &'a str,
    pub(super) acts: Acts<'a>,
}

impl<'h> Indeterminate<'_, 'h> {
    /// Adds to the known writes those that were not answered and yet executed: a later write builds on a version that
    /// no known write created, or, when no write followed, the final Lease is as requested or the table names it.
    pub(super) fn with(&self, known: &[&'h LeaseWrite]) -> Vec<&'h LeaseWrite> {
        let mut gaps: BTreeMap<usize, BTreeMap<Option<u64>, Vec<&'h LeaseWrite>>> = BTreeMap::new();
        let indeterminate = self.history.indeterminate_leases.iter();
        for one in indeterminate.filter(|one| one.name == self.name) {
            if let Some(place) = place(known, one) {
                let gap = gaps.entry(place).or_default();
                gap.entry(one.basis).or_default().push(one);
            }
        }
        let mut all = Vec::new();
        for place in 0..=known.len() {
            if let Some(rivals) = gaps.get(&place) {
                all.extend(self.carried_out(rivals, known.get(place).copied()));
            }
            all.extend(known.get(place).copied());
        }
        all
    }

    /// Of those that name one version, only one can have been executed. From the last version to the first, because
    /// only later writes are known.
    fn carried_out(
        &self,
        rivals: &BTreeMap<Option<u64>, Vec<&'h LeaseWrite>>,
        known_next: Option<&'h LeaseWrite>,
    ) -> Vec<&'h LeaseWrite> {
        let mut next = known_next;
        let mut found = Vec::new();
        for (basis, rivals) in rivals.iter().rev() {
            let happened = match next {
                Some(next) => next.basis.is_some() && next.basis != *basis,
                None => rivals
                    .iter()
                    .any(|one| self.is_last(one) || self.entries.ever_named(one)),
            };
            if !happened {
                continue;
            }
            let possible = rivals.iter().filter(|one| fits(one, next));
            if let Some(winner) = possible.max_by_key(|one| self.likelihood(one, next)) {
                found.push(*winner);
                next = Some(winner);
            }
        }
        found.reverse();
        found
    }

    /// Higher for stronger evidence: the next write of the Lease; an entry in the table, or writes that the fence
    /// admitted; the Lease in the end; and that no shard is taken from a live replica.
    fn likelihood(&self, one: &LeaseWrite, next: Option<&LeaseWrite>) -> u8 {
        let by_next = next.is_some_and(|next| {
            let goes_on = next.epoch == one.epoch && same_holder(next, one);
            let hands_over = next.holder != one.holder && next.pod.as_ref() == Some(&one.holder);
            goes_on || hands_over
        });
        let lives = |at| (self.acts)(&one.holder, &one.incarnation, at);
        if by_next {
            4
        } else if self.entries.ever_named(one) || self.has_written(one) {
            3
        } else if next.is_none() && self.is_last(one) {
            2
        } else {
            u8::from(next.is_some_and(|next| !lives(next.received)))
        }
    }

    fn is_last(&self, one: &LeaseWrite) -> bool {
        let mut last = self.evidence.last.shards.iter();
        last.any(|(name, holder, epoch)| {
            *name == one.name && *holder == one.holder && *epoch == one.epoch
        })
    }

    fn has_written(&self, one: &LeaseWrite) -> bool {
        let mut writes = self.history.writes.iter();
        writes.any(|write| {
            let token = write.token.as_ref();
            write.accepted()
                && write.pod == one.holder
                && token.is_some_and(|token| {
                    token.epoch == one.epoch
                        && self.history.operator.shard_of(&one.name) == Some(token.shard.as_str())
                })
        })
    }
}

/// Before which of the known writes it belongs: behind the version that it names, and a creation behind a deletion or
/// before all. None: it cannot have been executed.
fn place(known: &[&LeaseWrite], one: &LeaseWrite) -> Option<usize> {
    let Some(basis) = one.basis else {
        let place = known.partition_point(|lease| lease.received <= one.received);
        let before = place.checked_sub(1).and_then(|index| known.get(index));
        return before.is_none_or(|before| before.deleted).then_some(place);
    };
    let before = |lease: &&LeaseWrite| lease.version.is_some_and(|version| version <= basis);
    Some(known.iter().rposition(before).map_or(0, |index| index + 1))
}

/// Whether the operator could write `next` on top of it: epochs do not fall, and one epoch has one holder.
fn fits(one: &LeaseWrite, next: Option<&LeaseWrite>) -> bool {
    next.is_none_or(|next| {
        let no_other = next.holder.is_empty() || same_holder(next, one);
        next.pod.is_none() || next.epoch > one.epoch || next.epoch == one.epoch && no_other
    })
}

fn same_holder(next: &LeaseWrite, one: &LeaseWrite) -> bool {
    next.holder == one.holder && next.incarnation == one.incarnation
}
