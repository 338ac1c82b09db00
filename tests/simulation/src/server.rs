//! The API server's Leases and shard table as they behave: compare-and-swap on uid and resourceVersion, the rules
//! of the table's kind, and the traps of both.

use std::collections::{BTreeMap, BTreeSet};

use shard_ownership::hash::ShardId;
use shard_ownership::lease::{
    MemberChange, MemberLease, MemberWrite, ShardLease, ShardWrite, Successor, Version,
};
use shard_ownership::ownership::{Event, WriteResult};
use shard_ownership::table::{
    Entry, ShardTable, TableChange, TableRefusal, TableWrite, carried_out,
};

/// Parts of the protection that can be switched off, to see whether that is noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sabotage {
    /// Writes are carried out whatever version they replace.
    pub no_compare: bool,
    /// Writes carry no uid: a PUT with an old resourceVersion re-creates a Lease that was deleted.
    pub no_uid: bool,
    /// Work continues after the validity has expired, until the machine itself detects it.
    pub no_validity: bool,
    /// Every life of a replica has the same incarnation.
    pub no_incarnation: bool,
    /// A change of holder keeps the epoch.
    pub no_epoch_bump: bool,
    /// A write without a reply is taken for one that arrived.
    pub unknown_is_done: bool,
    /// A write without a reply is taken for one that did not arrive.
    pub unknown_is_lost: bool,
    /// A shard is handed over without waiting for its work.
    pub no_drain_wait: bool,
    /// The fence lets an older epoch through on an object that a newer one has written.
    pub no_fence: bool,
    /// Replicas report that they have listed every shard, whatever they have listed.
    pub no_warmth: bool,
    /// Replicas do not publish their revision.
    pub no_revision: bool,
    /// A holder writes its entry before the compare-and-swap of its Lease.
    pub entry_before_lease: bool,
    /// Entries do not name the incarnation that holds the shard.
    pub no_entry_incarnation: bool,
    /// The fence compares old and new token only where it finds the table.
    pub order_needs_table: bool,
    /// A token counts on whatever object it is found.
    pub no_cluster_uid: bool,
    /// Work continues though the table was deleted or replaced.
    pub no_stop_on_new_table: bool,
    /// Entries that were refused together are sent together again, as they were.
    pub batch_resent_unchanged: bool,
    /// Work begins when the entry is sent, whether or not it arrives.
    pub work_before_entry: bool,
}

/// What a replica publishes with every renewal, beside what the machine decides.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MemberMeta {
    /// Lifetime of the Lease.
    pub lease_ms: u64,
    /// Uid of the Pod, or empty.
    pub pod_uid: String,
    /// Revision, or empty.
    pub revision: String,
    /// Number of shards.
    pub shards: u16,
}

impl Sabotage {
    /// What a replica without part of its protection takes an event for.
    pub(crate) fn shown(&self, event: Event, identity: &str, incarnation: &str) -> Event {
        if !self.no_entry_incarnation {
            return event;
        }
        let shown = |mut table: ShardTable| {
            for entry in table
                .entries
                .values_mut()
                .filter(|entry| entry.holder == identity)
            {
                incarnation.clone_into(&mut entry.incarnation);
            }
            table
        };
        match event {
            Event::TableListed(table) => Event::TableListed(table.map(shown)),
            Event::TableObserved(table) => Event::TableObserved(shown(table)),
            Event::TableRead(read) => Event::TableRead(read.map(|table| table.map(shown))),
            Event::TableWritten(id, WriteResult::Done(table)) => {
                Event::TableWritten(id, WriteResult::Done(shown(table)))
            }
            other => other,
        }
    }

    /// The entry that a replica without part of its protection writes before its Lease.
    pub(crate) fn hasty_entry(
        &self,
        write: &ShardWrite,
        identity: &str,
        table: Option<&str>,
        shards: u16,
    ) -> Option<TableWrite> {
        let takes = self.entry_before_lease && write.holder == identity;
        let entry = Entry {
            epoch: write.epoch,
            holder: write.holder.clone(),
            incarnation: write.incarnation.clone(),
        };
        let change = TableChange::Entries {
            table: table.filter(|_| takes)?.to_owned(),
            entries: BTreeMap::from([(write.shard, entry)]),
        };
        Some(TableWrite { shards, change })
    }
}

