//! The shard table as an outside observer reads it: which holder the fence accepts for each shard.

use std::collections::BTreeMap;

use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client, ResourceExt};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Context, Result};
use crate::names::OperatorNames;

/// The resource in plural.
pub const RESOURCE: &str = "shardtables";
/// The name of the fleet's table.
pub const NAME: &str = "databasecluster-shards";

/// Who holds one shard, by the table.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Entry {
    /// The epoch of the shard.
    #[serde(default)]
    pub epoch: i64,
    /// The holder; empty: vacant.
    #[serde(default)]
    pub holder: String,
    /// The holder's incarnation.
    #[serde(default)]
    pub incarnation: String,
}

/// The fleet's table.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Table {
    /// Its uid, which every fencing token names.
    pub uid: String,
    /// The number of shards.
    pub shards: u64,
    /// The entries, by the three digits of the shard.
    pub entries: BTreeMap<String, Entry>,
}

impl Table {
    /// From the object as the API server stores it; none when it is no table.
    #[must_use]
    pub fn of(object: &Value) -> Option<Self> {
        Some(Self {
            uid: object.pointer("/metadata/uid")?.as_str()?.to_owned(),
            shards: object.pointer("/spec/shards")?.as_u64()?,
            entries: entries(object),
        })
    }
}

/// The entries that a table, or a patch of one, sets.
#[must_use]
pub fn entries(object: &Value) -> BTreeMap<String, Entry> {
    let Some(Value::Object(entries)) = object.pointer("/spec/entries") else {
        return BTreeMap::new();
    };
    let understood = entries.iter().filter_map(|(shard, entry)| {
        let entry = serde_json::from_value(entry.clone()).ok()?;
        Some((shard.clone(), entry))
    });
    understood.collect()
}

/// All ShardTables of the DatabaseCluster operator's namespace.
#[must_use]
pub fn api(client: Client) -> Api<DynamicObject> {
    api_of(client, &OperatorNames::DATABASE_CLUSTERS)
}

fn api_of(client: Client, operator: &OperatorNames) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk(operator.domain, "v1", "ShardTable");
    Api::namespaced_with(client, operator.namespace, &ApiResource::from_gvk(&kind))
}

/// The table of the DatabaseCluster operator; none when there is none, or none is served.
///
/// # Errors
/// When the API server refuses to show it.
pub async fn get(client: &Client) -> Result<Option<Table>> {
    get_of(client, &OperatorNames::DATABASE_CLUSTERS).await
}

/// As [`get`], of another operator.
///
/// # Errors
/// As [`get`].
pub async fn get_of(client: &Client, operator: &OperatorNames) -> Result<Option<Table>> {
    let name = operator.table();
    let found = api_of(client.clone(), operator).get_opt(&name).await;
    let Some(object) = found.context(format!("get the ShardTable {name}"))? else {
        return Ok(None);
    };
    let uid = object.uid().unwrap_or_default();
    Ok(Some(Table {
        uid,
        shards: object
            .data
            .pointer("/spec/shards")
            .and_then(Value::as_u64)
            .unwrap_or_default(),
        entries: entries(&object.data),
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use serde_json::json;

    #[test]
    fn table_and_its_patch_are_parsed() {
        let entry = json!({"epoch": 12, "holder": "a", "incarnation": "a1"});
        let object = json!({
            "metadata": {"uid": "t"},
            "spec": {"shards": 32, "entries": {"007": entry, "008": {"epoch": 3}}},
        });
        let table = Table::of(&object).unwrap();
        assert_eq!((table.uid.as_str(), table.shards), ("t", 32));
        assert_eq!(table.entries["007"].incarnation, "a1");
        assert_eq!(table.entries["008"].holder, "", "it is vacant");
        assert!(Table::of(&json!({"kind": "Status"})).is_none());
        let patch = json!({"spec": {"entries": {"007": entry}}});
        assert_eq!(entries(&patch).len(), 1);
    }
}
