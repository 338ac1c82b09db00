//! The shard table in the model: its requests, its faults, and what must hold.
//!
//! A read of the table and its answer happen at once, as do a probe and a write: the machine keeps one of each under
//! way, and between a request and its answer nothing but its own events can happen to it that would not as well
//! happen before or after. What can go in between at the API server is a fault: a late request, a lost reply, a watch
//! of the table that is frozen.

use super::fleet::Fleet;
use super::replica::{NextRequest, Up};
use super::{LateWrite, OwnershipModel, Step};
use crate::fence;
use shard_ownership::lease::{MemberChange, MemberWrite, ShardWrite};
use shard_ownership::ownership::{Event, WriteId, WriteResult};
use shard_ownership::table::{ShardTable, TableChange, TableWrite};
use shard_ownership::token::FencingToken;

impl Fleet {
    /// Faults of the table for one replica.
    pub(super) fn faults_of_table(&self, n: usize, steps: &mut Vec<Step>) {
        let replica = &self.replicas[n];
        if replica.next_of_table == NextRequest::Arrives {
            let ways = [
                NextRequest::IsLost,
                NextRequest::LosesItsReply,
                NextRequest::IsLate,
            ];
            steps.extend(ways.map(|next| Step::SpoilTable(n, next)));
        }
        if replica.table_held_back.is_none() {
            steps.push(Step::LagTable(n));
        }
        if self.server.may_write_table(&replica.identity) {
            steps.push(Step::RefuseTable(n));
        }
    }

    pub(super) fn take_of_table(&mut self, step: Step) {
        match step {
            Step::SpoilTable(n, next) => self.replicas[n].next_of_table = next,
            Step::LagTable(n) => self.replicas[n].table_held_back = Some(Vec::new()),
            Step::CatchUpTable(n) => {
                let held = self.replicas[n].table_held_back.take().unwrap_or_default();
                self.queue.extend(held.into_iter().map(|event| (n, event)));
            }
            Step::RefuseTable(n) => {
                let identity = self.replicas[n].identity.clone();
                self.server.refuses_table_of.insert(identity);
            }
            Step::AcceptTable(n) => {
                let identity = &self.replicas[n].identity;
                self.server.refuses_table_of.remove(identity);
            }
            Step::DeleteTable => {
                if let Some(uid) = self.server.delete_table() {
                    self.publish(&Event::TableDeleted(uid));
                }
            }
            Step::RaiseEntry(shard) => {
                self.tampered = true;
                self.server.edit_entry(shard);
                if let Some(table) = self.server.table.clone() {
                    self.publish(&Event::TableObserved(table));
                }
            }
            _ => {}
        }
    }

    pub(super) fn request_of_table<T>(
        &mut self,
        n: usize,
        serve: impl FnOnce(&mut Self) -> T,
    ) -> Option<T> {
        let next = std::mem::take(&mut self.replicas[n].next_of_table);
        self.carry(n, next, serve)
    }

    /// A replica without part of its protection writes its entry before its Lease.
    pub(super) fn hurry_entry(&mut self, n: usize, write: &ShardWrite) {
        let replica = &self.replicas[n];
        let (identity, table) = (&replica.identity, replica.machine.table_uid());
        let shards = replica.meta.shards;
        let sabotage = &self.server.sabotage;
        let hasty = sabotage.hasty_entry(write, identity, table, shards);
        if let Some(hasty) = hasty {
            self.check_sent(n, &hasty);
            self.request_of_table(n, |fleet| fleet.serve_table(n, &hasty));
        }
    }

    pub(super) fn send_table(&mut self, n: usize, id: WriteId, mut write: TableWrite) {
        let changes_entries = matches!(write.change, TableChange::Entries { .. });
        if let Some(batch) = self.replicas[n].refused_batch.clone()
            && changes_entries
        {
            write = batch;
        }
        self.check_sent(n, &write);
        let replica = &self.replicas[n];
        let late = replica.next_of_table == NextRequest::IsLate && !replica.cut;
        let imagined = self.imagined(&write);
        let answer = match imagined {
            Some(table) => Some(WriteResult::Done(table)),
            None => self.request_of_table(n, |fleet| fleet.serve_table(n, &write)),
        };
        if late {
            self.late_writes.push(LateWrite::Table(n, write.clone()));
        }
        let result = answer.unwrap_or(WriteResult::Unknown);
        if result == WriteResult::Rejected {
            self.note_refusal(n, write);
        }
        self.queue.push_back((n, Event::TableWritten(id, result)));
    }

    /// What a replica without part of its protection takes to be stored.
    fn imagined(&self, write: &TableWrite) -> Option<ShardTable> {
        match (&write.change, self.server.table.clone()) {
            (TableChange::Entries { entries, .. }, Some(mut table))
                if self.server.sabotage.work_before_entry =>
            {
                table.entries.extend(entries.clone());
                Some(table)
            }
            _ => None,
        }
    }

    fn note_refusal(&mut self, n: usize, write: TableWrite) {
        let replica = &mut self.replicas[n];
        replica.was_refused |= !self.server.may_write_table(&replica.identity);
        let is_batch =
            matches!(&write.change, TableChange::Entries { entries, .. } if entries.len() > 1);
        if is_batch && self.server.sabotage.batch_resent_unchanged {
            replica.refused_batch = Some(write);
        }
    }

