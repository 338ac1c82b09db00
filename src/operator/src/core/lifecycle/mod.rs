//! The lifecycle of a cluster as a state machine whose illegal transitions do not compile.
//!
//! ```text
//! Creating ──▶ Scaling ──▶ Ready ◀──▶ Degraded
//!                 ▲          │            │
//!                 └──────────┴────────────┘        every one of them ──▶ Terminating
//! ```
//!
//! A state is a type, a transition a method that only the states that allow it have. A cluster that
//! is being created has to pass through `Scaling`:
//!
//! ```
//! use databasecluster_operator::core::lifecycle::{Lifecycle, ConditionReason};
//! let creating = Lifecycle::begin(ConditionReason::new("Creating", "creating the StatefulSet"));
//! let ready = creating
//!     .scale(ConditionReason::new("Scaling", "0 of 1 instances are ready"))
//!     .ready(ConditionReason::new("AllReady", "1 of 1 instances are ready"));
//! assert_eq!(ready.phase().label(), "Ready");
//! ```
//!
//! The same without `scale` does not compile:
//!
//! ```compile_fail
//! use databasecluster_operator::core::lifecycle::{Lifecycle, ConditionReason};
//! let creating = Lifecycle::begin(ConditionReason::new("Creating", "creating the StatefulSet"));
//! let ready = creating
//!     .ready(ConditionReason::new("AllReady", "1 of 1 instances are ready"));
//! assert_eq!(ready.phase().label(), "Ready");
//! ```
//!
//! And nothing comes back from `Terminating`:
//!
//! ```compile_fail
//! use databasecluster_operator::core::lifecycle::{Lifecycle, ConditionReason};
//! let creating = Lifecycle::begin(ConditionReason::new("Creating", "creating the StatefulSet"));
//! creating
//!     .terminate(ConditionReason::new("Deleted", "being deleted"))
//!     .scale(ConditionReason::new("Scaling", "0 of 1 instances are ready"));
//! ```

mod conditions;
mod stage;

use std::marker::PhantomData;

pub use conditions::Exposure;
pub(crate) use conditions::{Facts, conditions};
pub(crate) use stage::{Observed, Problem, Stage, Workload, progressing_since, reason};

use crate::api::Phase;

/// Longest message of a condition, in bytes.
pub(crate) const MESSAGE_LENGTH_MAX: usize = 1024;

/// Why the cluster is in its state: a reason for programs, and a message for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionReason {
    /// One word in CamelCase.
    pub reason: String,
    /// A sentence, bounded in length.
    pub message: String,
}

impl ConditionReason {
    /// A reason and a message; the message is cut at 1024 bytes.
    #[must_use]
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MESSAGE_LENGTH_MAX {
            let ellipsis = '…';
            let end = message.floor_char_boundary(MESSAGE_LENGTH_MAX - ellipsis.len_utf8());
            message.truncate(end);
            message.push(ellipsis);
        }
        Self {
            reason: reason.to_owned(),
            message,
        }
    }
}

/// A state of the lifecycle of a cluster.
pub trait State: sealed::Sealed {
    /// The phase that is displayed for it.
    const PHASE: Phase;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! states {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {}
        impl sealed::Sealed for $name {}
        impl State for $name {
            const PHASE: Phase = Phase::$name;
        }
    )*};
}

states! {
    /// Its objects are being created.
    Creating;
    /// Its instances are being brought to the state in the spec.
    Scaling;
    /// All instances accept connections.
    Ready;
    /// Something is wrong.
    Degraded;
    /// It is being deleted.
    Terminating;
}

/// A cluster in one lifecycle state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifecycle<S: State> {
    why: ConditionReason,
    state: PhantomData<S>,
}

impl<S: State> Lifecycle<S> {
    const fn at(why: ConditionReason) -> Self {
        Self {
            why,
            state: PhantomData,
        }
    }

    /// The same state for another reason.
    #[must_use]
    pub fn stay(self, why: ConditionReason) -> Self {
        Self::at(why)
    }

    /// Why it is in this state.
    #[must_use]
    pub fn why(&self) -> &ConditionReason {
        &self.why
    }

    /// The phase that is displayed for the state.
    #[must_use]
    pub fn phase(&self) -> Phase {
        S::PHASE
    }
}

impl Lifecycle<Creating> {
    /// The first state of every cluster.
    #[must_use]
    pub const fn begin(why: ConditionReason) -> Self {
        Self::at(why)
    }
}

/// States in which work can start, fail, or be ended by a deletion: all but `Terminating`.
pub trait Alive: State {}
impl Alive for Creating {}
impl Alive for Scaling {}
impl Alive for Ready {}
impl Alive for Degraded {}

/// States from which a change of the instances can start.
pub trait CanScale: Alive {}
impl CanScale for Creating {}
impl CanScale for Ready {}
impl CanScale for Degraded {}

/// States in which a problem can be detected.
pub trait CanDegrade: Alive {}
impl CanDegrade for Creating {}
impl CanDegrade for Scaling {}
impl CanDegrade for Ready {}

/// States from which a cluster can become `Ready`.
pub trait CanBeReady: Alive {}
impl CanBeReady for Scaling {}
impl CanBeReady for Degraded {}

impl<S: CanScale> Lifecycle<S> {
    /// Starts or continues a change of the instances.
    #[must_use]
    pub fn scale(self, why: ConditionReason) -> Lifecycle<Scaling> {
        Lifecycle::at(why)
    }
}

impl<S: CanDegrade> Lifecycle<S> {
    /// Reports a problem.
    #[must_use]
    pub fn degrade(self, why: ConditionReason) -> Lifecycle<Degraded> {
        Lifecycle::at(why)
    }
}

impl<S: CanBeReady> Lifecycle<S> {
    /// Reports that all instances accept connections.
    #[must_use]
    pub fn ready(self, why: ConditionReason) -> Lifecycle<Ready> {
        Lifecycle::at(why)
    }
}

impl<S: Alive> Lifecycle<S> {
    /// Starts the deletion: the last state.
    #[must_use]
    pub fn terminate(self, why: ConditionReason) -> Lifecycle<Terminating> {
        Lifecycle::at(why)
    }
}

#[cfg(test)]
mod tests;
