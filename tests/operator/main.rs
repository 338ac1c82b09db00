//! The operator against a real control plane: real processes, real API server, fake nodes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod backup;
mod bad_clients;
mod bad_input;
mod changes;
mod data;
mod edits;
mod exported;
mod exporter;
mod fields;
mod fleet;
mod metrics;
mod outages;
mod pods;
mod reporting;
mod requests;
mod sidecars;
mod support;
mod tls;
