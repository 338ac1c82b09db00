//! Input and output of the queue.

use crate::backoff::Attempts;
use crate::object::ObjectKey;
use crate::rate_limit::{RateLimit, Scope};
use shard_ownership::hash::ShardId;

/// Limits of a queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Maximum number of keys in it, running ones included.
    pub capacity: usize,
    /// The rate limiter.
    pub rate_limit: RateLimit,
    /// Whether each object has its own bucket.
    pub scope: Scope,
}

/// The effect of an add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Added {
    /// The key is now queued, sooner than before, or queued to run again after its current run.
    Queued,
    /// It was queued already, for the same time or sooner.
    Known,
}

/// Why an add was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddError {
    /// No room for another key.
    #[error(
        "the queue holds {capacity} objects and is full: it is offered again later; raise --queue-capacity"
    )]
    Full {
        /// Most keys in it.
        capacity: usize,
    },
    /// The shard is not open on this replica.
    #[error("shard {shard} is not run here: its holder reconciles the object")]
    NotOpen {
        /// The shard.
        shard: ShardId,
    },
}

/// A run to start now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The object.
    pub key: ObjectKey,
    /// The shard under whose permit it runs.
    pub shard: ShardId,
    /// Since when it was due.
    pub due_ms: u64,
    /// Its attempts so far.
    pub attempts: Attempts,
}
