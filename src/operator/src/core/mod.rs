//! Decisions: pure functions and state machines with no I/O, no clock and no randomness.
//!
//! **Architecture invariant:** nothing here awaits, reads a clock, draws a random number, or knows
//! the Kubernetes client. Whatever a decision needs is an argument.

pub(crate) mod certificate;
pub mod child;
pub(crate) mod claims;
pub(crate) mod digest;
pub(crate) mod image;
// Public for its tests that must not compile.
pub mod lifecycle;
pub(crate) mod memory;
pub mod observed;
pub(crate) mod parameters;
pub(crate) mod persistent_failure;
pub(crate) mod plan;
pub mod status;
