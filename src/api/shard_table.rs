//! The shard table: which replica may write under which epoch, as the API server's fence reads it.
//!
//! The rules of the schema bind every writer, whatever its rights: per shard the epoch never falls, and one epoch
//! never belongs to two holders. Policies add who may write an entry (`fence_policies`).
#![allow(
    unreachable_pub,
    reason = "KubeSchema derives a private copy of each struct"
)]

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which replica may write in which shard.
// The highest old epoch is bound to a name by `[…].all(highest, …)`: rules of a schema have no variables.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "database.io",
    version = "v1",
    kind = "ShardTable",
    plural = "shardtables",
    namespaced,
    derive = "PartialEq",
    doc = "The shards of an operator's fleet: for each shard, the replica that may write and the epoch of that right. \
        The API server refuses writes of the operator that this table does not allow. Only the operator writes it.",
    printcolumn(
        name = "Shards",
        type_ = "integer",
        json_path = ".spec.shards",
        description = "Number of shards"
    ),
    printcolumn(
        name = "UID",
        type_ = "string",
        json_path = ".metadata.uid",
        description = "The first part of each fencing token that this table allows"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.entries.size() == self.shards && self.entries.all(k, size(k) == 3 \
    && k >= '000' && k <= '255' && int(k) < self.shards)")
    .message("entries must have exactly the keys \"000\", \"001\" and so on, one for each of the shards")
    .field_path(".entries"))]
#[x_kube(validation = Rule::new("self.shards != oldSelf.shards || self.entries.all(k, k in oldSelf.entries \
    && self.entries[k].epoch >= oldSelf.entries[k].epoch)")
    .message("the epoch of an entry must not fall")
    .field_path(".entries"))]
#[x_kube(validation = Rule::new("self.shards != oldSelf.shards || self.entries.all(k, k in oldSelf.entries \
    && (self.entries[k].epoch != oldSelf.entries[k].epoch || self.entries[k] == oldSelf.entries[k]))")
    .message("another holder or incarnation of an entry needs a higher epoch")
    .field_path(".entries"))]
#[x_kube(validation = Rule::new("self.shards != oldSelf.shards || self.entries.all(k, k in oldSelf.entries \
    && self.entries[k].epoch - oldSelf.entries[k].epoch <= 1048576)")
    .message("one write must not raise an epoch by more than 1048576")
    .field_path(".entries"))]
#[x_kube(validation = Rule::new("self.shards == oldSelf.shards \
    || [oldSelf.entries.map(k, oldSelf.entries[k].epoch).max()].all(highest, self.entries.all(k, \
    self.entries[k].holder == '' && self.entries[k].incarnation == '' \
    && self.entries[k].epoch > highest && self.entries[k].epoch - highest <= 1048576))")
    .message("a change of shards must set every entry: vacant, with an epoch above every old one and at most 1048576 above the highest")
    .field_path(".entries"))]
#[x_kube(validation = Rule::new("oldSelf.hasValue() || self.entries.all(k, \
    self.entries[k].holder == '' && self.entries[k].incarnation == '')")
    .optional_old_self(true)
    .message("every entry of a new table must be vacant")
    .field_path(".entries"))]
pub struct ShardTableSpec {
    /// Number of shards, a power of two from 1 to 256. A change of it sets all entries in one
    /// write.
    #[schemars(range(min = 1, max = 256))]
    #[x_kube(validation = Rule::new("self in [1, 2, 4, 8, 16, 32, 64, 128, 256]").message("shards must be a power of two from 1 to 256"))]
    pub shards: i32,

    /// One entry for each shard, by its number in three digits: "000", "001" and so on. Entries stay, and their
    /// epochs only rise.
    // Atomic: else the API server keeps a list of the fields of each entry, which costs more than the entries.
    #[schemars(extend("maxProperties" = 256, "x-kubernetes-map-type" = "atomic"))]
    pub entries: BTreeMap<String, ShardTableEntry>,
}

/// The right to write in one shard.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShardTableEntry {
    /// Epoch of the right. It rises each time that the shard changes hands, and it never falls. At most 2146435071,
    /// which is 2^20 below the limit of 32 bits.
    #[schemars(range(min = 0, max = 2_146_435_071_i64))]
    pub epoch: i64,

    /// Identity of the replica that may write, its Pod's name in a cluster. Empty: no replica may write yet.
    #[schemars(length(max = 253))]
    pub holder: String,

    /// Incarnation of the holder: a number that each start of a process draws. One epoch never belongs to two
    /// incarnations. Empty when there is no holder.
    #[schemars(length(max = 64))]
    pub incarnation: String,
}
