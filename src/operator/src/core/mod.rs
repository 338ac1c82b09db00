//! Decisions: pure functions and state machines with no I/O, no clock and no randomness.
//!
//! **Architecture invariant:** nothing here awaits, reads a clock, draws a random number, or knows
//! the Kubernetes client. Whatever a decision needs is an argument.

pub mod backoff;
pub mod child;
pub mod claims;
pub mod conclude;
pub mod digest;
pub mod failures;
pub mod image;
pub mod lifecycle;
pub mod memory;
pub mod object;
pub mod observed;
pub mod outcome;
pub mod persistent;
pub mod plan;
pub mod queue;
pub mod storm;
pub mod version;
pub mod watch_mode;
