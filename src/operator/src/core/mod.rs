//! Decisions: pure functions and state machines with no I/O, no clock and no randomness.
//!
//! **Architecture invariant:** nothing here awaits, reads a clock, draws a random number, or knows
//! the Kubernetes client. Whatever a decision needs is an argument.

pub mod child;
pub mod claims;
pub mod digest;
pub mod image;
pub mod lifecycle;
pub mod memory;
pub mod observed;
pub mod persistent_failure;
pub mod plan;
pub mod status;
