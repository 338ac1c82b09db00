//! Where an object lies on the hash circle: FNV-1a 64 of its uid, its bucket, its shard.

use std::fmt;

/// FNV-1a, 64 bits: the hash that kube-apiserver applies to `metadata.uid` in a `shardSelector`.
///
/// Source: Fowler, Noll and Vo, <http://www.isthe.com/chongo/tech/comp/fnv/>.
#[must_use]
pub const fn fnv1a64(bytes: &[u8]) -> u64 {
    let mut hash = Fnv1a64::new();
    hash.write(bytes);
    hash.finish()
}

/// FNV-1a 64 of bytes that come in pieces: [`fnv1a64`] of all of them together.
#[derive(Clone, Copy, Debug)]
pub struct Fnv1a64(u64);

impl Fnv1a64 {
    /// Of no bytes yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Adds bytes.
    pub const fn write(&mut self, bytes: &[u8]) {
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        let mut i = 0;
        while i < bytes.len() {
            self.0 = (self.0 ^ bytes[i] as u64).wrapping_mul(PRIME);
            i += 1;
        }
    }

    /// The hash of all bytes so far.
    #[must_use]
    pub const fn finish(&self) -> u64 {
        self.0
    }
}

impl Default for Fnv1a64 {
    fn default() -> Self {
        Self::new()
    }
}

/// The top 8 bits of an object's hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bucket(pub u8);

impl Bucket {
    /// The bucket of the object with this uid.
    #[must_use]
    pub const fn of(uid: &str) -> Self {
        Self((fnv1a64(uid.as_bytes()) >> 56) as u8)
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One of the equal arcs of the hash circle, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How many shards there are: a power of two from 1 to 256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShardCount(u16);

/// The number is not a power of two from 1 to 256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a power of two from 1 to 256")]
pub struct BadShardCount(pub u64);

impl ShardCount {
    /// 32 shards: enough for tens of replicas, and few enough Leases.
    pub const DEFAULT: Self = Self(32);

    /// A count, checked.
    ///
    /// # Errors
    /// When it is not a power of two from 1 to 256.
    pub const fn new(count: u64) -> Result<Self, BadShardCount> {
        if count.is_power_of_two() && count <= 256 {
            Ok(Self(count as u16))
        } else {
            Err(BadShardCount(count))
        }
    }

    /// The number itself.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// All shards, in order.
    pub fn shards(self) -> impl DoubleEndedIterator<Item = ShardId> + ExactSizeIterator + Clone {
        (0..self.0).map(ShardId)
    }

    /// The shard in which a bucket lies.
    #[must_use]
    pub const fn shard_of(self, bucket: Bucket) -> ShardId {
        ShardId((bucket.0 as u16 * self.0) >> 8)
    }

    /// First and last bucket of a shard.
    #[must_use]
    pub const fn buckets(self, shard: ShardId) -> (Bucket, Bucket) {
        let width = 256 / self.0;
        let first = shard.0 * width;
        (Bucket(first as u8), Bucket((first + width - 1) as u8))
    }

    /// The arc of a shard: its first hash, and the first hash after it (`None`: the end of the circle).
    #[must_use]
    pub const fn arc(self, shard: ShardId) -> (u64, Option<u64>) {
        let (first, last) = self.buckets(shard);
        let start = (first.0 as u64) << 56;
        if last.0 == u8::MAX {
            (start, None)
        } else {
            (start, Some((last.0 as u64 + 1) << 56))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn fnv1a64_matches_the_published_vectors() {
        assert_eq!(fnv1a64(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a64(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a64(b"foobar"), 0x8594_4171_f739_67e8);
        let mut pieces = Fnv1a64::default();
        pieces.write(b"foo");
        pieces.write(b"");
        pieces.write(b"bar");
        assert_eq!(pieces.finish(), fnv1a64(b"foobar"));
    }

    #[test]
    fn every_bucket_lies_in_the_shard_whose_range_holds_it() {
        for exponent in 0..=8 {
            let count = ShardCount::new(1 << exponent).unwrap();
            for bucket in 0..=u8::MAX {
                let shard = count.shard_of(Bucket(bucket));
                let (first, last) = count.buckets(shard);
                assert!((first.0..=last.0).contains(&bucket), "{count:?} {bucket}");
            }
            assert_eq!(count.arc(ShardId(0)).0, 0);
            assert_eq!(count.arc(ShardId(count.get() - 1)).1, None);
        }
    }

    #[test]
    fn only_powers_of_two_up_to_256_are_shard_counts() {
        for bad in [0, 3, 31, 33, 255, 257, 512, 1 << 40] {
            assert_eq!(ShardCount::new(bad), Err(BadShardCount(bad)));
        }
    }
}
