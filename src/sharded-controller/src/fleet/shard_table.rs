//! The shard table: which replica may write under which epoch, as the API server's fence reads it.
//!
//! The rules of the schema bind every writer, whatever its rights: per shard the epoch never falls, and one epoch
//! never belongs to two holders. Policies add who may write an entry (`fence_policies`).
#![allow(
    unreachable_pub,
    reason = "KubeSchema derives a private copy of each struct"
)]

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{DynamicResourceScope, TypeMeta};
use kube::{CustomResource, CustomResourceExt, KubeSchema, Resource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::Names;

const VERSION: &str = "v1";
const KIND: &str = "ShardTable";

/// A shard table of one operator, in the API group [`Names::domain`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardTable {
    /// `apiVersion` and `kind`.
    #[serde(flatten)]
    pub types: Option<TypeMeta>,
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// The replica that may write in each shard.
    pub spec: ShardTableSpec,
}

impl ShardTable {
    /// A table of this name, for this operator.
    #[must_use]
    pub fn new(names: &Names, name: &str, spec: ShardTableSpec) -> Self {
        Self {
            types: Some(TypeMeta {
                api_version: Self::api_version(names).into_owned(),
                kind: KIND.to_owned(),
            }),
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                ..ObjectMeta::default()
            },
            spec,
        }
    }

    /// The CustomResourceDefinition for one operator.
    #[must_use]
    pub fn crd(names: &Names) -> CustomResourceDefinition {
        let mut crd = ShardTableTemplate::crd();
        names.domain.clone_into(&mut crd.spec.group);
        for version in &mut crd.spec.versions {
            let schema = version.schema.as_mut();
            if let Some(schema) = schema.and_then(|schema| schema.open_api_v3_schema.as_mut()) {
                schema.title = Some(KIND.to_owned());
            }
        }
        crd.metadata.name = Some(format!("{}.{}", crd.spec.names.plural, names.domain));
        crd
    }
}

impl Resource for ShardTable {
    type DynamicType = Names;
    type Scope = DynamicResourceScope;

    fn kind(_: &Names) -> Cow<'_, str> {
        KIND.into()
    }

    fn group(names: &Names) -> Cow<'_, str> {
        names.domain.into()
    }

    fn version(_: &Names) -> Cow<'_, str> {
        VERSION.into()
    }

    fn plural(_: &Names) -> Cow<'_, str> {
        "shardtables".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// The replica that may write in each shard.
// The highest old epoch is bound to a name by `[…].all(highest, …)`: rules of a schema have no variables.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    // Of the template: each operator has the kind in its own group.
    group = "template.invalid",
    version = "v1",
    kind = "ShardTable",
    root = "ShardTableTemplate",
    plural = "shardtables",
    namespaced,
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
#[x_kube(validation = Rule::new("self.entries.size() == self.shards && ((oldSelf.hasValue() \
    && oldSelf.value().shards == self.shards) || self.entries.all(k, size(k) == 3 \
    && k >= '000' && k <= '255' && int(k) < self.shards))")
    .optional_old_self(true)
    .message("entries must have exactly the keys \"000\", \"001\" and so on, one for each of the shards")
    .field_path(".entries"))]
#[x_kube(validation = Rule::new("self.shards != oldSelf.shards || self.entries.all(k, k in oldSelf.entries \
    && (self.entries[k] == oldSelf.entries[k] || (self.entries[k].epoch > oldSelf.entries[k].epoch \
    && self.entries[k].epoch - oldSelf.entries[k].epoch <= 1048576)))")
    .message("an entry must stay, or get a higher epoch, by at most 1048576: an epoch never falls, and never gets another holder or incarnation")
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
