//! The right to act in one shard: every write of the operator holds and checks it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::failpoints::{Failpoint, is_active};
use crate::outcome::Failure;
use crate::refusal::Refusal;
use crate::write::Write;
use shard_ownership::hash::ShardId;
use shard_ownership::token::FencingToken;

/// Until when this incarnation may act; shared by all its permits.
#[derive(Debug)]
pub struct Validity {
    clock: Clock,
    until_ms: AtomicU64,
}

impl Validity {
    /// Has ended, by this clock.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            until_ms: AtomicU64::new(0),
        }
    }

    /// Sets the end, in milliseconds of [`Clock::now_ms`]. 0 ends the validity.
    pub fn set_until_ms(&self, until_ms: u64) {
        self.until_ms.store(until_ms, Ordering::SeqCst);
    }

    /// Whether the incarnation may still act.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.clock.now_ms() < self.until_ms.load(Ordering::SeqCst)
    }
}

/// The right to act was lost before the write; the object belongs to another replica, or to none yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "shard {shard} is no longer ours (epoch {epoch}): nothing was written; its holder continues"
)]
pub struct PermitLost {
    /// The shard in question.
    pub shard: ShardId,
    /// The epoch under which we held it.
    pub epoch: u32,
}

/// The right to act in one shard under one epoch. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ShardPermit {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    token: FencingToken,
    validity: Arc<Validity>,
    ended: CancellationToken,
}

impl ShardPermit {
    /// A permit that lasts until `ended` is cancelled or `validity` runs out.
    #[must_use]
    pub fn new(token: FencingToken, validity: Arc<Validity>, ended: CancellationToken) -> Self {
        Self {
            inner: Arc::new(Inner {
                token,
                validity,
                ended,
            }),
        }
    }

    /// The shard.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.inner.token.shard
    }

    /// The token that is written into every object, so that the fence can compare it.
    #[must_use]
    pub fn token(&self) -> &FencingToken {
        &self.inner.token
    }

    /// Checks whether a write is allowed now. Call it right before each write.
    ///
    /// # Errors
    /// When the shard was stopped or the incarnation's validity has run out.
    pub fn check(&self) -> Result<(), PermitLost> {
        let valid = self.inner.validity.holds() || is_active(Failpoint::Validity);
        if self.inner.ended.is_cancelled() || !valid {
            return Err(PermitLost {
                shard: self.inner.token.shard,
                epoch: self.inner.token.epoch,
            });
        }
        Ok(())
    }

    /// Completes when the permit was ended.
    pub async fn ended(&self) {
        self.inner.ended.cancelled().await;
    }

    /// Sends a write, unless the right to act has ended, and stops waiting for its answer when that
    /// ends. No other function sends a [`Write`].
    ///
    /// # Errors
    /// When the right to act has ended ([`Failure::Lost`]: the write was not sent, or its answer was not
    /// waited for), or what the API server's refusal means.
    pub async fn guard<T>(&self, write: Write<T>) -> Result<T, Refusal> {
        let Write { request, account } = write;
        if self.check().is_err() {
            account.lost();
            return Err(Refusal::Failure(Failure::Lost));
        }
        let answer = tokio::select! {
            biased;
            () = self.ended() => return Err(Refusal::Failure(Failure::Lost)),
            answer = request => answer,
        };
        account.settle(self.shard(), answer)
    }
}
