//! Which Leases of dead members may be removed.

use std::collections::BTreeMap;

use super::lease::{MemberLease, ShardLease};

/// How long a member Lease must have been dead before it is removed: long enough for the
/// investigation of a failure.
const KEPT_MS: u64 = 60_000;

/// Since when each member Lease has been observed as dead.
#[derive(Debug, Default)]
pub struct DeadMembers {
    since_ms: BTreeMap<String, u64>,
}

impl DeadMembers {
    /// Members that have been dead long enough, as versions to remove. A member that a shard Lease
    /// still names is never among them: its death is what frees its shards.
    pub fn removable(
        &mut self,
        now_ms: u64,
        mut members: Vec<MemberLease>,
        shards: &[ShardLease],
    ) -> Vec<MemberLease> {
        let named = |identity: &str| shards.iter().any(|shard| shard.holder == identity);
        members.retain(|member| member.is_vacated() && !named(&member.identity));
        self.since_ms
            .retain(|identity, _| members.iter().any(|member| member.identity == *identity));
        members.retain(|member| {
            let since_ms = self.since_ms.entry(member.identity.clone());
            now_ms.saturating_sub(*since_ms.or_insert(now_ms)) >= KEPT_MS
        });
        members
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::samples;

    fn member(holder: &str) -> Vec<MemberLease> {
        vec![MemberLease {
            holder: holder.into(),
            ..samples::member("a", "")
        }]
    }

    #[test]
    fn dead_member_is_removed_after_a_minute_and_live_one_never() {
        let mut dead = DeadMembers::default();
        let mut at = |now_ms, holder| dead.removable(now_ms, member(holder), &[]).len();
        assert_eq!(at(1000, ""), 0);
        assert_eq!(at(60_999, ""), 0);
        assert_eq!(at(61_000, ""), 1);
        assert_eq!(at(200_000, "a"), 0);
    }

    #[test]
    fn member_seen_alive_in_between_is_kept_for_another_minute() {
        let mut dead = DeadMembers::default();
        let mut at = |now_ms, holder| dead.removable(now_ms, member(holder), &[]).len();
        assert_eq!(at(0, ""), 0);
        assert_eq!(at(50_000, "a"), 0);
        assert_eq!(at(70_000, ""), 0);
        assert_eq!(at(129_000, ""), 0);
        assert_eq!(at(130_000, ""), 1);
    }

    #[test]
    fn member_named_by_a_shard_is_kept() {
        let mut dead = DeadMembers::default();
        let mut at = |now_ms, of| {
            dead.removable(now_ms, member(""), &[samples::shard(0, of)])
                .len()
        };
        assert_eq!(at(0, "a"), 0);
        assert_eq!(at(90_000, "a"), 0);
        assert_eq!(at(100_000, "b"), 0);
        assert_eq!(at(160_000, "b"), 1);
    }
}
