//! The fencing token: the right under which an object was written, and the cluster for which.

use std::fmt;
use std::sync::Arc;

use super::hash::ShardId;

/// Highest epoch of a Lease, a table entry or a token. The API stores epochs in 32 bits; the last
/// 2^20 of them are never used, so that no write can exhaust the numbers.
pub const EPOCH_MAX: u32 = i32::MAX as u32 - (1 << 20);

/// Highest amount by which one write of the shard table may raise an epoch.
pub const EPOCH_STEP_MAX: u32 = 1 << 20;

/// Longest text that can be a token: two uids, a shard, an epoch, and an identity of at most 253
/// characters.
const TEXT_LENGTH_MAX: usize = 400;

/// The right under which a replica writes in one shard. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FencingToken {
    /// `metadata.uid` of the shard table that grants the right.
    pub table: Arc<str>,
    /// The shard in which the replica may write.
    pub shard: ShardId,
    /// Epoch of the shard's Lease and of its entry in the table.
    pub epoch: u32,
    /// Identity of the holder.
    pub holder: Arc<str>,
}

impl FencingToken {
    /// The text for an object of the cluster with this uid:
    /// `<table uid>/<shard>/<epoch>/<holder>/<cluster uid>`.
    #[must_use]
    pub fn for_cluster(&self, uid: &str) -> String {
        format!("{self}/{uid}")
    }
}

/// The token without the cluster, for logs.
impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            table,
            shard,
            epoch,
            holder,
        } = self;
        write!(f, "{table}/{:03}/{epoch}/{holder}", shard.0)
    }
}

/// A token as read from an object. Users can edit it, so it only affects what is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObservedToken<'a> {
    /// Uid of the table.
    pub table: &'a str,
    /// The shard under whose right it was written, which need not be one of ours.
    pub shard: ShardId,
    /// The epoch, at most [`EPOCH_MAX`].
    pub epoch: u32,
    /// Identity of the writer.
    pub holder: &'a str,
    /// Uid of the cluster that it was written for.
    pub cluster: &'a str,
}

impl<'a> ObservedToken<'a> {
    /// Parses a token; `None` if the text is not one, by the same rules as the fence's.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        if text.len() > TEXT_LENGTH_MAX {
            return None;
        }
        let mut parts = text.split('/');
        let (table, shard, epoch) = (parts.next()?, parts.next()?, parts.next()?);
        let (holder, cluster) = (parts.next()?, parts.next()?);
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        let is_token = parts.next().is_none()
            && !table.is_empty()
            && !holder.is_empty()
            && !cluster.is_empty()
            && shard.len() == 3
            && digits(shard)
            && digits(epoch)
            && !epoch.starts_with('0');
        let shard = ShardId(shard.parse().ok().filter(|n| *n < 256)?);
        let epoch = epoch.parse().ok().filter(|n| *n <= EPOCH_MAX)?;
        is_token.then_some(Self {
            table,
            shard,
            epoch,
            holder,
            cluster,
        })
    }

    /// Whether the fence refuses a write under `token` to an object of the cluster with this uid that
    /// carries `self`: it is a token of that cluster, names the same table, and has a higher epoch.
    #[must_use]
    pub fn is_ahead_of(&self, token: &FencingToken, cluster_uid: &str) -> bool {
        self.cluster == cluster_uid && *self.table == *token.table && self.epoch > token.epoch
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn token(epoch: u32) -> FencingToken {
        FencingToken {
            table: "t-1".into(),
            shard: ShardId(3),
            epoch,
            holder: "operator-0".into(),
        }
    }

    #[test]
    fn a_token_survives_its_text_form() {
        let text = token(17).for_cluster("c-1");
        assert_eq!(text, "t-1/003/17/operator-0/c-1");
        let read = ObservedToken::parse(&text).unwrap();
        assert_eq!(
            (read.table, read.shard, read.epoch),
            ("t-1", ShardId(3), 17)
        );
        assert_eq!((read.holder, read.cluster), ("operator-0", "c-1"));
    }

    #[test]
    fn malformed_tokens_count_as_none() {
        let long = format!("t/003/1/{}/c", "h".repeat(400));
        for text in [
            "",
            "t",
            "t/003/1/h",
            "t/003/1/h/c/x",
            "/003/1/h/c",
            "t/003/1//c",
            "t/003/1/h/",
            "t/3/1/h/c",
            "t/999/1/h/c",
            "t/003/0/h/c",
            "t/003/-1/h/c",
            "t/003/+1/h/c",
            "t/003/01/h/c",
            "t/003/x/h/c",
            "t/+03/1/h/c",
            "t/003/2147483647/h/c",
            "t/003/99999999999/h/c",
            &long,
        ] {
            assert_eq!(ObservedToken::parse(text), None, "{text:?}");
        }
        let highest = format!("t/003/{EPOCH_MAX}/h/c");
        assert!(ObservedToken::parse(&highest).is_some());
    }

    #[test]
    fn only_a_counting_token_of_the_same_table_is_ahead() {
        let ahead = |text: &str| {
            ObservedToken::parse(text)
                .unwrap()
                .is_ahead_of(&token(5), "c")
        };
        assert!(ahead("t-1/003/6/x/c"));
        assert!(ahead("t-1/007/6/x/c"), "whatever the shard");
        assert!(!ahead("t-1/003/5/x/c"));
        assert!(!ahead("t-2/003/6/x/c"), "of another table");
        assert!(!ahead("t-1/003/6/x/d"), "of another cluster");
    }
}
