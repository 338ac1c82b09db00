//! Who owns which shard: a pure state machine over Leases and a fencing table.

pub mod dead_members;
pub mod hash;
pub mod lease;
pub mod liveness;
pub mod members;
pub mod ownership;
pub mod planner;
pub mod resource_version;
pub mod ring;
pub mod table;
pub mod token;