/// The Leases and the shard table, and how many versions there have been.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Server {
    /// Member Leases by identity.
    pub members: BTreeMap<String, MemberLease>,
    /// Shard Leases.
    pub shards: BTreeMap<ShardId, ShardLease>,
    /// The shard table.
    pub table: Option<ShardTable>,
    /// Replicas whose writes of the table are rejected.
    pub refuses_table_of: BTreeSet<String>,
    /// The last resourceVersion.
    pub revision: u64,
    uids: u64,
    /// What is switched off.
    pub sabotage: Sabotage,
}

/// What a write finds.
enum Found {
    /// The version that it replaces, or nothing where it creates.
    Fits,
    Conflict,
    /// A PUT without uid on a deleted Lease creates a new one.
    Recreates,
}

impl Server {
    /// Leases of a new cluster.
    #[must_use]
    pub fn new(sabotage: Sabotage) -> Self {
        Self {
            sabotage,
            ..Self::default()
        }
    }

    fn find(&self, known: Option<&Version>, base: Option<&Version>) -> Found {
        match (known, base) {
            (None, Some(_)) if self.sabotage.no_uid => Found::Recreates,
            (Some(known), Some(base)) if self.sabotage.no_uid => {
                if known.resource_version == base.resource_version {
                    Found::Fits
                } else {
                    Found::Conflict
                }
            }
            (Some(_), _) if self.sabotage.no_compare => Found::Fits,
            (None, Some(_)) if self.sabotage.no_compare => Found::Recreates,
            (known, base) if known == base => Found::Fits,
            _ => Found::Conflict,
        }
    }

    fn next(&mut self, uid: Option<String>) -> Version {
        self.revision += 1;
        let uid = uid.unwrap_or_else(|| {
            self.uids += 1;
            format!("uid-{}", self.uids)
        });
        Version {
            uid,
            resource_version: self.revision.to_string(),
        }
    }

    /// Carries out a write of a member Lease.
    pub fn write_member(
        &mut self,
        write: &MemberWrite,
        meta: &MemberMeta,
    ) -> WriteResult<Option<MemberLease>> {
        let known = self.members.get(&write.identity);
        let found = self.find(known.map(|lease| &lease.version), write.base.as_ref());
        let patches = !matches!(write.change, MemberChange::Renew { .. });
        // A merge patch and a deletion never create.
        if matches!(found, Found::Conflict) || (patches && known.is_none()) {
            return WriteResult::Conflict;
        }
        let created_seconds = known.map_or(0, |lease| lease.created_seconds);
        let uid = known.map(|lease| lease.version.uid.clone());
        let mut lease = match (&write.change, known) {
            (MemberChange::Renew { .. }, _) | (_, None) => MemberLease {
                identity: write.identity.clone(),
                version: Version {
                    uid: String::new(),
                    resource_version: String::new(),
                },
                holder: write.identity.clone(),
                incarnation: String::new(),
                renewal: 0,
                lease_ms: meta.lease_ms,
                pod_uid: meta.pod_uid.clone(),
                revision: meta.revision.clone(),
                shards: meta.shards,
                draining: false,
                barred: false,
                drain_requested: false,
                warm: BTreeSet::new(),
                created_seconds,
            },
            (_, Some(known)) => known.clone(),
        };
        match &write.change {
            MemberChange::Renew {
                incarnation,
                renewal,
                draining,
                barred,
                drain_requested,
                warm,
            } => {
                lease.incarnation.clone_from(incarnation);
                lease.renewal = *renewal;
                lease.draining = *draining;
                lease.barred = *barred;
                lease.drain_requested = *drain_requested;
                lease.warm = if self.sabotage.no_warmth {
                    (0..meta.shards).map(ShardId).collect()
                } else {
                    warm.clone()
                };
            }
            MemberChange::Vacate => lease.holder.clear(),
            MemberChange::Delete => {
                self.delete_member(&write.identity);
                return WriteResult::Done(None);
            }
        }
        lease.version = self.next(uid);
        self.members.insert(write.identity.clone(), lease.clone());
        WriteResult::Done(Some(lease))
    }

    /// Carries out a write of a shard Lease.
    pub fn write_shard(&mut self, write: &ShardWrite, shards: u16) -> WriteResult<ShardLease> {
        let known = self.shards.get(&write.shard);
        let found = self.find(known.map(|lease| &lease.version), write.base.as_ref());
        if matches!(found, Found::Conflict) {
            return WriteResult::Conflict;
        }
        let mut epoch = write.epoch;
        if let (true, Some(known)) = (self.sabotage.no_epoch_bump, known) {
            epoch = epoch.min(known.epoch.max(1));
        }
        let uid = known.map(|lease| lease.version.uid.clone());
        let lease = ShardLease {
            shard: write.shard,
            version: self.next(uid),
            holder: write.holder.clone(),
            incarnation: write.incarnation.clone(),
            epoch,
            shards,
            successor: write.successor.clone(),
        };
        self.shards.insert(write.shard, lease.clone());
        WriteResult::Done(lease)
    }

