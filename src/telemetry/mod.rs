//! What a replica tells: metrics, process figures, health, the fleet.

pub mod cgroup;
pub mod client;
mod connections;
pub mod fleet_command;
pub mod fleet_table;
pub mod fleet_view;
pub mod health;
pub mod log;
pub mod metrics;
pub mod metrics_doc;
pub mod process;
pub mod server;
pub mod text;
