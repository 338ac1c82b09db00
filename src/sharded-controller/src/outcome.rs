//! The result of one reconcile: done and when to run again, or why it failed.

use std::time::Duration;

/// When to reconcile the object again without an observed change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is Ready: after the long resync interval.
    Ready,
    /// A change is in progress that a watch will report: after the short resync interval.
    Waiting,
    /// Something may be so after this time that no watch of ours reports.
    RequeueAfter {
        /// Milliseconds from now.
        ms: u64,
    },
    /// It no longer exists: never.
    Forget,
}

/// A completed reconcile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether anything was written.
    pub wrote: bool,
    /// When to reconcile again.
    pub next: Next,
}

/// Why a reconcile failed, as a bounded set for labels and for the aggregated log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// The API server could not be reached or answered 5xx.
    Unavailable,
    /// RBAC or another admission policy refuses the write.
    Forbidden,
    /// The API server rejects the object as invalid.
    Invalid,
    /// An object with a child's name belongs to someone else.
    ForeignChild,
    /// An object carries a fencing token ahead of the holder's: it was edited or restored from a
    /// backup.
    TokenAhead,
    /// The fence keeps refusing a write for another reason.
    Fenced,
    /// The reconcile exceeded its deadline.
    Timeout,
    /// The reconcile panicked.
    Panic,
    /// Any other cause.
    Other,
}

impl Cause {
    /// Every cause, for metrics that start at zero.
    pub const ALL: [Self; 9] = [
        Self::Unavailable,
        Self::Forbidden,
        Self::Invalid,
        Self::ForeignChild,
        Self::TokenAhead,
        Self::Fenced,
        Self::Timeout,
        Self::Panic,
        Self::Other,
    ];

    /// The value of the metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Forbidden => "forbidden",
            Self::Invalid => "invalid",
            Self::ForeignChild => "foreign_child",
            Self::TokenAhead => "token_ahead",
            Self::Fenced => "fenced",
            Self::Timeout => "timeout",
            Self::Panic => "panic",
            Self::Other => "other",
        }
    }
}

/// A reconcile that did not complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The right to act was lost meanwhile: the object belongs to another replica. Not a failure of the
    /// object.
    Lost,
    /// 409, or a refusal by the fence: look afresh and run again, a bounded number of times.
    Retry {
        /// Whether it was the fence that refused.
        fenced: bool,
        /// The API server's message.
        message: String,
    },
    /// 429: the API server asked for a pause.
    Throttled {
        /// The requested pause.
        retry_after: Duration,
    },
    /// A failure of the object: back off.
    Failed {
        /// The bounded cause.
        cause: Cause,
        /// What happened, and what to do.
        message: String,
    },
}

impl Failure {
    /// Whether the fence refused a write: the shard may belong to another replica by now.
    #[must_use]
    pub(crate) const fn is_by_fence(&self) -> bool {
        matches!(
            self,
            Self::Retry { fenced: true, .. }
                | Self::Failed {
                    cause: Cause::TokenAhead | Cause::Fenced,
                    ..
                }
        )
    }
}