    /// Carries out a write of the shard table.
    pub fn write_table(&mut self, identity: &str, write: &TableWrite) -> WriteResult<ShardTable> {
        if !self.may_write_table(identity) {
            return WriteResult::Rejected;
        }
        let (shards, mut entries) = match carried_out(self.table.as_ref(), write) {
            Ok(stored) => stored,
            Err(TableRefusal::Conflict) => return WriteResult::Conflict,
            Err(TableRefusal::Rejected) => return WriteResult::Rejected,
        };
        if self.sabotage.no_entry_incarnation {
            entries
                .values_mut()
                .for_each(|entry| entry.incarnation.clear());
        }
        let known = self.table.take();
        let uid = known.as_ref().map(|table| table.version.uid.clone());
        // A write that changes nothing is not stored.
        let same = known.filter(|known| known.shards == shards && known.entries == entries);
        let table = same.unwrap_or_else(|| ShardTable {
            version: self.next(uid),
            shards,
            entries,
        });
        self.table = Some(table.clone());
        WriteResult::Done(table)
    }

    /// Whether this replica may write the table.
    #[must_use]
    pub fn may_write_table(&self, identity: &str) -> bool {
        !self.refuses_table_of.contains(identity)
    }

    /// Deletes the shard table; returns its uid.
    pub fn delete_table(&mut self) -> Option<String> {
        self.revision += 1;
        self.table.take().map(|table| table.version.uid)
    }

    /// Raises an entry as a user would, by hand: it names no live replica.
    pub fn edit_entry(&mut self, shard: ShardId) {
        if let Some(mut table) = self.table.take() {
            if let Some(entry) = table.entries.get_mut(&shard) {
                let epoch = entry.epoch + 1;
                *entry = Entry {
                    epoch,
                    holder: "by-hand".into(),
                    incarnation: String::new(),
                };
            }
            table.version = self.next(Some(table.version.uid));
            self.table = Some(table);
        }
    }

    /// The result that the sender of a write without a response gets.
    #[must_use]
    pub fn unanswered(&self, write: ShardWrite, shards: u16) -> WriteResult<ShardLease> {
        if self.sabotage.unknown_is_done {
            WriteResult::Done(as_if_written(write, shards))
        } else if self.sabotage.unknown_is_lost {
            WriteResult::Rejected
        } else {
            WriteResult::Unknown
        }
    }

    /// Carries out a plan of the fleet leader: a merge patch, from the version that it saw.
    pub fn plan(&mut self, seen: &Version, shard: ShardId, next: Option<Successor>) -> bool {
        let fits = self
            .shards
            .get(&shard)
            .is_some_and(|lease| lease.version == *seen);
        if fits {
            self.edit_shard(shard, |lease| lease.successor = next);
        }
        fits
    }

    /// Changes a shard Lease as a person would, by hand.
    pub fn edit_shard(&mut self, shard: ShardId, edit: impl FnOnce(&mut ShardLease)) {
        if let Some(mut lease) = self.shards.remove(&shard) {
            edit(&mut lease);
            lease.version = self.next(Some(lease.version.uid));
            self.shards.insert(shard, lease);
        }
    }

    /// Deletes a member Lease; returns its uid.
    pub fn delete_member(&mut self, identity: &str) -> Option<String> {
        self.revision += 1;
        self.members.remove(identity).map(|lease| lease.version.uid)
    }

    /// Deletes a shard Lease; returns its uid.
    pub fn delete_shard(&mut self, shard: ShardId) -> Option<String> {
        self.revision += 1;
        self.shards.remove(&shard).map(|lease| lease.version.uid)
    }
}

/// What a caller that treats a lost response as success would believe to be stored.
fn as_if_written(write: ShardWrite, shards: u16) -> ShardLease {
    ShardLease {
        shard: write.shard,
        version: write.base.unwrap_or(Version {
            uid: "imagined".into(),
            resource_version: "0".into(),
        }),
        holder: write.holder,
        incarnation: write.incarnation,
        epoch: write.epoch,
        shards,
        successor: write.successor,
    }
}
