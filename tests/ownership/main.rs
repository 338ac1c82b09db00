//! Ownership on a real API server: pauses, hung work, leaders, updates, lost Leases, forged tokens.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

// Tests start in the order of their names: the longest should be first.
mod deployments;
mod forged;
mod hung;
mod leaders;
mod overlap;
mod pauses;
mod proxy;
mod restarts;
mod support;
