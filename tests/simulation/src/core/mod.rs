//! The operator's own source files, compiled once more: optimised, and without the Kubernetes client.
//!
//! What is simulated is therefore the very code that ships, not a copy of it.

#[path = "../../../../src/core/hash.rs"]
pub mod hash;
#[path = "../../../../src/core/lease.rs"]
pub mod lease;
#[path = "../../../../src/core/members.rs"]
pub mod members;
#[path = "../../../../src/core/ownership/mod.rs"]
pub mod ownership;
#[path = "../../../../src/core/planner.rs"]
pub mod planner;
#[path = "../../../../src/core/ring.rs"]
pub mod ring;
#[path = "../../../../src/core/table.rs"]
pub mod table;
#[path = "../../../../src/core/token.rs"]
pub mod token;
