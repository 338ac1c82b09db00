//! A leader-elected, sharded operator for `DatabaseCluster` objects.
//!
//! ```text
//! DatabaseCluster ──watch (only my shards)──▶ store ──▶ queue ──▶ pool ──▶ gather ──▶ plan ──▶ apply ──▶ status, events
//!                        ▲                              (dedupe,   (semaphore,          (pure)
//!   member Lease ──▶ members ──▶ ring ──▶ shard Leases   delays,    per-shard
//!   (heartbeat)      (watch)    (pure)    (locks, epoch) backoff)   drain)
//! ```
//!
//! Modules in the order of that path; see docs/ARCHITECTURE.md.

pub mod config;

pub mod api;
pub mod core;
pub mod fence;

pub mod watch;

pub mod reconcile;

pub mod postgres;
pub mod telemetry;

pub mod replica;
