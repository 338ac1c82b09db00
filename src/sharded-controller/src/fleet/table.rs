//! The shard table in the API server: decoding it into a record, writing what the state machine decides.

use std::collections::BTreeMap;

use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::leases::{CALL_TIMEOUT, labels, settle};
use super::shard_table::{ShardTable, ShardTableEntry, ShardTableSpec};
use crate::names::Names;
use shard_ownership::hash::ShardId;
use shard_ownership::lease::Version;
use shard_ownership::ownership::{ReadFailed, WriteResult};
use shard_ownership::table;
use shard_ownership::table::{Entry, TableChange, TableWrite};

/// Decodes the table; `None` if it was never stored.
#[must_use]
pub fn decode(object: &ShardTable) -> Option<table::ShardTable> {
    let entries = object.spec.entries.iter();
    Some(table::ShardTable {
        version: Version {
            uid: object.metadata.uid.clone()?,
            resource_version: object.metadata.resource_version.clone()?,
        },
        shards: u16::try_from(object.spec.shards).unwrap_or(0),
        entries: entries
            .filter_map(|(key, entry)| Some((ShardId(key.parse().ok()?), decode_entry(entry)?)))
            .collect(),
    })
}

fn decode_entry(entry: &ShardTableEntry) -> Option<Entry> {
    Some(Entry {
        epoch: u32::try_from(entry.epoch).ok()?,
        holder: entry.holder.clone(),
        incarnation: entry.incarnation.clone(),
    })
}

fn encode_entry(entry: &Entry) -> ShardTableEntry {
    ShardTableEntry {
        epoch: i64::from(entry.epoch),
        holder: entry.holder.clone(),
        incarnation: entry.incarnation.clone(),
    }
}

fn key(shard: ShardId) -> String {
    format!("{:03}", shard.0)
}

fn vacant(shards: u16, epoch: u32) -> ShardTableSpec {
    let entry = encode_entry(&Entry::vacant(epoch));
    ShardTableSpec {
        shards: i32::from(shards),
        entries: (0..shards)
            .map(|shard| (key(ShardId(shard)), entry.clone()))
            .collect(),
    }
}

/// The shard table of one fleet.
#[derive(Clone)]
pub struct TableStore {
    api: Api<ShardTable>,
    names: Names,
}

impl TableStore {
    /// The table in this namespace.
    #[must_use]
    pub fn new(client: Client, namespace: &str, names: Names) -> Self {
        Self {
            api: Api::namespaced_with(client, namespace, &names),
            names,
        }
    }

    /// Writes the table.
    pub async fn write(&self, write: &TableWrite) -> WriteResult<table::ShardTable> {
        let params = PostParams::default();
        let name = &self.names.shard_table();
        let sent = async {
            match &write.change {
                TableChange::Create => {
                    let table = object(&self.names, vacant(write.shards, 0), None);
                    self.api.create(&params, &table).await
                }
                TableChange::Entries { table, entries } => {
                    let patch = Patch::Merge(entries_patch(table, write.shards, entries));
                    self.api.patch(name, &PatchParams::default(), &patch).await
                }
                TableChange::Convert { base, epoch } => {
                    let table = object(&self.names, vacant(write.shards, *epoch), Some(base));
                    self.api.replace(name, &params, &table).await
                }
            }
        };
        match settle(timeout(CALL_TIMEOUT, sent).await) {
            // An answer that cannot be decoded does not show what is stored.
            WriteResult::Done(table) => {
                decode(&table).map_or(WriteResult::Unknown, WriteResult::Done)
            }
            WriteResult::Conflict => WriteResult::Conflict,
            WriteResult::Rejected => WriteResult::Rejected,
            WriteResult::Unknown => WriteResult::Unknown,
        }
    }

    /// Reads the table from the API server.
    ///
    /// # Errors
    /// When the API server did not answer in time, or with something other than the table or 404.
    pub async fn read(&self) -> Result<Option<table::ShardTable>, ReadFailed> {
        match timeout(CALL_TIMEOUT, self.api.get_opt(&self.names.shard_table())).await {
            Ok(Ok(found)) => Ok(found.as_ref().and_then(decode)),
            Ok(Err(error)) => {
                tracing::debug!(%error, "could not read the shard table");
                Err(ReadFailed)
            }
            Err(_) => Err(ReadFailed),
        }
    }

    /// Whether this replica may write the table, by a dry run that changes nothing.
    ///
    /// # Errors
    /// What the API server answered instead of accepting it.
    pub async fn probe(&self) -> Result<(), kube::Error> {
        let params = PatchParams {
            dry_run: true,
            ..PatchParams::default()
        };
        let patch = Patch::Merge(json!({}));
        let name = self.names.shard_table();
        match self.api.patch(&name, &params, &patch).await {
            // Without a table there is nothing to change, and the right to was asked before.
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if is_absent(&status, &name) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Whether it is the table that is missing, and not its kind.
fn is_absent(status: &kube::core::Status, table: &str) -> bool {
    let named = status.details.as_ref().map(|details| details.name.as_str());
    status.code == 404 && named == Some(table)
}

fn object(names: &Names, spec: ShardTableSpec, base: Option<&Version>) -> ShardTable {
    let mut table = ShardTable::new(names, &names.shard_table(), spec);
    table.metadata.labels = Some(labels(names, "shard-table"));
    table.metadata.uid = base.map(|base| base.uid.clone());
    table.metadata.resource_version = base.map(|base| base.resource_version.clone());
    table
}

/// Merged, so that writers of other entries do not conflict. The uid protects another table from a
/// late write, the number of shards protects a converted table.
fn entries_patch(table: &str, shards: u16, entries: &BTreeMap<ShardId, Entry>) -> Value {
    let entries: BTreeMap<String, ShardTableEntry> = entries
        .iter()
        .map(|(shard, entry)| (key(*shard), encode_entry(entry)))
        .collect();
    json!({
        "metadata": {"uid": table},
        "spec": {"shards": shards, "entries": entries},
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::names::testing::NAMES;

    #[test]
    fn a_new_table_has_one_vacant_entry_for_each_shard() {
        let mut table = object(&NAMES, vacant(32, 0), None);
        table.metadata.uid = Some("u".into());
        table.metadata.resource_version = Some("1".into());
        let read = decode(&table).unwrap();
        assert_eq!((read.shards, read.entries.len()), (32, 32));
        assert_eq!(read.highest_epoch(), 0);
        assert_eq!(read.entries[&ShardId(31)], Entry::vacant(0));
    }

    #[test]
    fn a_patch_names_the_table_its_number_of_shards_and_only_the_given_entries() {
        let entry = Entry {
            epoch: 12,
            holder: "a".into(),
            incarnation: "n".into(),
        };
        let patch = entries_patch("u", 32, &BTreeMap::from([(ShardId(7), entry)]));
        let expected = json!({
            "metadata": {"uid": "u"},
            "spec": {"shards": 32, "entries": {
                "007": {"epoch": 12, "holder": "a", "incarnation": "n"},
            }},
        });
        assert_eq!(patch, expected);
    }
}
