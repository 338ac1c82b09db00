//! How one reconcile ended, and what that asks of the queue.

use std::time::Duration;

/// When to look at the object again although nothing was seen to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is Ready: the long safety net.
    Ready,
    /// Something is under way that a watch will report: the short safety net.
    Waiting,
    /// Something may be so after this time that no watch of ours reports.
    RequeueAfter {
        /// Milliseconds from now.
        ms: u64,
    },
    /// It is gone: never.
    Forget,
}

/// A reconcile that did what it could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether anything was written.
    pub wrote: bool,
    /// When to look again.
    pub next: Next,
}

/// Why a reconcile failed, as a bounded set for labels and for the one line a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// The API server could not be reached or answered 5xx.
    Unavailable,
    /// RBAC or somebody else's admission policy refuses the write.
    Forbidden,
    /// The API server calls what we sent invalid.
    Invalid,
    /// An object of a child's name belongs to someone else.
    ForeignChild,
    /// An object carries a fencing token ahead of the holder's: somebody edited or restored it.
    TokenAhead,
    /// The fence keeps refusing a write for another reason.
    Fenced,
    /// The reconcile ran into its deadline.
    Timeout,
    /// The reconcile panicked.
    Panic,
    /// Anything else.
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

    /// The label value.
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

/// A reconcile that did not do what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The right to act was lost on the way: the object is another replica's. Not a failure of the object.
    Lost,
    /// 409, or a refusal by the fence: look afresh and run again, a bounded number of times.
    Retry {
        /// Whether it was the fence that refused.
        fenced: bool,
        /// What the API server said.
        message: String,
    },
    /// 429: the API server asked for a pause.
    Throttled {
        /// The pause it asked for.
        retry_after: Duration,
    },
    /// A failure of the object: back off.
    Failed {
        /// The bounded cause.
        cause: Cause,
        /// What happened and what to do.
        message: String,
    },
}

impl Failure {
    /// Whether the fence refused a write: the shard may be another replica's by now.
    #[must_use]
    pub const fn is_by_fence(&self) -> bool {
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
