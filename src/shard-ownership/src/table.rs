//! The shard table as a plain record: which replica may write where, for the fence, and the record of epochs for
//! the fleet.

use std::collections::BTreeMap;

use super::hash::ShardId;
use super::lease::Version;
use super::token::{EPOCH_MAX, EPOCH_STEP_MAX};

/// The entry of one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Epoch under which the holder writes. It never decreases.
    pub epoch: u32,
    /// Identity of the holder, or empty: no replica has written under this epoch.
    pub holder: String,
    /// Incarnation of the holder, or empty.
    pub incarnation: String,
}

impl Entry {
    /// An entry without a holder.
    #[must_use]
    pub const fn vacant(epoch: u32) -> Self {
        Self {
            epoch,
            holder: String::new(),
            incarnation: String::new(),
        }
    }
}

/// The shard table, as last observed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ShardTable {
    /// Version for compare-and-swap. Its uid is part of every fencing token.
    pub version: Version,
    /// How many shards it is divided into: replicas with another number are granted nothing.
    pub shards: u16,
    /// One entry for each shard.
    pub entries: BTreeMap<ShardId, Entry>,
}

impl ShardTable {
    /// The highest epoch of any entry.
    #[must_use]
    pub fn highest_epoch(&self) -> u32 {
        let epochs = self.entries.values().map(|entry| entry.epoch);
        epochs.max().unwrap_or(0)
    }
}

/// Why the API server rejects a write of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableRefusal {
    /// Another version is stored, or none.
    Conflict,
    /// The validation rules of the kind forbid it.
    Rejected,
}

/// A write of the table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TableWrite {
    /// Number of shards of the writer. It is part of every write, so that a late one cannot reach a
    /// converted table.
    pub shards: u16,
    /// What the table is to become.
    pub change: TableChange,
}

/// The changes of the table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TableChange {
    /// Create it, with every entry vacant at epoch 0.
    Create,
    /// Set these entries and leave the others as they are.
    Entries {
        /// Uid of the table for which the entries are meant: a later one refuses them.
        table: String,
        /// One entry for each shard that changes.
        entries: BTreeMap<ShardId, Entry>,
    },
    /// Convert it to another number of shards: every entry vacant, at this epoch.
    Convert {
        /// Only this version is converted: a table that changed since is a conflict.
        base: Version,
        /// An epoch above every old one.
        epoch: u32,
    },
}

/// What the API server stores after a write, apart from its version; `None` for `stored`: there is no
/// table.
///
/// This states the rules of the kind `ShardTable` once for everything that simulates an API server;
/// a conformance test compares it with the real one.
///
/// # Errors
/// When the API server refuses the write.
pub fn carried_out(
    stored: Option<&ShardTable>,
    write: &TableWrite,
) -> Result<(u16, BTreeMap<ShardId, Entry>), TableRefusal> {
    let vacant = |epoch| {
        let shards = (0..write.shards).map(ShardId);
        shards.map(|shard| (shard, Entry::vacant(epoch))).collect()
    };
    let (old, new) = match (&write.change, stored) {
        (TableChange::Create, None) => return Ok((write.shards, vacant(0))),
        (TableChange::Create, Some(_)) | (_, None) => return Err(TableRefusal::Conflict),
        (TableChange::Entries { table, entries }, Some(old)) => {
            if *table != old.version.uid {
                // The API server rejects a changed uid as invalid.
                return Err(TableRefusal::Rejected);
            }
            let mut new = old.entries.clone();
            new.extend(entries.iter().map(|(shard, entry)| (*shard, entry.clone())));
            (old, new)
        }
        (TableChange::Convert { base, epoch }, Some(old)) => {
            if *base != old.version {
                return Err(TableRefusal::Conflict);
            }
            (old, vacant(*epoch))
        }
    };
    let is_allowed = if write.shards == old.shards {
        new.len() == old.entries.len()
            && new.iter().all(|(shard, entry)| {
                let known = old.entries.get(shard);
                known.is_some_and(|known| moves_forward(known, entry))
            })
    } else {
        let highest = old.highest_epoch();
        new.len() == usize::from(write.shards)
            && new.values().all(|entry| {
                let is_vacant = entry.holder.is_empty() && entry.incarnation.is_empty();
                is_vacant && entry.epoch > highest && entry.epoch - highest <= EPOCH_STEP_MAX
            })
    };
    let is_allowed = is_allowed && new.values().all(|entry| entry.epoch <= EPOCH_MAX);
    is_allowed
        .then_some((write.shards, new))
        .ok_or(TableRefusal::Rejected)
}

fn moves_forward(old: &Entry, new: &Entry) -> bool {
    new == old || (new.epoch > old.epoch && new.epoch - old.epoch <= EPOCH_STEP_MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn table() -> ShardTable {
        let create = TableWrite {
            shards: 2,
            change: TableChange::Create,
        };
        let (shards, entries) = carried_out(None, &create).unwrap();
        let version = Version {
            uid: "t".into(),
            resource_version: "1".into(),
        };
        ShardTable {
            version,
            shards,
            entries,
        }
    }

    fn set(table: &ShardTable, epoch: u32, holder: &str) -> Result<ShardTable, TableRefusal> {
        let entry = Entry {
            epoch,
            holder: holder.into(),
            incarnation: format!("{holder}-1"),
        };
        let change = TableChange::Entries {
            table: "t".into(),
            entries: BTreeMap::from([(ShardId(1), entry)]),
        };
        let write = TableWrite { shards: 2, change };
        let (shards, entries) = carried_out(Some(table), &write)?;
        let version = table.version.clone();
        Ok(ShardTable {
            version,
            shards,
            entries,
        })
    }

    #[test]
    fn an_entry_moves_forward_only() {
        let first = set(&table(), 5, "a").unwrap();
        assert_eq!(set(&first, 5, "a").as_ref(), Ok(&first), "the same again");
        assert!(set(&first, 6, "b").is_ok());
        for (epoch, holder) in [
            (4, "a"),
            (5, "b"),
            (6 + EPOCH_STEP_MAX, "b"),
            (EPOCH_MAX + 1, "b"),
        ] {
            let refused = set(&first, epoch, holder);
            assert_eq!(refused, Err(TableRefusal::Rejected), "{epoch} {holder}");
        }
    }

    #[test]
    fn a_conversion_sets_everything_above_every_old_epoch() {
        let old = set(&table(), 5, "a").unwrap();
        let convert = |epoch, base: &Version| {
            let base = base.clone();
            let change = TableChange::Convert { base, epoch };
            carried_out(Some(&old), &TableWrite { shards: 4, change })
        };
        let (shards, entries) = convert(6, &old.version).unwrap();
        assert_eq!((shards, entries.len()), (4, 4));
        assert!(entries.values().all(|entry| *entry == Entry::vacant(6)));
        assert_eq!(convert(5, &old.version), Err(TableRefusal::Rejected));
        let late = Version {
            resource_version: "0".into(),
            ..old.version.clone()
        };
        assert_eq!(convert(6, &late), Err(TableRefusal::Conflict));
    }

    #[test]
    fn a_late_write_of_entries_cannot_reach_a_converted_table() {
        let old = table();
        let change = TableChange::Convert {
            base: old.version.clone(),
            epoch: 1,
        };
        let (shards, entries) = carried_out(Some(&old), &TableWrite { shards: 4, change }).unwrap();
        let converted = ShardTable {
            shards,
            entries,
            ..old
        };
        assert_eq!(set(&converted, 9, "a"), Err(TableRefusal::Rejected));
    }
}
