//! The right to act in one shard: every write of the operator holds and checks it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::time::{ClockId, clock_gettime};
use tokio_util::sync::CancellationToken;

use crate::core::hash::ShardId;
use crate::core::token::FencingToken;
use crate::planted::{Failpoint, clock_ms, is_active};

/// Milliseconds on a clock that counts suspended time and never jumps (`CLOCK_BOOTTIME`).
#[must_use]
pub fn boottime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    clock_ms(seconds * 1000 + nanos / 1_000_000)
}

/// Until when this incarnation may act; shared by all its tenures.
#[derive(Debug, Default)]
pub struct Validity {
    until_ms: AtomicU64,
}

impl Validity {
    /// Sets the end, in milliseconds of [`boottime_ms`]. 0 ends the validity.
    pub fn set_until_ms(&self, until_ms: u64) {
        self.until_ms.store(until_ms, Ordering::SeqCst);
    }

    /// The end, in milliseconds of [`boottime_ms`].
    #[must_use]
    pub fn until_ms(&self) -> u64 {
        self.until_ms.load(Ordering::SeqCst)
    }

    /// Whether the incarnation may still act.
    #[must_use]
    pub fn holds(&self) -> bool {
        boottime_ms() < self.until_ms()
    }
}

/// The right to act was lost before the write; the object belongs to another replica, or to none yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "shard {shard} is no longer ours (epoch {epoch}): nothing was written; its holder continues"
)]
pub struct TenureLost {
    /// The shard in question.
    pub shard: ShardId,
    /// The epoch under which we held it.
    pub epoch: u32,
}

/// The right to act in one shard under one epoch. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tenure {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    token: FencingToken,
    validity: Arc<Validity>,
    ended: CancellationToken,
}

impl Tenure {
    /// A tenure that lasts until `ended` is cancelled or `validity` runs out.
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
    pub fn check(&self) -> Result<(), TenureLost> {
        let valid = self.inner.validity.holds() || is_active(Failpoint::Validity);
        if self.inner.ended.is_cancelled() || !valid {
            return Err(TenureLost {
                shard: self.inner.token.shard,
                epoch: self.inner.token.epoch,
            });
        }
        Ok(())
    }

    /// Completes when the tenure was ended.
    pub async fn ended(&self) {
        self.inner.ended.cancelled().await;
    }
}
