//! The fence as the API server applies it to the operator's writes of objects.
//!
//! Two rules. The holder rule reads the shard table from a cache that may show the past, or nothing at all. The
//! order rule compares the old and the new token of one register within the transaction, and reads nothing else.

use crate::server::Sabotage;
use shard_ownership::table::ShardTable;
use shard_ownership::token::{FencingToken, ObservedToken};

/// A rule that refused a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FenceRule {
    /// The table names another holder or epoch.
    Holder,
    /// The register has a token with a higher epoch.
    Order,
}

/// Whether the fence lets a write through: by `token`, into a register that has the text `register`, of an object of
/// the cluster with the uid `cluster`. `cached`: the table as this API server's cache has it.
///
/// # Errors
/// The rule that refused it.
pub fn admit(
    sabotage: &Sabotage,
    cached: Option<&ShardTable>,
    register: Option<&str>,
    token: &FencingToken,
    cluster: &str,
) -> Result<(), FenceRule> {
    // Where the table is not found, this rule refuses nothing.
    if cached.is_some_and(|table| !names(table, token)) {
        return Err(FenceRule::Holder);
    }
    let knows_table = cached.is_some_and(|table| *table.version.uid == *token.table);
    let compares = !sabotage.no_fence && (knows_table || !sabotage.order_needs_table);
    let old = register.and_then(ObservedToken::parse).filter(|_| compares);
    match old {
        Some(old) if old.is_ahead_of(token, counted(sabotage, old.cluster, cluster)) => {
            Err(FenceRule::Order)
        }
        _ => Ok(()),
    }
}

/// The uid for which a token counts; without that protection, any.
const fn counted<'a>(sabotage: &Sabotage, of_token: &'a str, of_object: &'a str) -> &'a str {
    if sabotage.no_cluster_uid {
        of_token
    } else {
        of_object
    }
}

/// Whether the table grants the right of this token.
#[must_use]
pub fn names(table: &ShardTable, token: &FencingToken) -> bool {
    let entry = table.entries.get(&token.shard);
    *table.version.uid == *token.table
        && entry.is_some_and(|entry| entry.epoch == token.epoch && *entry.holder == *token.holder)
}
