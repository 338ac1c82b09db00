//! Executes the decisions of [`shard_ownership`] on Kubernetes: heartbeat, locks, fleet leader, fence.
//!
//! [`agent`] owns the state machine. It turns Leases ([`leases`]) and the shard table ([`table`]) into
//! events, sends the writes that the machine asks for, and starts and stops the work in shards. Beside it,
//! `leader` plans moves while this replica is the fleet leader, and `fence` proves that the API server
//! refuses what it must refuse. [`state`] and [`history`] are what the other parts may read of all this.

pub mod agent;
pub(crate) mod fence;
pub mod history;
pub(crate) mod leader;
pub mod leases;
pub mod shard_table;
pub mod state;
pub mod table;
mod unchecked;