    pub(super) fn serve_table(&mut self, n: usize, write: &TableWrite) -> WriteResult<ShardTable> {
        let identity = self.replicas[n].identity.clone();
        let before = self.server.table.clone();
        let result = self.server.write_table(&identity, write);
        if let WriteResult::Done(table) = &result
            && before.as_ref() != Some(table)
        {
            self.check_rises(before.as_ref(), table);
            self.publish(&Event::TableObserved(table.clone()));
        }
        result
    }

    /// Entries rise for every writer, and one epoch belongs to one incarnation.
    fn check_rises(&mut self, before: Option<&ShardTable>, after: &ShardTable) {
        let Some(before) = before else { return };
        let falls = after.entries.iter().find(|(shard, entry)| {
            let known = before.entries.get(shard);
            known.is_some_and(|known| known != *entry && known.epoch >= entry.epoch)
        });
        if let Some((shard, entry)) = falls {
            self.violation = Some(format!(
                "the entry of shard {shard} did not rise: {entry:?}"
            ));
        }
    }

    /// A replica writes only its own entries, of shards whose Leases it is known to hold.
    fn check_sent(&mut self, n: usize, write: &TableWrite) {
        let TableChange::Entries { entries, .. } = &write.change else {
            return;
        };
        let replica = &self.replicas[n];
        let is_own = |(shard, entry): &(_, &shard_ownership::table::Entry)| {
            let won = replica.won.get(*shard).copied().unwrap_or(0);
            entry.holder == replica.identity
                && entry.incarnation == replica.incarnation
                && entry.epoch <= won
        };
        if let Some((shard, entry)) = entries.iter().find(|entry| !is_own(entry)) {
            self.violation = Some(format!(
                "r{n} wrote the entry of shard {shard} before it won its Lease: {entry:?}"
            ));
        }
    }

    /// A replica reports that it may not write the table only when that is so, or was.
    pub(super) fn check_barred(&mut self, n: usize, write: &MemberWrite) {
        let says_so = matches!(write.change, MemberChange::Renew { barred: true, .. });
        let replica = &self.replicas[n];
        if says_so && !replica.was_refused {
            self.violation = Some(format!("r{n} bars itself though nothing was refused to it"));
        }
    }

    /// Work begins only when the table grants it. By the time that is detected, users may have changed the table.
    pub(super) fn check_admitted(&mut self, n: usize, token: &FencingToken) {
        let Some(table) = &self.server.table else {
            return;
        };
        let incarnation = &self.replicas[n].incarnation;
        let entry = table.entries.get(&token.shard);
        let is_granted = fence::names(table, token)
            && entry.is_some_and(|entry| entry.incarnation == *incarnation);
        let has_moved_on = entry.is_some_and(|entry| entry.epoch > token.epoch);
        let another = *table.version.uid != *token.table;
        let is_excused = another || (self.tampered && has_moved_on);
        if !is_granted && !is_excused {
            self.violation = Some(format!("r{n} began under {token}, but {entry:?}"));
        }
    }

    /// A working replica has the Lease and, in the present table, the entry. One with current watches works under no
    /// other table.
    pub(super) fn check_rights(&mut self, model: &OwnershipModel) {
        for n in 0..self.replicas.len() {
            let replica = &self.replicas[n];
            let hears = replica.up == Up::Running
                && !replica.cut
                && replica.inbox.is_empty()
                && replica.held_back.is_none()
                && replica.table_held_back.is_none();
            let shards = replica.permits.keys();
            let acts = |shard| replica.acts(shard, self.now_ms, model.sabotage.no_validity);
            let tokens: Vec<FencingToken> = shards.copied().filter_map(acts).cloned().collect();
            for token in tokens {
                self.check_right(n, &token, hears);
            }
        }
    }

    /// A replica that has observed another table, or the end of its own, has stopped what it did under that.
    pub(super) fn check_stopped(&mut self, n: usize) {
        let replica = &self.replicas[n];
        let known = replica.machine.table_uid();
        let mut tokens = replica.permits.values().map(|permit| &permit.token);
        if let Some(token) = tokens.find(|token| known != Some(&*token.table)) {
            self.violation = Some(format!(
                "r{n} works under {token} and knows table {known:?}"
            ));
        }
    }

    fn check_right(&mut self, n: usize, token: &FencingToken, hears: bool) {
        let incarnation = &self.replicas[n].incarnation;
        let lease = self.server.shards.get(&token.shard);
        let is_held = lease.is_some_and(|lease| {
            *lease.holder == *token.holder
                && lease.incarnation == *incarnation
                && lease.epoch == token.epoch
        });
        let table = self.server.table.as_ref();
        let same = table.filter(|table| *table.version.uid == *token.table);
        let is_granted = same.is_none_or(|table| fence::names(table, token));
        let has_both = is_held && is_granted;
        if !self.tampered && !has_both {
            self.violation = Some(format!("r{n} works under {token} without Lease or entry"));
        } else if hears && same.is_none() {
            self.violation = Some(format!("r{n} works under {token}, whose table was deleted"));
        }
    }
}
