//! An operator that turns `DatabaseCluster` objects into running PostgreSQL clusters.
//!
//! ```text
//!                       sharded-controller                         this crate
//!              ┌───────────────────────────────────┐  ┌──────────────────────────────────────┐
//! API server ──▶ list and watch, own shards only ──┼──▶ watch: records in a store            │
//!              │ queue ──▶ pool ───────────────────┼──▶ reconcile: gather ──▶ plan ──▶ apply  │
//!              │                                   │  │              (core, pure)  (postgres) │
//! API server ◀── ShardPermit::guard ◀──────────────┼── writes, status, Events                │
//!              │ Leases, shard table, fence        │  │ telemetry: /fleet, log level, metrics │
//!              └───────────────────────────────────┘  └──────────────────────────────────────┘
//! ```
//!
//! Sharding, fencing and handover are in the crate [`sharded_controller`], which knows no DatabaseCluster.
//! This crate has what is specific to PostgreSQL and to this operator:
//!
//! - [`api`]: the kind `DatabaseCluster` with the rules that the API server checks, and the names of the operator
//! - [`core`]: what a cluster needs, decided by pure functions from records
//! - [`watch`]: the watched kinds, and the records that are kept of them
//! - `reconcile`: one reconcile of one cluster; every write of the operator
//! - [`postgres`]: the rendering of the children
//! - [`fence`]: what the operator writes, for the generator of the admission policies
//! - [`telemetry`]: the log, the operator's own metrics and the fleet page
//! - [`plugin`]: the kubectl plugin, and the command `fleet`
//! - [`cli`], [`config`], [`replica`]: commands, flags, and a replica put together
//!
//! docs/ARCHITECTURE.md of the repository has the invariants that hold between these parts.

pub mod api;
pub mod cli;
pub mod config;
pub mod core;
pub mod fence;
pub mod plugin;
pub mod postgres;
mod reconcile;
pub mod replica;
pub mod telemetry;
pub mod watch;
