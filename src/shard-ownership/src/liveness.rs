//! The rules of who is alive, for the protocol and for whatever displays it.

/// The holder that a Lease names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder<'a> {
    /// Identity of the replica; empty: nobody.
    pub identity: &'a str,
    /// Its incarnation.
    pub incarnation: &'a str,
}

impl Holder<'_> {
    /// Whether the Lease names nobody: a member Lease says so of a dead incarnation.
    #[must_use]
    pub fn is_nobody(self) -> bool {
        self.identity.is_empty()
    }
}

/// Whether the incarnation that holds a shard is alive. `member` is the holder of the member Lease of
/// the replica that the shard Lease names.
#[must_use]
pub fn is_live_holder(shard: Holder<'_>, member: Holder<'_>) -> bool {
    !shard.is_nobody() && !member.is_nobody() && shard.incarnation == member.incarnation
}

/// Whether a Lease that was silent for so long has run out: then its holder counts as dead.
#[must_use]
pub fn has_expired(silence_ms: u64, lease_ms: u64) -> bool {
    silence_ms >= lease_ms
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn holder<'a>(identity: &'a str, incarnation: &'a str) -> Holder<'a> {
        Holder {
            identity,
            incarnation,
        }
    }

    #[test]
    fn only_the_incarnation_that_the_shard_names_holds_it() {
        let shard = holder("a", "one");
        assert!(is_live_holder(shard, holder("a", "one")));
        assert!(!is_live_holder(shard, holder("a", "two")), "restarted");
        assert!(!is_live_holder(shard, holder("", "one")), "vacated");
        assert!(!is_live_holder(holder("", "one"), holder("a", "one")));
    }

    #[test]
    fn a_lease_runs_out_at_the_end_of_its_lifetime() {
        assert!(!has_expired(5_999, 6_000));
        assert!(has_expired(6_000, 6_000));
    }
}
