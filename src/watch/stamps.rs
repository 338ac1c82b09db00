//! Finds the highest stamp in every shard, when nobody remembers a shard's Lease.

use std::collections::BTreeMap;

use kube::api::{Api, ListParams};
use kube::{Client, Error};

use super::observe;
use super::store::cluster_epoch;
use crate::api::DatabaseCluster;
use crate::core::hash::{ShardCount, ShardId};

/// Objects in one page of the list.
const PAGE: u32 = 500;

/// The highest epoch that any DatabaseCluster carries, by shard.
///
/// All namespaces are asked (or those served): a shard spans them.
///
/// # Errors
/// When a page could not be read.
pub async fn highest_stamps(
    client: &Client,
    namespaces: &[String],
    count: ShardCount,
) -> Result<BTreeMap<ShardId, u32>, Error> {
    let apis: Vec<Api<DatabaseCluster>> = if namespaces.is_empty() {
        vec![Api::all(client.clone())]
    } else {
        namespaces
            .iter()
            .map(|ns| Api::namespaced(client.clone(), ns))
            .collect()
    };
    let mut highest = BTreeMap::new();
    for api in apis {
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = api.list(&params).await?;
            for record in page.items.iter().filter_map(observe::cluster) {
                if let Some(epoch) = cluster_epoch(&record) {
                    let entry = highest.entry(count.shard_of(record.bucket)).or_insert(0);
                    *entry = epoch.max(*entry);
                }
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break,
            }
        }
    }
    Ok(highest)
}
