//! Whether any write of a shard is accepted: a single refusal may be caused by its object, refusals
//! of all are not.
//!
//! Only refusals that users cannot provoke by editing an object count: those of the policies that
//! compare our token with the shard table, and missing permissions.

use dashmap::DashMap;

use crate::outcome::{Cause, Failure};
use crate::refusal::{Refusal, Rule, shorten};
use shard_ownership::hash::ShardId;

/// All writes are refused if nothing was accepted between two refusals that are this far apart, in
/// milliseconds. Longer than the refusals of a handover last.
const REFUSED_MS: u64 = 10_000;
/// A refusal says nothing any more after this time, in milliseconds: longer than the longest pause
/// between two tries.
const REFUSAL_VALID_MS: u64 = 900_000;

/// Consecutive refused writes.
#[derive(Clone, Debug)]
struct ConsecutiveRefusals {
    first_ms: u64,
    last_ms: u64,
    message: String,
}

/// The shards whose last write was refused. Bounded by the number of shards; locked for one map
/// operation, never across an await.
#[derive(Debug, Default)]
pub struct RefusedWrites {
    shards: DashMap<ShardId, ConsecutiveRefusals>,
}

impl RefusedWrites {
    /// The API server accepted a write.
    pub fn accepted(&self, shard: ShardId) {
        self.shards.remove(&shard);
    }

    /// The API server refused a write.
    pub fn refused(&self, shard: ShardId, refusal: &Refusal, now_ms: u64) {
        let message = match refusal {
            Refusal::Fenced {
                rule: Rule::Holder,
                message,
            }
            // Concerns the operator's permissions, not the object.
            | Refusal::Failure(Failure::Failed {
                cause: Cause::Forbidden,
                message,
            }) => shorten(message),
            Refusal::Fenced {
                rule: Rule::TokenAhead | Rule::Object,
                message: _,
            }
            | Refusal::Gone
            | Refusal::Conflict(_)
            | Refusal::NamespaceTerminating(_)
            | Refusal::Refused(..)
            | Refusal::Failure(
                Failure::Lost
                | Failure::Retry { .. }
                | Failure::Throttled { .. }
                | Failure::Failed { .. },
            ) => return,
        };
        let mut row = self
            .shards
            .entry(shard)
            .or_insert_with(|| ConsecutiveRefusals {
                first_ms: now_ms,
                last_ms: now_ms,
                message: String::new(),
            });
        row.last_ms = now_ms;
        row.message = message;
    }

    /// What was known of a shard says nothing about the next time we hold it.
    pub fn forget(&self, shard: ShardId) {
        self.shards.remove(&shard);
    }

    /// The shards of which all writes are refused, in order, with what was said last.
    pub(crate) fn all_refused(&self, now_ms: u64) -> Vec<(ShardId, String)> {
        let mut found: Vec<_> = self
            .shards
            .iter()
            .filter(|row| row.last_ms.saturating_sub(row.first_ms) >= REFUSED_MS)
            .filter(|row| now_ms.saturating_sub(row.last_ms) < REFUSAL_VALID_MS)
            .map(|row| (*row.key(), row.message.clone()))
            .collect();
        found.sort();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId(7);

    fn fenced(rule: Rule) -> Refusal {
        Refusal::Fenced {
            rule,
            message: "no".to_owned(),
        }
    }

    #[test]
    fn all_writes_are_refused_once_nothing_was_accepted_for_ten_seconds() {
        let writes = RefusedWrites::default();
        writes.refused(SHARD, &fenced(Rule::Holder), 1_000);
        writes.refused(SHARD, &fenced(Rule::Holder), 10_999);
        assert_eq!(writes.all_refused(11_000), []);
        writes.refused(SHARD, &fenced(Rule::Holder), 11_000);
        assert_eq!(writes.all_refused(11_000), [(SHARD, "no".to_owned())]);
        assert_eq!(
            writes.all_refused(11_000 + REFUSAL_VALID_MS),
            [],
            "long ago"
        );
        writes.accepted(SHARD);
        assert_eq!(writes.all_refused(11_000), []);
    }

    #[test]
    fn only_refusals_users_cannot_provoke_count() {
        let rights = Refusal::Failure(Failure::Failed {
            cause: Cause::Forbidden,
            message: "no".to_owned(),
        });
        for (refusal, counts) in [
            (fenced(Rule::TokenAhead), false),
            (fenced(Rule::Object), false),
            (fenced(Rule::Holder), true),
            (
                Refusal::Refused(Cause::Forbidden, "quota".to_owned()),
                false,
            ),
            (Refusal::Conflict("busy".to_owned()), false),
            (rights, true),
        ] {
            let writes = RefusedWrites::default();
            writes.refused(SHARD, &refusal, 0);
            writes.refused(SHARD, &refusal, REFUSED_MS);
            let count = writes.all_refused(REFUSED_MS).len();
            assert_eq!(count, usize::from(counts), "{refusal:?}");
        }
    }

    #[test]
    fn single_refusals_and_former_permits_are_ignored() {
        let writes = RefusedWrites::default();
        writes.refused(SHARD, &fenced(Rule::Holder), 0);
        assert_eq!(writes.all_refused(60_000), []);
        writes.refused(SHARD, &fenced(Rule::Holder), 60_000);
        assert_eq!(writes.all_refused(60_000).len(), 1);
        writes.forget(SHARD);
        assert_eq!(writes.all_refused(60_000), []);
    }
}
