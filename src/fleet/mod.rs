//! Executes ownership decisions: heartbeat, locks, fleet leader, fence.

pub mod agent;
mod careless;
pub mod fence;
pub mod leader;
pub mod leases;
pub mod state;
pub mod table;
pub mod tenure;
