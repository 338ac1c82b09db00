//! Which watches may put what they bring into the cache.

use std::collections::BTreeMap;

use parking_lot::RwLock;
use shard_ownership::hash::ShardId;

/// The right to put objects of one kind in one shard into the cache, until the shard is closed or
/// opened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    kind: &'static str,
    number: u64,
}

/// The tickets in force.
#[derive(Debug, Default)]
pub struct Tickets {
    /// Read-locked while one object is put in or taken out, before any lock of a map; write-locked
    /// to open or close a shard.
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    open: BTreeMap<(ShardId, &'static str), u64>,
    given: u64,
}

impl Tickets {
    /// Opens a shard for one kind. Tickets given out for both before are void from now on; what they
    /// brought stays.
    pub fn open(&self, shard: ShardId, kind: &'static str) -> Ticket {
        let mut inner = self.inner.write();
        inner.given += 1;
        let number = inner.given;
        inner.open.insert((shard, kind), number);
        Ticket { kind, number }
    }

    /// Acts if the ticket is in force; the shard is not closed meanwhile.
    pub fn with<T>(&self, shard: ShardId, ticket: Ticket, act: impl FnOnce() -> T) -> Option<T> {
        let inner = self.inner.read();
        let in_force = inner.open.get(&(shard, ticket.kind)) == Some(&ticket.number);
        in_force.then(act)
    }

    /// Voids all tickets of a shard. What lies in it is to be dropped afterwards.
    pub fn close(&self, shard: ShardId) {
        let mut inner = self.inner.write();
        inner.open.retain(|(open, _), _| *open != shard);
    }
}
