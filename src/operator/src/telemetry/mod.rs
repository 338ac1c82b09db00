//! What a replica reports: metrics, process statistics, health, the fleet.

pub(crate) mod database_conditions;
mod fleet_problems;
pub(crate) mod fleet_table;
pub mod fleet_view;
pub mod log;
pub mod log_level;
mod loopback;
pub mod metrics;
pub mod metrics_doc;
pub mod metrics_labels;
mod page;
pub mod routes;
