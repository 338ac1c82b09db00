//! Executes ownership decisions: heartbeat, locks, fleet leader, fence.

pub mod agent;
pub mod fence;
pub mod history;
pub mod leader;
pub mod leases;
pub mod shard_table;
pub mod state;
pub mod table;
mod unchecked;
